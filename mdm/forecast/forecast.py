"""What training will cost, before anything runs: FLOP, memory, hours, storage per stage (``mdm train --dry-run``)."""

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mdm.config import check
from mdm.forecast.memory import FLOAT, Memory, step_memory
from mdm.network.costs import (
    GPUS,
    TOKENS,
    forward_flops,
    hardware_flops_per_image,
    model_flops_per_image,
    parameters,
    peak_flops,
    precision_on,
)
from mdm.stage import Cadence, Precision, Stage, Training
from mdm.training.ema import LENGTHS


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the stages are imagined to run on."""

    device: Literal["cpu", "cuda"]
    processes: int  # one per GPU
    gpu: str = "A100"
    utilisation: float = 0.3  # model FLOP of the GPU's peak
    gflops: float = 30.0  # what a CPU process achieves, model GFLOP/s; about a core of a current server

    def __post_init__(self) -> None:
        check(self.processes >= 1, f"--processes must be at least 1, got {self.processes}")
        check(0 < self.utilisation <= 1, f"--utilisation must lie above 0 and be at most 1, got {self.utilisation}")
        check(self.gflops > 0, f"--gflops must be positive, got {self.gflops}")
        check(
            peak_flops(self.gpu, "float32") is not None,
            f"--gpu {self.gpu}: no peak is known for it; there are {', '.join(GPUS)}",
        )

    def precision(self, asked: Precision, where: str) -> Precision:
        """What a stage's precision comes to here. Raises ValueError where the GPU lacks it."""
        if self.device == "cpu":
            return "float32" if asked == "auto" else asked
        check(peak_flops(self.gpu, asked) is not None, f"{where}compute.precision: a {self.gpu} has no {asked}")
        return precision_on(self.gpu) if asked == "auto" else asked

    def flops(self, precision: Precision) -> float:
        """Model FLOP/s of one process."""
        if self.device == "cpu":
            return self.gflops * 1e9
        return self.utilisation * (peak_flops(self.gpu, precision) or 0)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """One stage's figures."""

    stage: Stage
    precision: Precision
    parameters: int
    per_process: int  # images of a step
    micro_batch: int
    forward: tuple[int, ...]  # FLOP of one image per level
    model_flops: float  # of one training image
    hardware_flops: float
    memory: Memory
    seconds: float
    checkpoint_bytes: int
    checkpoints: int  # kept at the end
    snapshots: int
    snapshot_bytes: int
    kept_emas: int
    ema_bytes: int
    start_bytes: int  # the grown weights that the stage starts from

    @property
    def steps(self) -> int:
        return math.ceil(self.stage.training.nimg / self.stage.training.batch_size)

    @property
    def storage_bytes(self) -> int:
        averages = self.snapshots * self.snapshot_bytes + self.kept_emas * self.ema_bytes
        return self.checkpoints * self.checkpoint_bytes + averages + self.start_bytes


def forecast(stage: Stage, machine: Machine, where: str = "") -> Forecast:
    """Raises ValueError naming the field, with ``where`` before it, if the stage cannot run on so many processes."""
    training, cadence, compute = stage.training, stage.cadence, stage.compute
    batch, per_process = training.batch_size, training.batch_size // machine.processes
    check(
        per_process * machine.processes == batch,
        f"{where}training.batch_size {batch} does not divide by {machine.processes} processes",
    )
    micro = min(per_process, compute.max_batch_per_process)
    check(
        per_process % micro == 0,
        f"{where}compute.max_batch_per_process: {per_process} images per process (training.batch_size {batch} over "
        f"{machine.processes} processes) do not split into micro-batches of {micro}",
    )
    precision = machine.precision(compute.precision, where)
    weights_bytes = parameters(stage.model) * FLOAT
    averages = len(LENGTHS) if cadence.average_every_nimg else 0
    steps = math.ceil(training.nimg / batch)
    model_flops = model_flops_per_image(stage.model, training)
    return Forecast(
        stage=stage,
        precision=precision,
        parameters=parameters(stage.model),
        per_process=per_process,
        micro_batch=micro,
        forward=forward_flops(stage.model),
        model_flops=model_flops,
        hardware_flops=hardware_flops_per_image(stage.model, training, compute),
        memory=step_memory(stage, machine.processes, micro, precision),
        seconds=steps * batch * model_flops / (machine.processes * machine.flops(precision)),
        checkpoint_bytes=(4 + averages) * weights_bytes,  # raw, EMA, Adam's two moments
        checkpoints=kept_checkpoints(training, cadence),
        snapshots=steps * batch // cadence.average_every_nimg if averages else 0,
        snapshot_bytes=averages * weights_bytes,
        kept_emas=(steps * batch - 1) // cadence.keep_ema_every_nimg if cadence.keep_ema_every_nimg else 0,
        ema_bytes=weights_bytes,
        start_bytes=weights_bytes if stage.start else 0,
    )


def kept_checkpoints(training: Training, cadence: Cadence) -> int:
    """How many checkpoints lie in the run folder when the stage has ended."""
    batch = training.batch_size
    end = math.ceil(training.nimg / batch) * batch

    def step(nimg: int) -> int:
        """Images at the end of the first step that reaches ``nimg``."""
        return min(end, math.ceil(nimg / batch) * batch)

    milestones = {step(nimg) for nimg in cadence.milestones.values()}
    if cadence.checkpoint_every_minutes:  # how many there are by then, nobody knows; the newest are kept
        return cadence.keep_checkpoints + len(milestones - {end})
    regular = {step(nimg) for nimg in range(0, end + 1, cadence.checkpoint_every_nimg)}
    saved = sorted({end} | milestones | regular)
    kept = set(saved[-cadence.keep_checkpoints :]) | milestones
    if cadence.keep_every_nimg:
        multiples = range(cadence.keep_every_nimg, end + 1, cadence.keep_every_nimg)
        kept |= {saved[bisect.bisect_left(saved, nimg)] for nimg in multiples}
    return len(kept)


