"""What became of every item of a shard's list, in ``00000.rows.parquet`` beside it: a row each, sample or not."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.items import Split
from preprocessing.manifest import write_file
from preprocessing.pack.lists import shard_numbers, shard_size

OK = "ok"
ROWS = pa.schema(
    [
        ("key", pa.string()),
        ("place", pa.int32()),  # in the shard; -1: it makes no sample
        ("outcome", pa.string()),  # ok, or a class
        ("detail", pa.string()),
        ("url", pa.string()),
        ("final_url", pa.string()),
        ("status", pa.int32()),
        ("fetched_s", pa.float64()),  # Unix time
        ("bytes", pa.int64()),  # as it came
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("caption_chars", pa.int32()),
    ]
)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, ROWS), sink)
    write_file(path, sink.getvalue().to_pybytes())


def is_parquet(path: Path) -> bool:
    """Whether a table is there and ends as one ends."""
    try:
        pq.read_metadata(path)
    except (OSError, pa.ArrowException):
        return False
    return True


def _read(path: Path, columns: list[str] | None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise lost_rows(path, str(error)) from error


def lost_rows(path: Path, why: str) -> ValueError:
    return ValueError(
        f"{path}: {why}: what became of its items is lost. Restore it, or move {path.parents[1]} away to have the set "
        "made anew"
    )


def check_rows(folder: Path, split: Split, plan: dict[str, Any], samples: dict[str, int]) -> None:
    """Raises ValueError naming (the first of) the shards whose rows do not tell of every item that was listed, or of
    as many ``samples`` as the manifest says, by the tars' names; a shard without samples is not in it.
    """
    for number in (number for of, number in shard_numbers(plan) if of == split):
        path = folder / split / f"{number:05d}.rows.parquet"
        outcomes = _read(path, ["outcome"])["outcome"].to_pylist()
        wanted = shard_size(plan, split, number), samples.get(f"{number:05d}.tar", 0)
        if (found := (len(outcomes), outcomes.count(OK))) != wanted:
            raise lost_rows(path, "it tells of {} items and {} samples, not {} and {}".format(*found, *wanted))


def read_rows(folder: Path, columns: list[str] | None = None) -> pa.Table:
    """What became of all items of a split: the table of ``ROWS``, or the columns asked for, of all its shards."""
    tables = [_read(path, columns) for path in sorted(folder.glob("[0-9]*.rows.parquet"))]
    return pa.concat_tables(tables) if tables else ROWS.empty_table()
