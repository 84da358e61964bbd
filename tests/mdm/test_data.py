"""Order, shards and their errors."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import webdataset

from mdm.data import Shards, TrainingSet, collate, pad_tokens, permute
from small import FAKE


@pytest.mark.parametrize("size", [1, 2, 3, 40, 1000])
def test_permutation_is_a_bijection_that_depends_on_the_key(size: int) -> None:
    orders = [[permute(i, size, key) for i in range(size)] for key in (1, 2)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    assert size < 40 or orders[0] != orders[1]


def test_every_sample_once_per_epoch_in_another_order_each_time(squares: Path) -> None:
    data = TrainingSet(Shards(squares / "train", FAKE), seed=3)
    epochs = [[data.index(e * 40 + i) for i in range(40)] for e in range(2)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_samples_are_what_webdataset_reads(squares: Path) -> None:
    folder = squares / "train"
    shards = Shards(folder, FAKE)
    tars = sorted(str(p) for p in folder.glob("*.tar"))
    samples = (shards[i] for i in range(len(shards)))
    for ours, theirs in zip(samples, webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"), strict=True):
        assert ours.key == theirs["__key__"] == theirs["json"]["key"]
        assert ours.caption == theirs["txt"]
        assert torch.equal(ours.image, torch.tensor(theirs["png"]).permute(2, 0, 1))
        assert isinstance(ours.condition, torch.Tensor)
        assert len(ours.condition) == 3  # <s> and two words


def test_dropped_captions_are_the_null_caption_and_depend_on_the_position_alone(squares: Path) -> None:
    shards = Shards(squares / "train", FAKE)
    data = TrainingSet(shards, seed=0, null=shards.null_tokens(), dropout=0.5)

    def dropped() -> list[bool]:
        return [bool(torch.equal(torch.as_tensor(data[i][2]), shards.null_tokens())) for i in range(200)]

    assert dropped() == dropped()
    assert 60 < sum(dropped()) < 140
    condition = collate([data[i] for i in range(4)]).condition
    assert condition["text"].shape[:2] == condition["text_mask"].shape


def test_labels_condition_where_there_is_no_text_and_are_dropped_to_the_class_after_the_last(squares: Path) -> None:
    shards = Shards(squares / "train")
    labels = [TrainingSet(shards, seed=0)[i][2] for i in range(len(shards))]
    assert sorted(set(labels)) == [0, 1, 2, 3]
    data = TrainingSet(shards, seed=0, null=4, dropout=0.5)
    batch = collate([data[i] for i in range(100)])
    assert batch.condition["labels"].shape == (100,)
    assert 25 < (batch.condition["labels"] == 4).sum() < 75


def test_padding_marks_what_is_real() -> None:
    text, mask = pad_tokens([torch.ones(2, 3), torch.ones(4, 3)])
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert text[0, 2:].abs().max() == 0


def test_truncated_shard_and_foreign_embeddings_are_named(squares: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(squares / "train", tmp_path / "train")
    tar = folder / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:600])
    shards = Shards(folder, FAKE)
    with pytest.raises(ValueError, match=r"00001\.tar is truncated"):
        shards[15]
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "digest": "other"}))
    with pytest.raises(ValueError, match="made for other images"):
        Shards(folder, FAKE)
    with pytest.raises(ValueError, match="no finished dataset"):
        Shards(tmp_path, None)
