"""What a training writes down: sums over a window of steps, the time of their phases, and metrics.jsonl.

Nothing here waits for a GPU while it works: sums and flags stay on the device, are copied when a window closes, and
are read when the next one does.
"""

import contextlib
import json
import os
import resource
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

KEPT_LINES = 1000  # of metrics.jsonl, in every checkpoint
PHASES = ("forward_backward", "optimizer")  # on the device; waiting for data is the host's


class Window:
    """Sums over the steps since the last metrics line."""

    def __init__(self, device: torch.device, num_levels: int) -> None:
        self.device, self.num_levels = device, num_levels
        self.row = torch.zeros(device=device, size=())  # skipped steps in a row, up to now
        self.reset()

    def reset(self) -> None:
        self.losses = torch.zeros(self.num_levels, device=self.device)  # of this process's samples; kept steps only
        self.grad_norm = torch.zeros((), device=self.device)
        self.substituted = torch.zeros((), device=self.device)
        self.longest = self.row.clone()
        self.keeps: list[Tensor] = []  # per step: 1, or 0 where it was skipped because it was not finite
        self.clock = Clock(self.device)

    def add(self, losses: Tensor, grad_norm: Tensor, keep: Tensor, substituted: int) -> None:
        """A step: this process's share of the loss per level, and what is the same on all of them."""
        kept = keep != 0
        self.losses += torch.where(kept, losses, 0)
        self.grad_norm += torch.where(kept, grad_norm, 0)
        if substituted:
            self.substituted += substituted
        self.row = torch.where(kept, 0, self.row + 1)
        self.longest = torch.maximum(self.longest, self.row)
        self.keeps.append(keep)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run writes the metrics line that it would have written."""
        sums = torch.cat([self.losses, torch.stack([self.grad_norm, self.substituted, self.longest, self.row])])
        return {"sums": sums.tolist(), "keeps": torch.stack(self.keeps).tolist() if self.keeps else []}

    def load(self, state: dict[str, Any]) -> None:
        sums = torch.tensor(state["sums"], device=self.device)
        self.losses = sums[: self.num_levels].clone()
        self.grad_norm, self.substituted, self.longest, self.row = sums[self.num_levels :].clone()
        self.keeps = list(torch.tensor(state["keeps"], device=self.device))

    def close(self, nimg: int) -> "Closed":
        """Begin to bring the sums over all processes to the host, and start anew."""
        shared = torch.cat([self.losses, self.substituted[None]])
        if dist.is_initialized():
            dist.all_reduce(shared)
        values = torch.cat([shared, torch.stack([self.grad_norm, self.longest, *self.keeps])])
        closed = Closed(nimg, self.num_levels, values, self.clock)
        self.reset()
        return closed


class Closed:
    """A window that has ended, on its way to the host."""

    def __init__(self, nimg: int, num_levels: int, values: Tensor, clock: "Clock") -> None:
        self.nimg, self.num_levels, self.clock, self.time_ms = nimg, num_levels, clock, int(time.time() * 1000)
        self._arrived = None
        if values.is_cuda:
            self._host = torch.empty(values.shape, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._host = values

    def read(self) -> "Means":
        """The numbers; waits where they have not arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values = self._host.tolist()
        losses, (substituted, norm, longest, *keeps) = values[: self.num_levels], values[self.num_levels :]
        kept = sum(keeps)
        share = 1 / kept if kept else float("nan")
        return Means(
            [loss * share for loss in losses], norm * share, int(substituted), int(longest), [k == 0 for k in keeps]
        )


class Means:
    """Per kept step: losses per level and gradient norm; per window: what was substituted and skipped."""

    def __init__(
        self, losses: list[float], grad_norm: float, substituted: int, longest_row: int, skipped: list[bool]
    ) -> None:
        self.losses, self.grad_norm, self.substituted = losses, grad_norm, substituted
        self.longest_row, self.skipped = longest_row, skipped

    def skipped_at(self, nimg: int, batch_size: int) -> list[int]:
        """The images seen when each skipped step began, of a window that ended at ``nimg``."""
        return [nimg - (len(self.skipped) - i) * batch_size for i, bad in enumerate(self.skipped) if bad]

    def line(self, resolutions: tuple[int, ...]) -> dict[str, float]:
        """As values of a metrics line: no means where every step was skipped."""
        line: dict[str, float] = {"train/skipped_steps": float(sum(self.skipped))}
        if not all(self.skipped):
            levels = {f"train/loss_{px}": loss for px, loss in zip(resolutions, self.losses, strict=True)}
            line |= {"train/loss": sum(self.losses), **levels, "train/grad_norm": self.grad_norm}
        if self.substituted:
            line["data/substituted"] = float(self.substituted)
        return line


