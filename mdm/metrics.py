"""What a training writes down: sums over a window of steps, and metrics.jsonl."""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Window:
    """Sums since the last metrics line, kept on the device until they are read."""

    def __init__(self, device: torch.device, num_levels: int) -> None:
        self.device, self.num_levels = device, num_levels
        self.reset()

    def reset(self) -> None:
        self.sums = torch.zeros(self.num_levels + 1, device=self.device)
        self.steps = self.nimg = 0
        self.seconds = self.data_s = 0.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run writes the metrics line that it would have written."""
        return {"sums": self.sums.tolist(), "steps": self.steps}

    def load(self, state: dict[str, Any]) -> None:
        self.sums = torch.tensor(state["sums"], device=self.device)
        self.steps = state["steps"]

    def begin_step(self) -> None:
        self.mark = self.begun = time.perf_counter()

    def got_data(self) -> None:
        self.data_s += time.perf_counter() - self.mark

    def add_losses(self, losses: list[Tensor], share: float) -> None:
        self.sums[:-1] += torch.stack(losses) * share
        self.mark = time.perf_counter()

    def end_step(self, grad_norm: Tensor, nimg: int) -> None:
        self.sums[-1] += grad_norm
        self.steps += 1
        self.nimg += nimg  # of the steps that were timed: none from before a resume
        self.seconds += time.perf_counter() - self.begun

    def read(self, resolutions: tuple[int, ...], world: int) -> dict[str, float]:
        """Means over the window and all ranks."""
        if world > 1:
            dist.all_reduce(self.sums)
            self.sums /= world
        values = (self.sums / self.steps).tolist()
        levels = {f"train/loss_{px}": value for px, value in zip(resolutions, values, strict=False)}
        return {
            "train/loss": sum(levels.values()),
            **levels,
            "train/grad_norm": values[-1],
            "speed/images_per_s": self.nimg / self.seconds,
            "speed/data_wait": self.data_s / self.seconds,
        }


class MetricsFile:
    """metrics.jsonl, append only. After a resume, counts that are already there are not written a second time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: set[tuple[int, str]] = set()
        if path.exists():
            whole = path.read_bytes()
            whole = whole[: whole.rfind(b"\n") + 1]  # a kill can tear the last line
            os.truncate(path, len(whole))
            for line in whole.splitlines():
                point = json.loads(line)
                self.seen |= {(point["nimg"], name) for name in point["values"]}

    def append(self, nimg: int, attempt: int, values: dict[str, float]) -> None:
        """One line; its time stamp is the one that every point of it keeps for ever."""
        new = {name: value for name, value in values.items() if (nimg, name) not in self.seen}
        if new:
            self.seen |= {(nimg, name) for name in new}
            point = {"nimg": nimg, "time_ms": int(time.time() * 1000), "attempt": attempt, "values": new}
            with self.path.open("a") as file:
                file.write(json.dumps(point) + "\n")


def crossed(nimg: int, batch_size: int, every: int) -> bool:
    """Whether the last step went past a multiple of ``every``."""
    return nimg // every > (nimg - batch_size) // every
