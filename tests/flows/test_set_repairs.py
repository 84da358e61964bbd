"""What a finished set has lost is made again as it was, or named."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dozen import DOZEN, FEW, contents, made_of, make, opened
from flows.datasets.making import make_set
from flows.datasets.removal import remove_samples
from preprocessing.cards.card import write_card
from preprocessing.manifest import read_json
from preprocessing.pack import making
from preprocessing.pack.shards import Shard, Tier
from preprocessing.verify import verify_set

pytestmark = pytest.mark.usefixtures("root")


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_lost_manifest_of_a_finished_set_is_made_again_from_its_markers(
    root: Path, monkeypatch: pytest.MonkeyPatch, split: str, torn: bool
) -> None:
    folder = make()
    remove_samples("dozen", {DOZEN.split("train")[0].key}, False, print)
    before, recipe = contents(folder), read_json(folder / "recipe.json")
    path = folder / split / "manifest.json"
    path.unlink()
    if torn:
        path.write_text('{"format": 1, "na')
    monkeypatch.setattr(making, "pack_shard", None)  # nothing is packed
    assert make() == folder and not list(root.glob("*.part"))
    assert made_of(contents(folder)) == made_of(before)
    assert read_json(folder / "recipe.json") == recipe  # as old as it was


@pytest.mark.parametrize("lost", ["recipe.json", "lists/plan.json"])
def test_a_manifest_that_cannot_be_made_again_is_one_line_before_any_work(root: Path, lost: str) -> None:
    folder = make()
    (folder / "val" / "manifest.json").unlink()
    (folder / lost).unlink()
    before = contents(folder)
    with pytest.raises(ValueError, match=rf"{folder} has lost a manifest, and .*restore them, or move it away"):
        make()
    assert contents(folder) == before and not list(root.glob("*.part"))


@pytest.mark.parametrize("lost", ["originals", "originals/manifest.json"])
def test_a_lost_tier_of_a_finished_set_is_made_again(root: Path, lost: str) -> None:
    plain = opened()
    two = replace(plain, recipe=replace(plain.recipe, tiers=(Tier(16, "png"), Tier(0))))
    folder = make_set(two, lambda *_: None, print)
    assert folder is not None
    before, path = contents(folder), folder / "train" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert make_set(two, lambda *_: None, print) == folder
    assert made_of(contents(folder)) == made_of(before)


def test_another_sets_tier_is_found_and_made_again(root: Path) -> None:
    tiers = (Tier(16, "png"), Tier(0))
    mine, others = (replace(one, recipe=replace(one.recipe, tiers=tiers)) for one in (opened(), opened(FEW)))
    folder, other = (make_set(one, lambda *_: None, print) for one in (mine, others))
    assert folder is not None and other is not None
    verify_set(folder)
    before = contents(folder)
    shutil.rmtree(folder / "train" / "originals")
    shutil.copytree(other / "train" / "originals", folder / "train" / "originals")
    with pytest.raises(ValueError, match=r"train/originals is not the one that .* delete it and make the shards again"):
        verify_set(folder)
    shutil.rmtree(folder / "train" / "originals")
    assert make_set(mine, lambda *_: None, print) == folder and made_of(contents(folder)) == made_of(before)


@pytest.mark.parametrize("damage", ["gone", "torn", "another's"])
def test_rows_that_are_lost_under_a_finished_set_are_named(root: Path, damage: str) -> None:
    folder = make()
    verify_set(folder)
    path, other = (folder / split / "00000.rows.parquet" for split in ("train", "val"))
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[:-20] if damage == "torn" else other.read_bytes())
    said = rf"{folder}/train/.*rows.*what became of its items is lost. Restore it, or move {folder} away"
    with pytest.raises(ValueError, match=said):
        verify_set(folder)
    with pytest.raises(ValueError, match=said):
        write_card(folder, opened().row.about)
    assert Shard(folder, opened().recipe, "train", 0).entries() is None or damage == "another's"


def test_a_lost_plan_is_one_line(root: Path) -> None:
    folder = make()
    (folder / "lists" / "plan.json").unlink()
    (folder / "train" / "00000.tar").unlink()
    with pytest.raises(ValueError, match=r"plan\.json is missing or torn, and the set lacks shards: restore it"):
        make()


@pytest.mark.parametrize("name", ["recipe.json", "lists/plan.json", "train/removed.json", "dropped.json"])
def test_a_torn_file_that_nothing_makes_again_is_no_whole_set(root: Path, name: str) -> None:
    folder = make()
    verify_set(folder)
    (folder / name).write_text('{"keys": [')
    with pytest.raises(ValueError, match=rf"{name} is torn: restore it, or move .* away"):
        verify_set(folder)
