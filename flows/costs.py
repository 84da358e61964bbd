"""What a preset's stages, or a run folder's job, will cost (``mdm train --dry-run``); ``mdm/forecast`` reckons it."""

import argparse
from typing import Any, Literal

import torch

from mdm.forecast.forecast import Machine, forecast, page, table
from mdm.presets import resolve
from mdm.run.job import Job
from mdm.stage import Stage


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
    found: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    machine = _machine(arguments, found if job.device == "auto" else job.device, 1)
    return page([arguments.run.resolve().name], [forecast(stage, machine)], machine)


def _machine(arguments: argparse.Namespace, device: Literal["cpu", "cuda"], processes: int) -> Machine:
    return Machine(
        device=device,
        processes=processes if arguments.processes is None else arguments.processes,
        gpu=arguments.gpu,
        utilisation=arguments.utilisation,
        gflops=arguments.gflops,
    )
