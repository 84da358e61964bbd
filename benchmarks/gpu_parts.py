"""What gpu_check.py's sections share: what one found, a training step, and small runs."""

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "evaluation"), str(Path(__file__).parent)]

from benchmarks.kill_and_resume import launch  # noqa: E402
from mdm.config import Sampling  # noqa: E402
from mdm.diffusion.process import Process  # noqa: E402
from mdm.files import write_json  # noqa: E402
from mdm.network.costs import empty_condition  # noqa: E402
from mdm.run.job import Job  # noqa: E402
from mdm.stage import Stage  # noqa: E402
from mdm.structure import to_dict  # noqa: E402
from mdm.training.compute import pick_dtype  # noqa: E402
from mdm.training.state import State  # noqa: E402
from small import small_job, write_dataset  # noqa: E402

CPU_BATCH, STEPS, DRAWN_STEPS = 8, 10, 8  # images at a time on a CPU; steps that are timed, or drawn in


@dataclass
class Section:
    """What one check found."""

    title: str
    passed: bool = True
    lines: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        """A line, printed at once: sections take minutes."""
        self.lines.append(line)
        print(line, flush=True)

    def table(self, *columns: str) -> None:
        self.row(*columns)
        self.row(*("---" for _ in columns))

    def row(self, *cells: object) -> None:
        self.say(f"| {' | '.join(map(str, cells))} |")

    @property
    def verdict(self) -> str:
        return "passed" if self.passed else "FAILED"


class Step:
    """A training step of a stage on made-up data in one process: loss, gradients, and the trainer's own update."""

    def __init__(self, stage: Stage, batch: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.stage, self.device, self.dtype = stage, device, pick_dtype(stage.compute.precision, device)
        self.process = Process.of(stage.model)
        nowhere = {"train_data": "", "val_data": "", "text": None, "sampling": Sampling()}
        job = Job(model=stage.model, training=stage.training, compute=stage.compute, **nowhere)  # type: ignore[arg-type]
        self.state = State(job, device, self.dtype)
        tops = (
            sum(stage.training.carries_top(place) for place in range(batch)) if len(stage.model.levels) > 1 else batch
        )
        px = stage.model.resolutions[-1]
        self.images = torch.rand(batch, 3, px, px, device=device) * 2 - 1
        self.sizes = [batch] * (len(stage.model.levels) - 1) + [max(1, tops)]
        self.condition = {name: value.to(device) for name, value in empty_condition(stage.model, batch).items()}
        if stage.model.text:
            self.condition["text"] = torch.randn_like(self.condition["text"])
        self.times = self.process.times(torch.rand(batch, device=device))

    def __call__(self) -> Tensor:
        """-> the loss, on the device."""
        xs = [x[:size] for x, size in zip(self.process.downsample(self.images), self.sizes, strict=True)]
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            losses = self.process.loss(
                lambda zs, t: self.state.spread.model(zs, t, **self.condition),
                xs,
                [torch.randn_like(x) for x in xs],
                self.times,
                self.stage.training.loss,
            )
        means = torch.stack([level.mean() for level in losses])
        loss = means.sum()
        self.state.scaler.scale(loss).backward()
        self.state.step(means.detach(), 0)
        return loss.detach()


@contextlib.contextmanager
def small_runs(device: str) -> Iterator[Callable[..., Path]]:
    """A data set of squares, and a maker of run folders on it; all gone at the end."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for split, count in (("train", 40), ("val", 9)):
            write_dataset(root / "data", split, count, 32)

        def prepare(name: str, **changes: object) -> Path:
            job = replace(small_job(root / "data", precision="float32", **changes), device=device)
            (run := root / name).mkdir()
            write_json(run / "job.json", to_dict(job))
            return run

        yield prepare


def run_to_end(run: Path, count: int) -> dict[tuple[int, str], float]:
    """Train in so many processes -> the losses of metrics.jsonl by images seen and name."""
    if launch(run, count).wait() != 0:
        raise RuntimeError(f"{count} processes on {run.name}:\n{(run / 'log.txt').read_text()[-1500:]}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        (line["nimg"], name): value
        for line in lines
        for name, value in line["values"].items()
        if name.startswith(("train/loss", "val/loss"))
    }


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
