"""What a set's lists and rows say of samples that were removed from it: captions, addresses and files, blanked.

Their keys stay, at their places, and so do digests and sizes: the card counts by them, and who is left out of later
sets is known by them. A shard that is lost later is made again without these samples (preprocessing/pack/shards.py).
"""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from preprocessing.manifest import read_json, read_manifest, unwritable
from preprocessing.pack.lists import REMOVED, SPLITS, list_path
from preprocessing.remove import removed_keys
from preprocessing.sets import DROPPED

LISTED: dict[str, Any] = {
    **{"caption": "", "url": "", "meta": "{}", "problem": REMOVED},
    **dict.fromkeys(("file", "offset", "length", "member", "sha256")),
}
ROW: dict[str, Any] = {"url": "", "final_url": "", "detail": ""}


def forget(folder: Path) -> None:
    """Of a finished set whose removals are carried out. Again: it changes nothing. Raises ValueError naming a file
    that cannot be read or written.
    """
    dropped = set((read_json(folder / DROPPED) or {"keys": []})["keys"])  # no removals: another set may have them
    for split in SPLITS:
        keys = removed_keys(folder / split) - dropped
        shards = [shard for shard in read_manifest(folder / split)["shards"] if shard.get("removed")]
        rows = [(folder / split / shard["file"]).with_suffix(".rows.parquet") for shard in shards]
        for path in (list_path(folder / "lists", split), *rows):
            if keys and path.exists():  # an earlier version kept none
                _blank(path, keys, ROW if path in rows else LISTED)


def _blank(path: Path, keys: Collection[str], blank: dict[str, Any]) -> None:
    """Group by group: a list of millions is never held at once. It is there as before or as it is to be."""
    try:
        with pq.ParquetFile(path) as file:
            told = [name for name in blank if name in file.schema_arrow.names]
            if not any(_blanked(_group(file, i, ["key", *told]), keys, blank)[1] for i in range(file.num_row_groups)):
                return
            temporary = path.with_name(path.name + ".tmp")
            with temporary.open("wb") as sink:
                with pq.ParquetWriter(sink, file.schema_arrow) as writer:
                    for number in range(file.num_row_groups):
                        writer.write_table(_blanked(_group(file, number), keys, blank)[0])
                sink.flush()
                os.fsync(sink.fileno())
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    except pa.ArrowException as error:
        raise ValueError(
            f"{path} cannot be read ({error}): it may name what was removed; restore or delete it"
        ) from error


def _group(file: pq.ParquetFile, number: int, columns: list[str] | None = None) -> pa.Table:
    return file.read_row_group(number, columns)


def _blanked(table: pa.Table, keys: Collection[str], blank: dict[str, Any]) -> tuple[pa.Table, bool]:
    """The table without what is to be forgotten, and whether that is another one."""
    gone, before = pc.is_in(table["key"], value_set=pa.array(sorted(keys), pa.string())), table
    for name, value in blank.items():
        if name in table.column_names:
            kind = table.schema.field(name).type
            column = pc.if_else(gone, pa.scalar(value, kind), table[name])
            table = table.set_column(table.column_names.index(name), table.schema.field(name), column)
    return table, not table.equals(before)
