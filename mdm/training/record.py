"""What a trainer writes into its run folder beside checkpoints: config.json, metrics.jsonl, evidence, its log.

Only rank 0 writes. A full disk must not end the training: what could not be written is said, loudly.
"""

import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor
from tqdm import tqdm

from mdm.files import load_json, write_json
from mdm.network.costs import model_flops_per_image, peak_flops
from mdm.run.attempts import Attempt
from mdm.run.checkpoint import save_ema
from mdm.run.grace import Pace
from mdm.run.job import Job, resolved
from mdm.training.compute import DTYPE_NAMES
from mdm.training.metrics import Closed, Means, MetricsFile, SystemMetrics
from mdm.training.posthoc import write_snapshot


class Record:
    """``mine``: this attempt on rank 0, None on the others, where everything is silent."""

    def __init__(self, run: Path, mine: Attempt | None) -> None:
        self.run, self.mine = run, mine

    def open(self, job: Job, device: torch.device, dtype: torch.dtype, world: int, kept: Iterable[str] = ()) -> None:
        """Write config.json; from now on there are metrics. ``kept``: lines of them that a checkpoint has."""
        if self.mine is None:
            return
        self.job, path = job, self.run / "config.json"
        known = None
        with contextlib.suppress(ValueError, AttributeError):  # counted again: it only saves a second
            known = load_json(path).get("flop_per_image")
        self.flop_per_image = known or model_flops_per_image(job.model, job.training)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        peak = peak_flops(name, DTYPE_NAMES[dtype])
        self.peak_flops = peak and peak * world
        with self.may_fail("config.json"):
            write_json(path, {**resolved(job, device, world), "flop_per_image": self.flop_per_image})
        self.metrics, self.system = MetricsFile(self.run / "metrics.jsonl", kept), SystemMetrics(device)
        with self.may_fail("metrics"):
            self.metrics.flush()

    def bar(self, job: Job, nimg: int) -> tqdm:
        """How far the training is, where somebody watches a terminal."""
        return tqdm(
            total=job.training.nimg,
            initial=nimg,
            unit="img",
            desc=f"train {'/'.join(map(str, job.model.resolutions))} px",
            disable=self.mine is None or not sys.stderr.isatty(),
        )

    def log(self, nimg: int, values: dict[str, float], returns: int, time_ms: int = 0) -> None:
        """A metrics line. Raises Fenced where a newer attempt owns the folder."""
        if self.mine is None:
            return
        self.mine.check()
        with self.may_fail("metrics"):
            self.metrics.append(nimg, self.mine.number, returns, time_ms or int(time.time() * 1000), values)

    def window(self, closed: Closed, means: Means, captions_cut: int | None, returns: int) -> None:
        """The line of a window of steps, and one for people where no progress bar is."""
        if self.mine is None:
            return
        job, training = self.job, self.job.training
        line = means.line(job.model.resolutions) | {"lr": training.lr_at(closed.nimg - training.batch_size)}
        if captions_cut is not None:  # stored embeddings have their count in their manifest
            line |= {"data/captions_cut": float(captions_cut)}  # of rank 0, since it started
        line |= closed.clock.line(self.flop_per_image, self.peak_flops) | self.system.line()
        self.log(closed.nimg, line, returns, closed.time_ms)
        if not sys.stderr.isatty():
            rate, loss = line.get("speed/images_per_s", float("nan")), line.get("train/loss", float("nan"))
            self.say(f"{closed.nimg:,}/{training.nimg:,} images, loss {loss:.4f}, {rate:.1f} images/s")

    def snapshot(self, nimg: int, averages: Mapping[float, Mapping[str, Tensor]]) -> None:
        """The power-function averages, from which an EMA of another length can be rebuilt (posthoc.py)."""
        if self.mine is not None:
            with self.may_fail("snapshot"):
                write_snapshot(self.run, nimg, self.job.model, averages, self.mine.number, self.mine.check)

    def kept_ema(self, nimg: int, ema: Mapping[str, Tensor]) -> None:
        """The EMA alone, which no pruning takes: a point of a curve along the training."""
        if self.mine is not None:
            with self.may_fail("kept EMA"):
                save_ema(self.run, nimg, self.job.model, ema, self.mine.number, self.mine.check)

    def pace(self, pace: Pace) -> None:
        """How long a step and a checkpoint take, for those who would stop this training (grace.json)."""
        if self.mine is not None:
            with self.may_fail("grace.json"):
                pace.note(self.run)

    def evidence(self, nimg: int, position: int, samples: list[int]) -> None:
        """A line in nonfinite.jsonl for a skipped step: with the checkpoint before it, enough to do it again."""
        if self.mine is not None:
            with self.may_fail("evidence"), (self.run / "nonfinite.jsonl").open("a") as file:
                file.write(json.dumps({"nimg": nimg, "position": position, "samples": samples}) + "\n")

    @contextlib.contextmanager
    def may_fail(self, what: str) -> Iterator[None]:
        """Around writing something that the training can do without."""
        try:
            yield
        except OSError as error:
            self.say(f"{what.upper()} NOT WRITTEN: {error}. Training goes on")

    def say(self, line: str) -> None:
        """A line of the log."""
        if self.mine is not None:
            say(line)


def say(line: str, stream: TextIO | None = None) -> None:
    """A line of the log of any process, or nothing where there is no room for it, or no terminal any more."""
    with contextlib.suppress(OSError):
        print(line, file=stream or sys.stdout, flush=True)
