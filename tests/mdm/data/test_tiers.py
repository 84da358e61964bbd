"""A stage reads the smallest tier that reaches its resolution; each tier holds the same samples at the same places."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drawn import Inline, write_drawings
from mdm.data.pixels import centre_crop
from mdm.data.shards import Shards
from mdm.data.tars import DamagedShard
from preprocessing.manifest import read_manifest, verify_dataset
from preprocessing.pack import making
from preprocessing.pack.shards import Tier
from preprocessing.remove import find, take_out
from preprocessing.sets import folders_of
from preprocessing.sources.openmoji import OpenMoji

SOURCE = OpenMoji(limit=13, val_fraction=0.08)
TIERS = (Tier(16, "jpg"), Tier(32, "png"), Tier(0))


@pytest.fixture
def tiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(making, "ProcessPoolExecutor", Inline)
    write_drawings(tmp_path, SOURCE, px=40, tiers=TIERS)
    return tmp_path


@pytest.mark.parametrize(("px", "tier"), [(8, ""), (16, ""), (32, "32px"), (24, "originals"), (40, "originals")])
def test_the_smallest_tier_that_reaches_a_stage_is_read(tiers: Path, px: int, tier: str) -> None:
    shards, whole = Shards(tiers / "train", px=px), Shards(tiers / "train", px=40)
    assert shards.tier == tiers / "train" / tier
    for i in range(len(shards)):
        assert (shards[i].key, shards[i].caption) == (whole[i].key, whole[i].caption)
        if tier != "":  # lossless
            expected = centre_crop(whole[i].image.permute(1, 2, 0).numpy(), shards.stored_px or px)
            assert torch.equal(shards[i].image, torch.from_numpy(expected.copy()).permute(2, 0, 1))


def test_the_original_bytes_are_stored_and_the_crops_are_jpegs(tiers: Path) -> None:
    shards = Shards(tiers / "train", px=40)
    drawn = tiers / "drawn" / f"{shards[0].key}.png"
    assert (shards[0].image.permute(1, 2, 0).numpy() == np.asarray(Image.open(drawn))).all()
    assert drawn.read_bytes() in (tiers / "train" / "originals" / "00000.tar").read_bytes()
    assert b"JFIF" in (tiers / "train" / "00000.tar").read_bytes()


def test_what_no_tier_reaches_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "ProcessPoolExecutor", Inline)
    write_drawings(tmp_path, SOURCE)
    with pytest.raises(ValueError, match="holds pictures of 16 px, 32 px cannot be made of them"):
        Shards(tmp_path / "train", px=32)


def test_a_tier_of_another_set_is_refused(tiers: Path) -> None:
    (tiers / "train" / "32px").rename(tiers / "train" / "aside")
    (tiers / "val" / "32px").rename(tiers / "train" / "32px")
    with pytest.raises(ValueError, match="holds other data"):
        Shards(tiers / "train", px=16)


def test_a_removal_empties_every_tier(tiers: Path) -> None:
    key = SOURCE.split("train")[1].key
    before = [Shards(tiers / "train").key(i) for i in range(len(Shards(tiers / "train")))]
    for part in folders_of(tiers):
        take_out(part, find(part, {key}))
        verify_dataset(part)
    assert not any(key.encode() in path.read_bytes() for path in tiers.rglob("*.tar"))
    for px in (16, 32, 40):
        after = Shards(tiers / "train", px=px)
        assert len(after) == len(before) and after.removed == {1} and after[2].key == before[2]
    revisions = {part.relative_to(tiers).parts[0]: read_manifest(part).get("revision", 0) for part in folders_of(tiers)}
    assert revisions == {"train": 1, "val": 0}


def test_a_damaged_picture_of_a_tier_is_named_with_that_tiers_shard(tiers: Path) -> None:
    path = tiers / "train" / "32px" / "00001.tar"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedShard, match=r"32px/00001\.tar is truncated"):
        Shards(tiers / "train", px=32)[5]
    assert Shards(tiers / "train", px=16)[5].key
