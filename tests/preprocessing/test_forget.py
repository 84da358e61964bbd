"""What was removed is named by nothing that stays in its set, and comes back by no repair."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from drawn import PIXELS, Drawn, Inline, recipe
from preprocessing import forget as forgetting
from preprocessing.forget import forget
from preprocessing.items import Item
from preprocessing.manifest import make_folder, read_json
from preprocessing.pack import making
from preprocessing.pack.lists import read_items, write_lists
from preprocessing.pack.making import finish_set, make_shards
from preprocessing.pack.rows import read_rows
from preprocessing.pack.shards import Recipe, Tier
from preprocessing.remove import remove
from preprocessing.sets import folders_of
from preprocessing.sources.openmoji import OpenMoji
from preprocessing.verify import verify_set

DOZEN = OpenMoji(limit=12, val_fraction=0.2)
GONE = DOZEN.split("train")[1]


class Addressed(Drawn):
    """Drawings that have an address, though they are taken from here."""

    def items(self) -> Iterator[Item]:
        return (replace(item, url=f"https://example.org/of-{item.key}") for item in super().items())


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "ProcessPoolExecutor", Inline)


def source_of(folder: Path) -> Addressed:
    return Addressed(DOZEN, folder / "drawn", 16)


def wanted(folder: Path) -> Recipe:
    return recipe(source_of(folder), tiers=(Tier(8, "png"), Tier(0)))


def make(folder: Path) -> Path:
    """The set, or what it lacks."""
    made, source = folder / "set", source_of(folder)
    make_folder(made / "lists")
    plan = write_lists(source, made / "lists", 4, least_val=0)
    make_shards(made, made / "lists", source.root(), plan, wanted(folder), PIXELS, 1)
    finish_set(made, plan, wanted(folder), {"licence": "", "credit": ""})
    return made


@pytest.fixture
def cleared(tmp_path: Path) -> Path:
    """A set whose sample GONE was removed; nobody has its picture any more."""
    folder = make(tmp_path)
    for part in folders_of(folder):
        if part.parent.name == "train" or part.name == "train":
            remove(part, {GONE.key})
    forget(folder)
    (tmp_path / "drawn" / f"{GONE.key}.png").unlink()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".rows.parquet"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_lists_and_rows_name_its_key_alone(cleared: Path, tmp_path: Path) -> None:
    tables = [pq.read_table(path).to_pylist() for path in sorted(cleared.rglob("*.parquet"))]
    assert len(tables) == 2 + len(list(cleared.glob("*/[0-9]*.tar")))
    told = [row for table in tables for row in table if GONE.key in str(row)]
    assert len(told) == 2 and all(row["key"] == GONE.key for row in told)
    assert not any(word in str({**row, "key": ""}) for row in told for word in (GONE.caption, "example.org", GONE.key))
    others = [item for number in range(3) for item in read_items(cleared / "lists", tmp_path, "train", number)]
    assert all(item.caption and item.url and item.place for item in others if item.key != GONE.key)
    assert set(read_rows(cleared / "train", ["outcome"])["outcome"].to_pylist()) == {"ok"}
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in cleared.rglob("*") if path.is_file()}
    forget(cleared)
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before}
    verify_set(cleared)


@pytest.mark.parametrize("lost", [("00000.tar",), ("00000.rows.parquet",), ("originals/00000.tar", "manifest.json")])
def test_a_lost_shard_is_made_again_without_it(cleared: Path, tmp_path: Path, lost: tuple[str, ...]) -> None:
    before = contents(cleared)
    for name in lost:
        (cleared / "train" / name).unlink()
    make(tmp_path)
    assert contents(cleared) == before
    verify_set(cleared)


def test_what_nothing_tells_of_any_more_is_not_made_up(cleared: Path, tmp_path: Path) -> None:
    for name in ("manifest.json", "00000.done.json"):
        (cleared / "train" / name).unlink()
    with pytest.raises(ValueError, match=r"00000.tar is lost, samples were removed from it, and no manifest or marker"):
        make(tmp_path)


def test_a_kill_at_any_write_leaves_each_list_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path)
    remove(folder / "train", {GONE.key})
    remove(folder / "train" / "originals", {GONE.key})
    for writes in range(10):

        def deadly(*_: object, left: list[int] = [writes]) -> None:  # noqa: B006
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(forgetting.os, "fsync", deadly)
            try:
                forget(folder)
                break
            except KeyboardInterrupt:
                verify_set(folder)
    assert writes == 1 or writes == 2
    assert "example.org/of-" + GONE.key not in str(
        [pq.read_table(path).to_pylist() for path in sorted(folder.rglob("*.parquet"))]
    )


def test_a_duplicate_stays_dropped_when_what_it_equals_is_forgotten(tmp_path: Path) -> None:
    """It is no removal, which would take it from every other set."""
    listed = [item for item in source_of(tmp_path).items() if item.split == "train"]
    twice = listed[0]
    assert GONE.key == listed[1].key
    (tmp_path / "drawn" / f"{twice.key}.png").write_bytes((tmp_path / "drawn" / f"{GONE.key}.png").read_bytes())
    folder = tmp_path / "set"
    first, second = twice.key, GONE.key

    def dropping() -> None:
        source, dropped = source_of(tmp_path), replace(wanted(tmp_path), drop_duplicates=True)
        make_folder(folder / "lists")
        plan = write_lists(source, folder / "lists", 4, least_val=0)
        make_shards(folder, folder / "lists", source.root(), plan, dropped, PIXELS, 1)
        finish_set(folder, plan, dropped, {"licence": "", "credit": ""})

    dropping()
    assert read_json(folder / "dropped.json") == {"keys": [second]}
    for part in ("train", "train/originals"):
        remove(folder / part, {first})
    forget(folder)
    (folder / "train" / "00000.tar").unlink()
    (folder / "train" / "manifest.json").unlink()
    dropping()
    assert read_json(folder / "dropped.json") == {"keys": [second]}
