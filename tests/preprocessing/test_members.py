"""Members of a sample are found by key and extension, however a shard's writer ordered them."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from inputs import write_tar
from mdm.data.shards import Shards
from preprocessing.manifest import data_digest, file_sha256, index_bytes, read_manifest, verify_dataset, write_json
from preprocessing.members import index_tar, samples_in
from preprocessing.remove import read_keys, remove
from small import FAKE


@pytest.fixture
def foreign(squares: Path, tmp_path: Path) -> Path:
    """The training split as img2dataset would have written it: image, json, txt, and one member more."""
    folder = shutil.copytree(squares / "train", tmp_path / "train")
    manifest = read_manifest(folder)
    for shard in manifest["shards"]:
        path, members = folder / shard["file"], []
        for sample in webdataset.WebDataset(f"file:{path}", shardshuffle=False):
            key = sample["__key__"]
            others = [(f"{key}.{extension}", sample[extension]) for extension in ("json", "txt")]
            members += [(f"{key}.PNG", sample["png"]), others[0], (f"{key}.npy", b"features"), others[1]]
        write_tar(path, members)
        path.with_suffix(".idx.npy").write_bytes(index_bytes(index_tar(path)))
        shard |= {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    manifest["digest"] = data_digest(manifest)
    write_json(folder / "manifest.json", manifest)
    shutil.rmtree(folder / "text-fake")
    return folder


def test_other_orders_and_other_members_are_read_alike(squares: Path, foreign: Path) -> None:
    ours, theirs = Shards(squares / "train", FAKE), Shards(foreign)
    for i in range(40):
        assert (theirs[i].key, theirs[i].caption) == (ours[i].key, ours[i].caption)
        assert (theirs[i].image == ours[i].image).all()
    verify_dataset(foreign)


def test_a_removal_takes_whole_samples_and_leaves_the_others_as_they_were(squares: Path, foreign: Path) -> None:
    before = Shards(squares / "train")
    remove(foreign, {"train001", "train008"})
    verify_dataset(foreign)
    after = Shards(foreign)
    assert [before[i].key for i in range(40) if i not in after.removed] == [after[i].key for i in after.present()]
    assert all(after[i].caption == before[i].caption for i in after.present())
    assert not any(key in path.read_bytes() for key in (b"train001", b"train008") for path in foreign.glob("*.tar"))
    stream = webdataset.WebDataset(f"file:{foreign}/00000.tar", shardshuffle=False)
    assert all(sample["npy"] == b"features" for sample in stream)
    assert [s.key for s in samples_in(foreign / "00001.tar")] == [f"train{i:03d}" for i in range(9, 16)]


def test_an_index_of_another_order_is_refused_before_anything_is_removed(foreign: Path) -> None:
    path = foreign / "00000.idx.npy"
    np.save(path, np.load(path)[::-1])
    before = (foreign / "00000.tar").read_bytes()
    assert read_keys(foreign / "00000.tar")[0] == "train007"
    with pytest.raises(ValueError, match=r"00000\.tar: its index points at 'train001' where 'train006' stands"):
        remove(foreign, {"train001"})
    assert (foreign / "00000.tar").read_bytes() == before and not (foreign / "removed.json").exists()


META = json.dumps({"key": "a"}).encode()


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a.png", "a.json", "b.png", "b.json", "b.txt"], r"sample 'a' must have one \.txt; it has json, png"),
        (["a.json", "a.txt"], "sample 'a' must have one image; it has json, txt"),
        (["a.png", "a.jpg", "a.json", "a.txt"], "sample 'a' must have one image"),
        (["a.png", "a.json", "a.txt", "a.png"], "'a.png' is there twice"),
        (["a.png", "b.png", "a.json", "a.txt"], "the members of 'a' do not stand together"),
        (["a.b.png", "a.b.json", "a.b.txt"], r"'a\.b\.png' has a dot in its key, where webdataset ends it \(at 'a'\)"),
    ],
)
def test_what_is_not_as_it_must_be_is_named(tmp_path: Path, names: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=rf"x\.tar: {told}"):
        index_tar(write_tar(tmp_path / "x.tar", [(name, META) for name in names]))


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_that_was_cut_anywhere_is_refused_by_name(tmp_path: Path, tar_format: int) -> None:
    path, cut = tmp_path / "x.tar", tmp_path / "cut.tar"
    names = [f"{key}.{extension}" for key in "ab" for extension in ("png", "txt", "json")]
    data = write_tar(path, [(name, META) for name in names], tar_format).read_bytes()
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512  # where the last member's block ends
    assert len(index_tar(path)) == 2
    path.write_bytes(data[: end + 1024])
    assert len(index_tar(path)) == 2  # as a removal leaves it
    for size in {*range(0, end + 1024, 64), *(block + 1 for block in range(0, end + 1024, 512)), end + 1023}:
        cut.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"cut\.tar is truncated or damaged: "):
            index_tar(cut)
    cut.write_bytes(data[:1024] + b"x" * 512 + data[1536:])
    with pytest.raises(ValueError, match=r"cut\.tar is truncated or damaged: "):
        index_tar(cut)


def test_what_webdataset_passes_over_is_passed_over(tmp_path: Path) -> None:
    names = ["README", "shard/a.png", "shard/a.txt", "shard/a.json", "shard/a.seg"]
    path = write_tar(tmp_path / "x.tar", [(name, META) for name in names])
    (sample,) = samples_in(path)
    (theirs,) = webdataset.WebDataset(f"file:{path}", shardshuffle=False)
    assert sample.key == theirs["__key__"] and set(sample.members) == {k for k in theirs if k[0] != "_"}
