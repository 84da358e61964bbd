import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from drawn import PIXELS, Drawn, recipe
from preprocessing.manifest import make_folder
from preprocessing.pack import making, tally
from preprocessing.pack.lists import write_lists
from preprocessing.pack.making import make_shards
from preprocessing.pack.tally import Tally, count_for
from preprocessing.sources.openmoji import OpenMoji

DOZEN = OpenMoji(limit=12, val_fraction=0.0)


class Threads(ThreadPoolExecutor):
    """Stands for the pool of processes, which take seconds to start."""

    def __init__(self, workers: int, mp_context: Any, initializer: Any, initargs: tuple[Any, ...]) -> None:
        count_for(*initargs)
        super().__init__(workers)


def test_progress_moves_and_says_its_yield_before_the_first_shard_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "ProcessPoolExecutor", Threads)
    monkeypatch.setattr(making, "LOOK_S", 0.01)
    monkeypatch.setattr(tally, "_packed", None)
    told: list[tuple[int, str]] = []
    moved, read = threading.Event(), 0

    def progress(done: int, of_use: str) -> None:
        told.append((done, of_use))
        if done == 4:
            moved.set()

    def read_rgb(data: bytes) -> NDArray[np.uint8]:
        nonlocal read
        read += 1
        if read == 2:
            raise ValueError("it is no picture")
        assert read < 5 or moved.wait(20), "nothing was told of the first four"
        return PIXELS.read_rgb(data)

    source = Drawn(DOZEN, tmp_path / "drawn", 16)
    make_folder(tmp_path / "lists")
    wanted = recipe(source, per_shard=12)
    plan = write_lists(source, tmp_path / "lists", 12, least_val=0)
    pixels = replace(PIXELS, read_rgb=read_rgb)
    make_shards(tmp_path, tmp_path / "lists", tmp_path / "drawn", plan, wanted, pixels, 1, progress)
    assert told[0] == (0, "") and told[-1] == (12, "92% usable")
    assert [done for done, _ in told] == sorted(done for done, _ in told) and (4, "75% usable") in told


def test_what_is_asked_twice_counts_once_and_what_was_there_is_part_of_the_yield() -> None:
    told: list[tuple[int, str]] = []
    counted = Tally(lambda done, of_use: told.append((done, of_use)), web=True)
    counted.there, counted.there_usable, counted.missing = 100, 50, 40
    counted.tell()
    counted.add_asked(20, 20)
    counted.made, counted.made_usable = 10, 0
    counted.add_asked(30, 20)  # ten of them again
    assert told == [(100, "50% alive"), (120, "58% alive"), (140, "60% alive")]
