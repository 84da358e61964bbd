"""Shards and their errors, what stands at a position, batches."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from safetensors.numpy import load_file, save_file

from mdm.data import shards as module
from mdm.data.batches import TrainingSet
from mdm.data.pixels import read_rgb
from mdm.data.shards import Shards
from mdm.data.tars import DamagedShard
from mdm.data.workers import batches
from mdm.network.conditioning import pad_tokens
from mdm.stage import Storage
from preprocessing.pack.images import encode_png
from preprocessing.pack.shards import TarFile
from small import FAKE


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


@pytest.mark.parametrize("shuffle", [0, 20])
def test_plain_webdataset_streams_the_same_samples(squares: Path, shuffle: int) -> None:
    """As from a server: URLs in braces, shards and samples shuffled, our shards unchanged."""
    folder = squares / "train"
    url = f"file:{folder}/{{00000..00004}}.tar"
    stream = (
        webdataset.WebDataset(url, shardshuffle=5).shuffle(shuffle).decode("rgb8").to_tuple("__key__", "txt", "png")
    )
    streamed = {key: (caption, image.tobytes()) for key, caption, image in stream}
    shards = Shards(folder)
    ours = [shards[i] for i in range(len(shards))]
    assert streamed == {s.key: (s.caption, s.image.permute(1, 2, 0).numpy().tobytes()) for s in ours}


def test_dropped_captions_are_the_null_caption_and_depend_on_the_position_alone(squares: Path) -> None:
    shards = Shards(squares / "train", FAKE)
    data = TrainingSet(shards, seed=0, null=shards.null_tokens(), dropout=0.5)

    def dropped() -> list[bool]:
        states = (data.batch([i]).states for i in range(200))
        return [torch.equal(torch.as_tensor(one), shards.null_tokens()) for one in states]

    assert dropped() == dropped()
    assert 60 < sum(dropped()) < 140
    _, condition = data.batch(range(4)).on(torch.device("cpu"))
    assert condition["text"].shape[:2] == condition["text_mask"].shape


def test_labels_condition_where_there_is_no_text_and_are_dropped_to_the_class_after_the_last(squares: Path) -> None:
    shards = Shards(squares / "train")
    labels = TrainingSet(shards, seed=0).batch(range(len(shards))).labels
    assert labels is not None and labels.unique().tolist() == [0, 1, 2, 3]
    data = TrainingSet(shards, seed=0, null=4, dropout=0.5)
    batch = data.batch(range(100))
    assert batch.labels is not None and batch.labels.shape == (100,)
    assert 25 < (batch.labels == 4).sum() < 75


def test_padding_marks_what_is_real() -> None:
    condition = pad_tokens(torch.arange(1.0, 19).view(6, 3), [2, 4])
    assert condition["text_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert condition["text"][:, :, 0].tolist() == [[1, 4, 0, 0], [7, 10, 13, 16]]


@pytest.fixture
def copy(squares: Path, tmp_path: Path) -> Path:
    return shutil.copytree(squares / "train", tmp_path / "train")


def groups(size: int, count: int = 80) -> list[list[int]]:
    return [list(range(start, start + size)) for start in range(0, count, size)]


def test_foreign_embeddings_and_a_missing_dataset_are_named(copy: Path, tmp_path: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "digest": "other"}))
    with pytest.raises(ValueError, match="made for other images"):
        Shards(copy, FAKE)
    with pytest.raises(ValueError, match="no finished dataset"):
        Shards(tmp_path, None)


def test_positions_give_the_same_samples_whatever_the_batches_and_workers(squares: Path) -> None:
    data = TrainingSet(Shards(squares / "train", FAKE), 0, dropout=0.1, flip=True, window_shards=2)
    plain = list(batches(data, groups(8), 0))
    for size, workers in ((8, 2), (16, 0), (20, 1)):
        other = list(batches(data, groups(size), workers))
        assert [p for b in other for p in b.positions] == list(range(80))
        assert torch.equal(torch.cat([b.images for b in other]), torch.cat([b.images for b in plain]))


def test_flips_depend_on_the_epoch_and_the_sample(squares: Path) -> None:
    shards = Shards(squares / "train", FAKE)
    flipped = []
    for window in (0, 2):
        data = TrainingSet(shards, seed=0, flip=True, window_shards=window)
        places = [
            (i // 40, data.index(i), image) for i, image in enumerate(data.batch(range(80)).on(torch.device("cpu"))[0])
        ]
        flipped.append({(epoch, index): not torch.equal(image, shards[index].image) for epoch, index, image in places})
        for epoch, index, image in places:
            if flipped[-1][epoch, index]:
                assert torch.equal(image, shards[index].image.flip(2))
    assert flipped[0] == flipped[1]  # the same, wherever in the epoch the sample stands
    assert 20 < sum(flipped[0].values()) < 60
    assert [flipped[0][0, i] for i in range(40)] != [flipped[0][1, i] for i in range(40)]


@pytest.mark.parametrize("limit", [1, 2, 64])
def test_no_more_tars_are_open_than_allowed(squares: Path, limit: int) -> None:
    def held() -> int:
        links = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        return sum(path.endswith(".tar") for path in links) - before

    before = 0
    before = held()
    shards = Shards(squares / "train", storage=Storage(max_open_files=limit))
    most = 0
    for position in range(80):
        TrainingSet(shards, seed=0).batch([position])
        most = max(most, held())
    assert most == min(limit, 5)


def damage(folder: Path, how: str) -> None:
    tar = folder / "00001.tar"
    data = bytearray(tar.read_bytes())
    if how == "missing":
        tar.unlink()
    elif how == "no index":
        tar.with_suffix(".idx.npy").unlink()
    elif how == "torn index":
        tar.with_suffix(".idx.npy").write_bytes(b"x")
    elif how == "truncated":
        tar.write_bytes(data[:600])
    else:  # in the second sample's picture, or in a caption, which nothing else would notice
        spans = np.load(tar.with_suffix(".idx.npy"))
        place = spans[1, 0 if how == "undecodable" else 1, 0]
        data[place : place + 4] = b"GREY"
        tar.write_bytes(data)


def test_the_start_names_what_is_missing_or_short(copy: Path) -> None:
    assert Shards(copy, FAKE).check() == []
    damage(copy, "truncated")
    (copy / "00003.tar").unlink()
    (copy / "00004.idx.npy").unlink()
    (copy / "text-fake" / "00002.safetensors").unlink()
    with pytest.raises(
        DamagedShard, match=r"00001\.tar is truncated or altered: 600 bytes.*and 3 more.*again"
    ) as error:
        Shards(copy, FAKE).check()
    assert "\n" not in str(error.value)
    lines = Shards(copy, FAKE, Storage(tolerate=1)).check()
    named = ["00001.tar is trunc", "00003.tar is missing", "00004.idx.npy is missing", "00002.safetensors is missing"]
    assert all(name in line for name, line in zip(named, lines, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["missing", "no index", "torn index", "truncated", "undecodable", "altered"])
def test_a_damaged_shard_is_named_in_one_line(copy: Path, how: str, workers: int) -> None:
    damage(copy, how)
    storage = Storage(check="digest" if how == "altered" else "size")
    with pytest.raises(DamagedShard, match=r"00001\.(tar|idx\.npy)") as error:
        list(batches(TrainingSet(Shards(copy, FAKE, storage), 0), groups(8), workers))
    assert "\n" not in str(error.value)


def test_an_altered_byte_is_found_where_digests_are_asked_for(copy: Path) -> None:
    damage(copy, "altered")
    assert Shards(copy).caption(9).startswith("GREY")
    with pytest.raises(DamagedShard, match=r"00001\.tar is altered"):
        Shards(copy, storage=Storage(check="digest")).caption(8)
    states = copy / "text-fake" / "00000.safetensors"
    states.write_bytes(states.read_bytes()[:-1] + b"!")
    with pytest.raises(DamagedShard, match=r"00000\.safetensors is altered"):
        Shards(copy, FAKE, Storage(check="digest")).tokens(0)


@pytest.mark.parametrize("how", ["missing", "undecodable"])
def test_unreadable_samples_are_replaced_alike_everywhere_and_told(copy: Path, how: str) -> None:
    whole = TrainingSet(Shards(copy, FAKE), 0)
    images = whole.batch(range(80)).images
    bad = [i for i in range(80) if whole.index(i) in (range(8, 16) if how == "missing" else [9])]
    damage(copy, how)
    runs = [
        list(batches(TrainingSet(Shards(copy, FAKE, Storage(tolerate=99)), 0), groups(size), workers))
        for size, workers in ((8, 0), (20, 2))
    ]
    told = [[line for batch in run for line in batch.substituted] for run in runs]
    assert told[0] == told[1] and len(told[0]) == len(bad) > 0
    assert all(f"position {i} " in line and "00001.tar" in line for i, line in zip(bad, told[0], strict=True))
    drawn = [torch.cat([batch.images for batch in run]) for run in runs]
    assert torch.equal(drawn[0], drawn[1])
    assert all(torch.equal(drawn[0][i], images[i]) for i in range(80) if i not in bad)
    for path in copy.glob("*.tar"):
        path.unlink()
    with pytest.raises(ValueError, match=r"position 0 .*\.tar is missing"):
        TrainingSet(Shards(copy, FAKE, Storage(tolerate=99)), 0).batch([0])


def spoil(folder: Path, shard: int, place: int, extension: str, data: bytes) -> None:
    """Give a shard's sample another member, in a tar that is whole and whose manifest fits."""
    path, samples = folder / f"{shard:05d}.tar", []
    with tarfile.open(path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    for i, start in enumerate(range(0, len(members), 3)):
        key = members[start][0].partition(".")[0]
        parts = {name.rpartition(".")[2]: content for name, content in members[start : start + 3]}
        parts |= {extension: data} if i == place else {}
        samples.append((key, parts))
    with TarFile(path) as file:
        for key, parts in samples:
            file.add(key, parts)
        entry = file.finish()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][shard] = entry
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("extension", "data", "named"),
    [
        ("png", encode_png(np.zeros((32, 31, 3), np.uint8)), r"its picture is 31 x 32 px, the set's are 32 x 32"),
        ("png", b"<html>", r"its picture cannot be used: it is no picture"),
        ("txt", b"caf\xe9", r"its caption is no UTF-8 \(at byte 3\)"),
    ],
    ids=["size", "no picture", "no UTF-8"],
)
def test_what_a_sample_holds_is_looked_at_where_it_is_read(copy: Path, extension: str, data: bytes, named: str) -> None:
    spoil(copy, 1, 2, extension, data)
    with pytest.raises(DamagedShard, match=rf"00001\.tar: sample 'train010': {named}"):
        Shards(copy, FAKE)[10]
    batch = next(iter(batches(TrainingSet(Shards(copy, FAKE, Storage(tolerate=1)), 0), groups(40), 0)))
    assert len(batch.substituted) == 1 and "train010" in batch.substituted[0]
    readable, left_out = Shards(copy, FAKE, Storage(tolerate=1)).readable(range(8, 16))
    assert list(readable) == [8, 9, 11, 12, 13, 14, 15] and "train010" in left_out[0]
    with pytest.raises(DamagedShard, match="train010"):
        Shards(copy, FAKE).readable(range(8, 16))


def test_states_that_are_not_finite_are_named(copy: Path) -> None:
    path = copy / "text-fake" / "00001.safetensors"
    states = load_file(path)
    states["tokens"][states["offsets"][2], 5] = float("nan")
    save_file(states, path)
    with pytest.raises(DamagedShard, match=r"00001\.safetensors: the states of sample 2 are not finite"):
        Shards(copy, FAKE)[10]
    assert Shards(copy, FAKE)[9].condition is not None


def test_few_pictures_are_decoded_once_and_many_each_time(squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []

    def counted(data: bytes) -> np.ndarray:
        decoded.append(len(data))
        return read_rgb(data)

    monkeypatch.setattr(module, "read_rgb", counted)
    for bound, times in ((module.FEW_BYTES, 1), (100, 2)):
        monkeypatch.setattr(module, "FEW_BYTES", bound)
        shards = Shards(squares / "train")
        first, again = shards[3].image, shards[3].image
        assert torch.equal(first, again) and first.data_ptr() != again.data_ptr()
        assert len(decoded) == times
        decoded.clear()
