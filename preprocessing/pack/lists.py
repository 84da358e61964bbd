"""The list of a set: every item of its source in a fixed order, a row group for each shard, in one file per split.

Millions of items are never held at once, and any process can begin at any shard.
"""

import heapq
import json
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from preprocessing.items import Item, Place, Source, Split
from preprocessing.manifest import read_json, write_json
from preprocessing.sources.listing import hashed, none_to_train_on, too_few

SPLITS: tuple[Split, Split] = ("train", "val")
PLAN = "plan.json"  # beside the lists, written last
REMOVED = "removed since"  # the problem of an item whose sample was removed from the finished set: no more is known
COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("caption", pa.string()),
        ("url", pa.string()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("member", pa.string()),
        ("sha256", pa.string()),
        ("meta", pa.string()),
        ("problem", pa.string()),
    ]
)


def list_path(folder: Path, split: Split) -> Path:
    return folder / f"{split}.list.parquet"


def write_lists(source: Source, folder: Path, per_shard: int, least_val: int) -> dict[str, Any]:
    """Both lists and plan.json into a folder, unless they are there -> the plan.

    A source that holds out fewer than ``least_val`` items gives its next ones, by hash of their keys. Raises ValueError
    as the source does, and where too few items are left to train on.
    """
    if (plan := read_json(folder / PLAN)) is not None:
        return plan
    root = source.root()
    counts = _write(source.items(), root, folder, per_shard)
    notes = source.notes()
    if counts["val"] < least_val and counts["train"]:
        short = least_val - counts["val"]
        if counts["usable"] < short + 1:
            problems = [item.problem for item in source.items() if item.problem]
            raise too_few(str(source.root()), counts["usable"] + counts["val"], least_val, problems)
        usable = (item.key for item in source.items() if item.split == "train" and not item.problem)
        chosen = set(heapq.nsmallest(short, usable, key=hashed))
        again = (replace(item, split="val") if item.key in chosen else item for item in source.items())
        counts = _write(again, root, folder, per_shard)
        notes.append(
            f"the rule held out fewer than {least_val} samples: {short} more were chosen by hash of their keys"
        )
    if not counts["train"] + counts["val"]:
        raise ValueError("the source lists nothing")
    if least_val and not counts["train"]:
        raise none_to_train_on(str(root), counts["val"])
    plan = {
        "items": {split: counts[split] for split in SPLITS},
        "urls": counts["urls"],
        "per_shard": per_shard,
        "notes": notes,
    }
    write_json(folder / PLAN, plan)
    return plan


def _write(items: Iterable[Item], root: Path, folder: Path, per_shard: int) -> dict[str, int]:
    """How many items there are of each split; of train's, how many have no problem (``usable``); ``urls``: to fetch."""
    counts = {"train": 0, "val": 0, "usable": 0, "urls": 0}
    paths = {split: list_path(folder, split) for split in SPLITS}
    parts = {split: path.with_name(path.name + ".tmp") for split, path in paths.items()}
    waiting: dict[Split, list[dict[str, Any]]] = {"train": [], "val": []}
    try:
        with pq.ParquetWriter(parts["train"], COLUMNS) as train, pq.ParquetWriter(parts["val"], COLUMNS) as val:
            writers = {"train": train, "val": val}
            for item in items:
                rows = waiting[item.split]
                rows.append(_row(item, root))
                counts[item.split] += 1
                counts["usable"] += item.split == "train" and not item.problem
                counts["urls"] += bool(item.url) and item.place is None
                if len(rows) == per_shard:
                    writers[item.split].write_table(pa.Table.from_pylist(rows, COLUMNS))
                    rows.clear()
            for split in SPLITS:
                if waiting[split]:
                    writers[split].write_table(pa.Table.from_pylist(waiting[split], COLUMNS))
    except OSError as error:
        for part in parts.values():
            with suppress(OSError):
                part.unlink()
        where = error.filename or folder
        raise ValueError(f"{where}: {error.strerror or error}: mend that, then run the same command again") from error
    for split, path in paths.items():
        parts[split].replace(path)
    return counts


def _row(item: Item, root: Path) -> dict[str, Any]:
    place = item.place
    return {
        "key": item.key,
        "caption": item.caption,
        "url": item.url,
        "file": None if place is None else str(_below(root, place.file)),
        "offset": None if place is None else place.offset,
        "length": None if place is None else place.length,
        "member": None if place is None else place.member,
        "sha256": None if place is None else place.sha256,
        "meta": json.dumps(item.meta, sort_keys=True),
        "problem": item.problem,
    }


def _below(root: Path, file: Path) -> Path:
    """A file's path from the source's root; of what a table names elsewhere, the whole."""
    return file.relative_to(root) if file.is_relative_to(root) else file


def read_items(folder: Path, root: Path, split: Split, number: int) -> list[Item]:
    """The items of a shard; ``root``: where the source is now. Raises ValueError naming a list that cannot be read."""
    path = list_path(folder, split)
    try:
        rows = _opened(path, path.stat().st_mtime_ns, os.getpid()).read_row_group(number).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read ({error}): delete {path.parent} and run the same command") from error
    return [_item(row, root, split) for row in rows]


@lru_cache(maxsize=2)
def _opened(path: Path, mtime_ns: int, process: int) -> pq.ParquetFile:
    """Once in each process: a list's table of contents grows with its shards, and would be read for each of them."""
    return pq.ParquetFile(path)


def _item(row: dict[str, Any], root: Path, split: Split) -> Item:
    place = None
    if row["file"] is not None:
        sha256 = row.get("sha256", "")  # lists that an earlier version wrote have none
        place = Place(root / row["file"], row["offset"], row["length"], row["member"], sha256)
    return Item(row["key"], row["caption"], split, place, row["url"], json.loads(row["meta"]), row["problem"])


def count_listed(folder: Path, keys: Collection[str]) -> int:
    """How many of these keys both lists name, as far as they are written. Raises OSError or ValueError."""
    wanted = pc.field("key").isin(sorted(keys))
    paths = (list_path(folder, split) for split in SPLITS)
    return sum(pq.read_table(path, columns=["key"], filters=wanted).num_rows for path in paths if path.exists())


def shard_numbers(plan: dict[str, Any], part: tuple[int, int] = (1, 1)) -> Iterator[tuple[Split, int]]:
    """The shards of part I of N: every N-th of each split, so that the parts are alike and never overlap."""
    for split in SPLITS:
        count = -(-plan["items"][split] // plan["per_shard"])
        yield from ((split, number) for number in range(part[0] - 1, count, part[1]))


def shard_size(plan: dict[str, Any], split: Split, number: int) -> int:
    """How many items a shard's list has."""
    return min(plan["per_shard"], plan["items"][split] - number * plan["per_shard"])
