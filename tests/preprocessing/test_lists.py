"""Lists of items: what a shard costs does not grow with the set."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from preprocessing.items import Item
from preprocessing.pack.lists import PLAN, read_items, write_lists


@dataclass
class Numbers:
    captions: str

    def fingerprint(self) -> dict[str, Any]:
        return {}

    def items(self) -> Iterator[Item]:
        yield from (Item(f"{i}", f"{self.captions} {i}", url="https://example.org") for i in range(6))

    def root(self) -> Path:
        return Path()

    def notes(self) -> list[str]:
        return []


def test_a_list_is_opened_once_for_all_its_shards_and_again_when_it_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    plain = pq.ParquetFile

    def counting(path: Path) -> pq.ParquetFile:
        opened.append(path)
        return plain(path)

    monkeypatch.setattr(pq, "ParquetFile", counting)
    for captions in ("first", "second"):
        (tmp_path / PLAN).unlink(missing_ok=True)
        write_lists(Numbers(captions), tmp_path, per_shard=2, least_val=0)
        found = [item.caption for number in range(3) for item in read_items(tmp_path, Path(), "train", number)]
        assert found == [f"{captions} {i}" for i in range(6)]
    assert len(opened) == 2
