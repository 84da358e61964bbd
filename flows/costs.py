"""What a preset's stages, or a run folder's job, will cost (``mdm train --dry-run``); ``mdm/forecast`` reckons it."""

import argparse
from typing import Any

from mdm.config import Device
from mdm.forecast.forecast import Machine, forecast, page, table
from mdm.presets import resolve
from mdm.run.job import Job
from mdm.stage import Stage
from mdm.training.compute import gpu_kind


def of_preset(arguments: argparse.Namespace, overrides: dict[str, Any]) -> str:
    """Of all its stages, or of the one named. Raises ValueError naming what cannot work."""
    preset = resolve(arguments.preset, overrides)
    if arguments.stage is not None and arguments.stage not in preset.stages:
        raise ValueError(f"--stage {arguments.stage}: the stages of {preset.name} are {', '.join(preset.stages)}")
    stages = {name: s for name, s in preset.stages.items() if arguments.stage in (None, name)}
    return table(stages, _machine(arguments, preset.hardware.device, preset.hardware.processes))


def of_job(arguments: argparse.Namespace, job: Job) -> str:
    """Of a run folder's job, on this machine's kind of device if it leaves that open."""
    stage = Stage(model=job.model, training=job.training, compute=job.compute, cadence=job.cadence)
    machine = _machine(arguments, job.device, 1)
    return page([arguments.run.resolve().name], [forecast(stage, machine)], machine)


def _machine(arguments: argparse.Namespace, device: Device, processes: int) -> Machine:
    found = (gpu_kind() or "cpu") if device == "auto" else device
    if found not in ("cpu", "cuda"):
        raise ValueError(f"what a stage costs on {found} is not known: price it for cpu or cuda")
    return Machine(
        device="cuda" if found == "cuda" else "cpu",
        processes=processes if arguments.processes is None else arguments.processes,
        gpu=arguments.gpu,
        utilisation=arguments.utilisation,
        gflops=arguments.gflops,
    )
