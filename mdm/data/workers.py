"""Batches decoded ahead by worker processes: torch's DataLoader, and what it leaves to be done.

An error of a worker reaches the trainer with its cause when its batch is due, instead of never: what goes wrong while a
batch is handed over (no room in /dev/shm, a TMPDIR too long for a socket) would be lost in a thread of the worker. And
signals are the trainer's affair: they reach the whole group, and a worker that obeyed them would take the training
along before it has saved.
"""

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Collection, Generator, Iterable, Iterator
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset, get_worker_info

from mdm.data.batches import Batch, TrainingSet

HUNG_S = 3.0  # that a worker gets to end when the batches are no longer wanted
SHARED = Path("/dev/shm")  # through it batches are handed over
LITTLE_BYTES = 64 * 2**20  # of room there
LONG_PATH = 80  # letters of a TMPDIR; a socket's whole path may have 107


class WorkersDied(RuntimeError):
    """Worker processes could not be started, or were lost."""


def batches(
    data: TrainingSet,
    groups: Iterable[list[int]],
    workers: int,
    pin: bool = False,
    deaf_to: Collection[signal.Signals] = (),
) -> Generator[Batch, None, None]:
    """Batches for given groups of positions, in order, decoded ahead by worker processes (0: in this one).

    ``pin``: in page-locked memory, for copies to a GPU. ``deaf_to``: signals that the workers do not obey. Raises what
    ``data`` raises, when its batch is due, and WorkersDied. Close it to end the workers.
    """
    loader = DataLoader(
        _Quiet(data),
        batch_sampler=groups,
        collate_fn=_packed if workers else _whole,
        num_workers=workers,
        pin_memory=pin,
    )
    before = set(multiprocessing.active_children())
    iterator = _start(loader, deaf_to)
    started = set(multiprocessing.active_children()) - before
    try:
        while True:
            try:
                batch = next(iterator)
                if isinstance(batch, _Packed):
                    batch = batch.unpacked()
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:  # what ``data`` raises comes as a value
                if not workers:
                    raise
                broken = wait([process.sentinel for process in started], 1.0)
                for process in started:
                    if process.sentinel in broken:  # its pipe breaks before its end is known
                        process.join(5.0)
                codes = {process.name: process.exitcode or 0 for process in started}
                killed = [f"{name} was killed by {_name(-code)}" for name, code in codes.items() if code < 0]
                raise WorkersDied(_cause(error, killed)) from error
            if isinstance(batch, Exception):
                raise batch
            yield batch
    finally:
        # Signals do not end them: one that hangs, as its file system does, must not hold up the end of the training.
        killer = threading.Timer(HUNG_S, _kill, [started])
        killer.daemon = True
        killer.start()
        del iterator


def _start(loader: Any, deaf_to: Collection[signal.Signals]) -> Iterator[Any]:
    """Start the workers, which inherit the mask of signals."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, deaf_to)
    try:
        return iter(loader)
    except OSError as error:
        raise WorkersDied(_cause(error)) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _cause(error: Exception, killed: Iterable[str] = ()) -> str:
    """The error, and what of the machine it comes from, where that can be seen."""
    lines = [f"data workers: {str(error) or type(error).__name__}", *killed]
    if SHARED.is_dir():
        room = os.statvfs(SHARED)
        if (free := room.f_bavail * room.f_frsize) < LITTLE_BYTES:
            lines.append(f"{SHARED} has {free:,} bytes free: make it larger (docker run --shm-size=1g)")
    if len(folder := tempfile.gettempdir()) > LONG_PATH:
        lines.append(f"{folder} is too long a path for sockets: set TMPDIR to a shorter one")
    return "; ".join(lines) + " (it goes without them: data_workers 0 in job.json, hardware.data_workers of a preset)"


class _Packed:
    """A batch or an error on its way out of a worker, pickled there, where it can still be told what went wrong."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def unpacked(self) -> Batch | Exception:
        return ForkingPickler.loads(self.content)

    def pin_memory(self) -> Batch | Exception:
        """What DataLoader calls in a thread beside the training: the batch in page-locked memory."""
        batch = self.unpacked()
        return batch.pin_memory() if isinstance(batch, Batch) else batch


class _Quiet(Dataset[Batch | Exception]):
    """Errors as values: raised in a worker process they would come out with its whole traceback as their message."""

    def __init__(self, data: TrainingSet) -> None:
        self.data = data

    def __getitems__(self, positions: list[int]) -> Batch | Exception:  # DataLoader asks for a batch at once
        try:
            return self.data.batch(positions)
        except (ValueError, OSError) as error:
            return error
        except RuntimeError as error:  # a worker's, where it gets no shared memory
            if get_worker_info() is None:
                raise
            return WorkersDied(_cause(error))


def _whole(batch: Any) -> Any:
    return batch


def _kill(processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        process.kill()


def _packed(batch: Any) -> _Packed:
    try:
        return _Packed(bytes(ForkingPickler.dumps(batch)))
    except (OSError, RuntimeError) as error:  # of sockets, of shared memory
        return _Packed(bytes(ForkingPickler.dumps(WorkersDied(_cause(error)))))