class Clock:
    """Seconds per phase of the steps. The device's phases are timed by its own events, and read once they are past."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.steps = self.nimg = 0
        self.wall = self.data_wait = self.stall = 0.0
        self._phases = dict.fromkeys(PHASES, 0.0)
        self._events: list[tuple[str, Any, Any]] = []
        self._begun: float | None = None

    def begin_step(self) -> None:
        self._begun = self._mark = time.perf_counter()

    def got_data(self) -> None:
        """Data are there; the device's work begins."""
        now = time.perf_counter()
        self.data_wait += now - self._mark
        self._mark = now
        if self.cuda:
            self._event = self._record()

    def end_phase(self, phase: str) -> None:
        now = time.perf_counter()
        if self.cuda:
            event = self._record()
            self._events.append((phase, self._event, event))
            self._event = event
        else:
            self._phases[phase] += now - self._mark
        self._mark = now

    def end_step(self, nimg: int) -> None:
        assert self._begun is not None
        self.wall += time.perf_counter() - self._begun
        self.steps += 1
        self.nimg += nimg  # of the steps that were timed: none from before a resume

    def line(self, flop_per_image: float, peak_flops: float | None) -> dict[str, float]:
        """Means per step, rates, and how well the devices were used."""
        if not self.steps or not self.wall:
            return {}
        phases = dict(self._phases)
        for phase, begin, end in self._events:
            phases[phase] += begin.elapsed_time(end) / 1000
        rate = self.nimg / self.wall
        line = {"speed/images_per_s": rate, "speed/step_s": self.wall / self.steps}
        line |= {"speed/data_wait_s": self.data_wait / self.steps}
        line |= {f"speed/{phase}_s": seconds / self.steps for phase, seconds in phases.items()}
        line |= {"speed/checkpoint_stall_s": self.stall / self.steps, "speed/tflops": rate * flop_per_image / 1e12}
        if peak_flops:
            line["speed/mfu"] = rate * flop_per_image / peak_flops
        return line

    def _record(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class SystemMetrics:
    """What MLflow shows as system metrics of rank 0's process and device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._wall, self._cpu = time.monotonic(), _cpu_seconds()

    def line(self) -> dict[str, float]:
        wall, cpu = time.monotonic(), _cpu_seconds()
        share = (cpu - self._cpu) / max(wall - self._wall, 1e-9)
        self._wall, self._cpu = wall, cpu
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        line = {"system/process_cpu_percentage": 100 * share, "system/peak_memory_megabytes": peak_kb / 1024}
        if self.device.type == "cuda":  # counters of the allocator: nothing waits for the GPU
            line["system/gpu_peak_memory_megabytes"] = torch.cuda.max_memory_allocated(self.device) / 2**20
            line["system/gpu_reserved_memory_megabytes"] = torch.cuda.max_memory_reserved(self.device) / 2**20
        return line


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class MetricsFile:
    """metrics.jsonl, append only. After a resume, points that are already there are not written a second time.

    ``kept``: the last lines as the checkpoint has them that the run goes on from. Those that the file has lost, as a
    disk may that had not written them when the power went, are appended again. A line that finds no room on the disk
    waits in memory for the next one.
    """

    def __init__(self, path: Path, kept: Iterable[str] = ()) -> None:
        self.path = path
        self.seen: set[tuple[int, int, str]] = set()
        self.last: deque[str] = deque(maxlen=KEPT_LINES)
        self.waiting = ""
        if path.exists():
            whole = path.read_bytes()
            whole = whole[: whole.rfind(b"\n") + 1]  # a kill can tear the last line
            os.truncate(path, len(whole))
            for written in whole.splitlines():
                self._note(json.loads(written))
        for line in kept:
            self._add(json.loads(line))

    def append(self, nimg: int, attempt: int, returns: int, time_ms: int, values: dict[str, float]) -> None:
        """One line; its time stamp is the one that every point of it keeps for ever.

        ``returns``: how often the run went back to a checkpoint; what comes after that is written although the same
        count of images was there before. Raises OSError where the file cannot be written.
        """
        self._add({"nimg": nimg, "time_ms": time_ms, "attempt": attempt, "returns": returns, "values": values})
        self.flush()

    def flush(self) -> None:
        """Write what waits. Raises OSError as well."""
        if self.waiting:
            size = self.path.stat().st_size if self.path.exists() else 0
            try:
                with self.path.open("a") as file:
                    file.write(self.waiting)
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(self.path, size)  # no half line in front of the next try
                raise
            self.waiting = ""

    def _add(self, point: dict[str, Any]) -> None:
        """What of it is new waits to be written."""
        key = point["returns"], point["nimg"]
        new = {name: value for name, value in point["values"].items() if (*key, name) not in self.seen}
        if new:
            self.waiting += self._note({**point, "values": new}) + "\n"

    def _note(self, point: dict[str, Any]) -> str:
        self.seen |= {(point["returns"], point["nimg"], name) for name in point["values"]}
        self.last.append(json.dumps(point))
        return self.last[-1]


def crossed(nimg: int, batch_size: int, every: int) -> bool:
    """Whether the last step went past a multiple of ``every``."""
    return nimg // every > (nimg - batch_size) // every
