"""Whether a shard costs the same in a set of 10 and of 10,000, and how long a rerun over finished shards takes.

    python -m benchmarks.data_scale [--rounds 1]

Shards of one tiny picture each. One is packed, the others are copies of its files with markers of their own. ``read the
list``: a shard's items. ``look``: is the shard finished. ``finish``: manifests and card.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import Row, rounds_asked, show
from flows.datasets.making import PIXELS, Opened, make_set
from preprocessing.cards.card import write_card
from preprocessing.catalogue import DataSet, Options
from preprocessing.items import Item, Place
from preprocessing.manifest import digest, read_json, write_json
from preprocessing.pack.images import encode_png
from preprocessing.pack.lists import read_items, shard_numbers, write_lists
from preprocessing.pack.making import finish_set, missing_shards
from preprocessing.pack.shards import Shard, Tier, pack_shard
from preprocessing.sets import RECIPE

FEW, MANY = 10, 10_000
FLAT, RERUN_S = 1.5, 10.0  # a shard among many to one among few; all of a rerun
READ = 200  # shards whose items are read


@dataclass(frozen=True)
class Dots:
    """One picture, under as many keys as are asked for."""

    file: Path
    count: int

    def fingerprint(self) -> dict[str, Any]:
        return {"dots": self.count}

    def items(self) -> Iterator[Item]:
        for i in range(self.count):
            yield Item(f"{i:06d}", "a dot", place=Place(self.file), url=f"https://example.org/dots/{i:06d}.png")

    def root(self) -> Path:
        return self.file.parent

    def notes(self) -> list[str]:
        return []


def row(file: Path, count: int) -> DataSet:
    return DataSet(
        name="dots",
        summary="",
        open=lambda path, options: Dots(file, count),
        tiers=(Tier(16, "png"),),
        per_shard=1,
        least_val=0,
        licence="CC0-1.0",
        credit="",
        terms="",
    )


def timed(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def costs(file: Path, count: int) -> tuple[dict[str, float], float]:
    """CPU seconds per shard of each step, and seconds of a rerun."""
    dots = row(file, count)
    opened = Opened(dots, Dots(file, count), dots.recipe(Dots(file, count), Options()), Options())
    folder, recipe, lists = opened.folder, opened.recipe, opened.folder / "lists"
    lists.mkdir(parents=True)
    steps = {"list": timed(lambda: write_lists(opened.source, lists, 1, 0))}
    plan = read_json(lists / "plan.json") or {}
    numbers = list(shard_numbers(plan))[:: max(1, count // READ)]
    read_items(lists, file.parent, *numbers[0])  # once in a process: it opens the list
    steps["read the list"] = timed(lambda: [read_items(lists, file.parent, *n) for n in numbers]) * count / len(numbers)
    _fill(folder, recipe, lists, file, plan)
    steps["look"] = timed(lambda: missing_shards(folder, plan, recipe))
    steps["finish"] = timed(lambda: (finish_set(folder, plan, recipe, dots.manifest_terms), write_card(folder, {})))
    write_json(folder / RECIPE, {"options": {}, "finished_s": time.time()})
    began = time.perf_counter()
    assert make_set(opened, lambda *_: None, print) == folder
    rerun = time.perf_counter() - began
    shutil.rmtree(folder)
    return {step: seconds / count for step, seconds in steps.items()}, rerun


def measure(rounds: int) -> list[Row]:
    found: dict[str, dict[int, list[float]]] = {}
    reruns = []
    with tempfile.TemporaryDirectory() as name:
        os.environ["MDM_HOME"] = name
        file = Path(name) / "dot.png"
        file.write_bytes(encode_png(np.zeros((16, 16, 3), np.uint8)))
        costs(file, FEW)  # warms up
        for _ in range(rounds):
            for count in (FEW, MANY):
                steps, rerun = costs(file, count)
                for step, seconds in steps.items():
                    found.setdefault(step, {}).setdefault(count, []).append(1e3 * seconds)
            reruns.append(rerun)
    rows = []
    for step, by_count in found.items():
        ratios = [many / few for few, many in zip(by_count[FEW], by_count[MANY], strict=True)]
        rows.append(Row("cost per shard", f"{step}, of {MANY:,}", by_count[MANY], "ms"))
        rows.append(Row("", f"{step}, of {MANY:,} to of {FEW}", ratios, "times", most=FLAT))
    return [*rows, Row("rerun", f"`make_set` over {MANY:,} finished shards", reruns, "s", most=RERUN_S)]


def _fill(folder: Path, recipe: Any, lists: Path, file: Path, plan: dict[str, Any]) -> None:
    """All shards: the first as it is made, the others with its bytes."""
    (folder / "train").mkdir()
    (folder / "val").mkdir()
    first, *others = (Shard(folder, recipe, *number) for number in shard_numbers(plan))
    pack_shard(first, lists, file.parent, PIXELS)
    (tar,) = first.paths.values()
    contents = {suffix: tar.with_suffix(suffix).read_bytes() for suffix in (".tar", ".idx.npy", ".rows.parquet")}
    marker = read_json(tar.with_suffix(".done.json")) or {}
    for shard in others:
        (path,) = shard.paths.values()
        for suffix, data in contents.items():
            path.with_suffix(suffix).write_bytes(data)
        entry = {**marker["shard"], "file": path.name}
        text = digest([recipe.digest, shard.split, shard.number])
        path.with_suffix(".done.json").write_text(json.dumps({**marker, "inputs": text, "shard": entry}, indent=1))


if __name__ == "__main__":
    show(measure(rounds_asked(__doc__, 1)))