# -- the page ----------------------------------------------------------------------------------------------------------


def table(stages: dict[str, Stage], machine: Machine) -> str:
    """The forecasts of named stages side by side, their totals, and what was assumed. Raises ValueError, see above."""
    every = [forecast(stage, machine, f"stages.{name}.") for name, stage in stages.items()]
    return page(list(stages), every, machine)


def page(names: list[str], every: list[Forecast], machine: Machine) -> str:
    """A column per forecast."""
    lines: list[list[str]] = [["stage", *names]]

    def row(label: str, cell: Callable[[Forecast], str], total: str = "") -> None:
        lines.append([label, *map(cell, every), total])

    unit = "GPU" if machine.device == "cuda" else "process"
    row("levels (px)", lambda f: " ".join(map(str, f.stage.model.resolutions)))
    row("parameters", lambda f: f"{f.parameters:,}")
    row("images", lambda f: f"{f.stage.training.nimg:,}", f"{sum(f.stage.training.nimg for f in every):,}")
    row("steps x images per step", lambda f: f"{f.steps:,} x {f.stage.training.batch_size:,}")
    row(f"micro-batches per {unit}", lambda f: f"{f.per_process // f.micro_batch:,} x {f.micro_batch:,}")
    row("precision", lambda f: f.precision)
    row("forward, GFLOP per image", lambda f: f"{sum(f.forward) / 1e9:,.2f}")
    if any(f.stage.training.low_only and len(f.forward) > 1 for f in every):
        row("  without the top level", lambda f: f"{sum(f.forward[:-1]) / 1e9:,.2f}" if len(f.forward) > 1 else "–")
    row("training, GFLOP per image", lambda f: f"{f.model_flops / 1e9:,.2f}")
    row("training, TFLOP per step", lambda f: f"{f.model_flops * f.stage.training.batch_size / 1e12:,.4g}")
    if any(f.hardware_flops > f.model_flops for f in every):
        row("  with what is recomputed", lambda f: f"{f.hardware_flops * f.stage.training.batch_size / 1e12:,.4g}")
    row(f"memory per {unit}", lambda f: _size(f.memory.total), _size(max(f.memory.total for f in every)))
    row("  weights, gradients", lambda f: _size(f.memory.weights + f.memory.gradients))
    row("  Adam's moments, averages", lambda f: _size(f.memory.moments + f.memory.ema + f.memory.averages))
    row("  activations", lambda f: _size(f.memory.activations))
    seconds = sum(f.seconds for f in every)
    row("time", lambda f: _time(f.seconds), _time(seconds))
    if machine.device == "cuda":
        row("GPU-hours", lambda f: _hours(f.seconds * machine.processes), _hours(seconds * machine.processes))
    row("one checkpoint", lambda f: _size(f.checkpoint_bytes))
    row("  kept", lambda f: str(f.checkpoints))
    if any(f.snapshots for f in every):
        row("snapshots for mdm ema", lambda f: f"{f.snapshots} x {_size(f.snapshot_bytes)}" if f.snapshots else "–")
    if any(f.kept_emas for f in every):
        row("EMA kept along the way", lambda f: f"{f.kept_emas} x {_size(f.ema_bytes)}" if f.kept_emas else "–")
    row("storage at the end", lambda f: _size(f.storage_bytes), _size(sum(f.storage_bytes for f in every)))
    lines[0].append("in all")
    if len(every) == 1:
        lines = [line[:-1] for line in lines]
    return "\n".join([*_aligned(lines), "", *_assumptions(machine, every)])


def _assumptions(machine: Machine, found: list[Forecast]) -> list[str]:
    if machine.device == "cpu":
        time = [f"Time: at {machine.gflops:g} model GFLOP/s per CPU process, which is assumed (--gflops)."]
    else:
        peaks = {f.precision: (peak_flops(machine.gpu, f.precision) or 0) / 1e12 for f in found}
        stated = ", ".join(f"{peak:g} TFLOP/s in {precision}" for precision, peak in peaks.items())
        time = [
            f"Time: on {machine.processes} x {machine.gpu} at {machine.utilisation:.0%} of the dense peak of {stated}.",
            "  The share is assumed (--utilisation): the paper's runs come to 6-20 % of an A100's peak, the best",
            "  published trainings of diffusion U-Nets to 24-28 %; seen: 23 % of an H200's (MDM-S64, not compiled).",
        ]
    return [
        *time,
        f"FLOP: 2 per multiply-add, {TOKENS} caption tokens; training is 3 x forward, the mean over a batch.",
        "Memory: an estimate (float32 state, the batch, what autograd keeps of a micro-batch), without the allocator's",
        "  fragmentation, cuDNN's workspaces and the CUDA context.",
        "Storage: while a checkpoint is written there is one more.",
        "Not counted: a frozen text encoder, held-out losses and sample grids, waiting for data; the dataset and its",
        "  caption states on disk (mdm embed PRESET --dry-run).",
    ]


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)] for line in lines]
    return ["  ".join([line[0].ljust(widths[0]), *row[1:]]).rstrip() for line, row in zip(lines, padded, strict=True)]


def _size(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("MB", "GB"):
        count /= 1000 if unit == "GB" else 1e6
        if count < 1000:
            break
    return f"{count:,.1f} {unit}"


def _time(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:,.1f} min"
    days = f" ({seconds / 86400:,.1f} days)" if seconds >= 172_800 else ""
    return f"{seconds / 3600:,.1f} h{days}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f}" if seconds < 360_000 else f"{seconds / 3600:,.0f}"
