"""Batches from worker processes: their errors come out, with the cause, and nothing of them holds up the end."""

import multiprocessing
import os
import resource
import signal
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from mdm.data import workers as module
from mdm.data.batches import Batch, TrainingSet
from mdm.data.shards import Shards
from mdm.data.workers import WorkersDied, batches
from mdm.run.watch import STOPS
from small import FAKE


def load(squares: Path, batches_of_4: int = 50) -> Generator[Batch, None, None]:
    groups = [list(range(start, start + 4)) for start in range(0, 4 * batches_of_4, 4)]
    return batches(TrainingSet(Shards(squares / "train", FAKE), seed=0), groups, 2, deaf_to=STOPS)


def test_a_path_too_long_for_sockets_is_named(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("a" * 95)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delitem(multiprocessing.current_process()._config, "tempdir", raising=False)  # type: ignore[attr-defined]
    with pytest.raises(WorkersDied, match=r"AF_UNIX path too long; .*a{95} is too long a path .*: set TMPDIR"):
        next(load(squares))


def test_shared_memory_without_room_is_named(squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LITTLE_BYTES", 2**60)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    loader = load(squares)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # of files in /dev/shm too
    try:
        with pytest.raises(WorkersDied, match=r"shm|shared memory.*bytes free: make it larger"):
            next(loader)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_lost_worker_is_told_within_seconds(squares: Path) -> None:
    loader = load(squares)
    next(loader)
    begun = time.monotonic()
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"killed by (SIGKILL|signal: Killed)"):  # ours, or torch's own
        list(loader)
    assert time.monotonic() < begun + 20


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch sees that one was killed
def test_workers_are_deaf_to_stops_and_killed_last_where_they_hang(
    squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HUNG_S", 0.5)
    loader = load(squares)
    next(loader)
    children = multiprocessing.active_children()
    for child in children:
        for number in STOPS:
            os.kill(child.pid or 0, number)
    assert len(list(zip(loader, range(10), strict=False))) == 10
    os.kill(children[0].pid or 0, signal.SIGSTOP)
    begun = time.monotonic()
    loader.close()
    assert time.monotonic() < begun + 10
    deadline = time.monotonic() + 5
    while any(child.is_alive() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(child.is_alive() for child in children)
