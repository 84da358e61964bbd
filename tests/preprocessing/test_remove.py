"""Samples taken out for good: their bytes are gone, every other sample keeps its position, a kill is finished."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from safetensors.numpy import load_file

from drawn import Inline, write_drawings
from mdm.data.batches import TrainingSet
from mdm.data.shards import Shards
from mdm.stage import Storage
from preprocessing.embed import embed_captions, finished_set, read_captions
from preprocessing.manifest import read_manifest, verify_dataset
from preprocessing.pack import making
from preprocessing.remove import finish, removal_rule, remove, removed_keys
from preprocessing.sources.openmoji import OpenMoji
from small import FAKE, fake_encode

SOURCE = OpenMoji(limit=13, val_fraction=0.08)
KEYS = {"train003", "train008", "train009", "train030"}  # in shards 0, 1, 1, 3


@pytest.fixture
def copy(squares: Path, tmp_path: Path) -> Path:
    return shutil.copytree(squares / "train", tmp_path / "train")


def parts(data: TrainingSet, positions: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and states of a batch."""
    batch = data.batch(positions)
    assert batch.states is not None
    return batch.images, batch.states


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".parquet")  # these hold times
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_as_many_other_samples_removed_leave_other_data(squares: Path, tmp_path: Path) -> None:
    """In two homes: the revision counts the removals alone."""
    revisions = []
    for home, keys in (("a", KEYS), ("b", KEYS), ("c", {f"train{i:03d}" for i in (4, 7, 11, 31)})):
        split = shutil.copytree(squares / "train", tmp_path / home / "train")
        remove(split, keys)
        revisions.append(Shards(split).revision)
    assert revisions[0] == revisions[1] != revisions[2] and {found["revision"] for found in revisions} == {1}


def test_all_other_samples_keep_their_positions(squares: Path, copy: Path) -> None:
    before = Shards(squares / "train", FAKE)
    remove(copy, KEYS)
    after = Shards(copy, FAKE, Storage(check="digest"))
    assert after.check() == [] and len(after) == len(before) == 40
    assert before.revision == {"digest": before.manifest["digest"], "revision": 0}
    assert after.revision == {**before.revision, "revision": 1, "removed": after.revision["removed"]}
    gone = [i for i in range(40) if before[i].key in KEYS]
    assert list(after.present()) == [i for i in range(40) if i not in gone]
    assert after.spread(100) == list(after.present())
    assert after.spread(7) == [i for i in before.spread(7) if i not in gone]  # the others stay the same
    for window in (0, 2):
        old, new = (TrainingSet(shards, seed=1, flip=True, window_shards=window) for shards in (before, after))
        assert [old.index(i) for i in range(80)] == [new.index(i) for i in range(80)]
        for i in (i for i in range(80) if old.index(i) not in gone):
            for was, now in zip(parts(old, [i]), parts(new, [i]), strict=True):
                assert torch.equal(was, now)
        whole, again = new.batch(range(80)), new.batch(range(80))
        assert torch.equal(whole.images, again.images) and not whole.substituted  # no damage
    with pytest.raises(ValueError, match=f"sample {gone[0]} was removed"):
        after[gone[0]]


def test_the_bytes_are_gone_and_any_webdataset_tool_reads_the_rest(copy: Path) -> None:
    remove(copy, KEYS)
    assert not any(key.encode() in (path.read_bytes()) for key in KEYS for path in copy.rglob("*.tar"))
    verify_dataset(copy)
    stream = webdataset.WebDataset(f"file:{copy}/{{00000..00004}}.tar", shardshuffle=5).shuffle(9).decode("rgb8")
    keys = sorted(sample["__key__"] for sample in stream)
    assert keys == [f"train{i:03d}" for i in range(40) if f"train{i:03d}" not in KEYS]
    spans = np.load(copy / "00001.idx.npy")
    assert spans.shape == (8, 3, 2) and not spans[:2].any() and spans[2:].all()
    assert read_captions(copy / "00001.tar")[:3] == ["", "", "blue square"]


def test_entries_keep_what_the_shard_was(squares: Path, copy: Path) -> None:
    remove(copy, KEYS)
    remove(copy, {"train010"})
    old, new = read_manifest(squares / "train"), read_manifest(copy)
    assert (new["revision"], new["digest"], new["samples"]) == (2, old["digest"], 40)
    entry, made = new["shards"][1], old["shards"][1]
    assert entry["removed"] == [0, 1, 2] and entry["made"] == {k: made[k] for k in ("bytes", "sha256")}
    assert entry["bytes"] < made["bytes"] and entry["bytes"] == (copy / "00001.tar").stat().st_size
    assert new["shards"][2] == old["shards"][2]
    before = contents(copy)
    assert remove(copy, KEYS | {"train010"}) == new  # again: nothing happens
    assert contents(copy) == before


def test_a_shard_may_lose_all_its_samples(copy: Path) -> None:
    remove(copy, [f"train{i:03d}" for i in range(8)])
    verify_dataset(copy)
    data = TrainingSet(Shards(copy, FAKE), 0)
    assert len(data.batch(range(40)).images) == 40
    stream = webdataset.WebDataset(sorted(map(str, copy.glob("*.tar"))), shardshuffle=False)
    assert len(list(stream)) == 32
    remove(copy, ["train039"])
    verify_dataset(copy)


def test_removed_captions_become_the_empty_one_in_every_stored_set(copy: Path) -> None:
    embed_captions(copy, FAKE.encoder, FAKE.encoder_digest, fake_encode, 8, precision="8bit")
    sets = {name: json.loads((copy / name / "manifest.json").read_text()) for name in ("text-fake", "text-fake-8bit")}
    remove(copy, KEYS)
    for name, before in sets.items():
        now = json.loads((copy / name / "manifest.json").read_text())
        assert now["digest"] == before["digest"] and now["shards"][1] != before["shards"][1]
        file, null = load_file(copy / name / "00001.safetensors"), load_file(copy / name / "null.safetensors")
        assert file["offsets"].tolist() == [0, 1, 2, *range(5, 21, 3)]
        np.testing.assert_array_equal(file["tokens"][0], null["tokens"][0])
    assert finished_set(copy, "fake", "fake-1", 8, "half") is not None
    stored = (copy / "text-fake" / "00001.safetensors").read_bytes()
    (copy / "text-fake" / "00001.safetensors").unlink()
    embed_captions(copy, FAKE.encoder, FAKE.encoder_digest, fake_encode, 8)
    assert (copy / "text-fake" / "00001.safetensors").read_bytes() == stored  # as if it had always been so


def test_unknown_keys_and_damaged_shards_change_nothing(copy: Path) -> None:
    before = contents(copy)
    with pytest.raises(ValueError, match=r"no sample 'nobody', 'nowhere' \(2 unknown\): nothing was removed"):
        remove(copy, {*KEYS, "nobody", "nowhere"})
    assert contents(copy) == before
    tar = copy / "00003.tar"
    tar.write_bytes(tar.read_bytes() + b"\0")
    before = contents(copy)
    with pytest.raises(ValueError, match=r"00003\.tar is altered"):
        remove(copy, KEYS)
    assert contents(copy) == before


SCRIPT = """
import os, sys
from pathlib import Path
from preprocessing import manifest, remove
left = int(sys.argv[2])
def deadly(path, data, *rest, write=manifest.write_file):
    global left
    if left == 0:
        path.with_name(path.name + ".tmp").write_bytes(data[: len(data) // 2])
        os.kill(os.getpid(), 9)
    left -= 1
    write(path, data, *rest)
manifest.write_file = remove.write_file = deadly
remove.remove(Path(sys.argv[1]), sys.argv[3:])
"""


@pytest.mark.kills
def test_killed_before_any_write_then_the_same_bytes(squares: Path, tmp_path: Path) -> None:
    """A SIGKILL at every single file that is written; the same command then finishes, or `mdm data` does."""
    whole = shutil.copytree(squares / "train", tmp_path / "whole")
    remove(whole, {"train003", "train008"})
    expected, environment = contents(whole), {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for writes in range(100):
        folder = shutil.copytree(squares / "train", tmp_path / f"killed{writes}")
        script = [sys.executable, "-c", SCRIPT, str(folder), str(writes), "train003", "train008"]
        code = subprocess.run(script, env=environment, stderr=subprocess.DEVNULL).returncode
        if code == 0:
            break
        assert code == -9
        if writes:  # the first write is removed.json: from then on the folder says what is the matter
            for read in (lambda f=folder: Shards(f), lambda f=folder: verify_dataset(f)):
                with pytest.raises(ValueError, match="a removal of samples is unfinished"):
                    read()
            if writes % 2:
                finish(folder)
        remove(folder, {"train003", "train008"})
        assert contents(folder) == expected  # no half-written file either
    assert 8 < writes < 20  # list; 2 x (embeddings, its marker, tar, index); set, manifest


def test_made_again_they_stay_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "ProcessPoolExecutor", Inline)

    def make(name: str = "set", px: int = 16, source: OpenMoji = SOURCE, keys: Iterable[str] = ()) -> dict[str, Any]:
        return write_drawings(tmp_path / name, source, px, removed={key: {} for key in keys})[0]

    folder, drawings = tmp_path / "set" / "train", SOURCE.split("train")
    first, keys = make(), {drawings[1].key, drawings[6].key}
    remove(folder, keys)
    expected = contents(folder)
    assert make() == read_manifest(folder) and contents(folder) == expected
    (folder / "00001.tar").unlink()  # as one does with a damaged shard
    (folder / "00000.done.json").unlink()
    assert make()["digest"] == first["digest"]
    assert contents(folder) == expected
    few = OpenMoji(limit=8, val_fraction=0.08)
    for name, px, source in (("large", 24, SOURCE), ("few", 16, few), ("same", 16, SOURCE)):
        make(name, px, source, keys)  # other sets are made without them: they are found by key
        verify_dataset(tmp_path / name / "train")
        data, still = Shards(tmp_path / name / "train"), keys & {drawing.key for drawing in source.split("train")}
        assert len(data.removed) == len(still)
        assert not keys & {data[i].key for i in data.present()}
        assert removed_keys(tmp_path / name / "train") == still
    assert contents(tmp_path / "same" / "train") == expected


def test_killed_while_a_shard_is_made_again_its_removed_samples_do_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "ProcessPoolExecutor", Inline)

    def make() -> None:
        write_drawings(tmp_path, SOURCE)

    make()
    folder = tmp_path / "train"
    whole = (folder / "00000.tar").read_bytes()
    remove(folder, {SOURCE.split("train")[1].key})
    expected = contents(folder)
    (folder / "00000.tar").write_bytes(whole)  # as the kill left it: made again, nothing taken out yet
    make()
    assert contents(folder) == expected


@pytest.mark.parametrize(
    ("known", "sample", "gone"),
    [
        ({"sha256": ["s"], "url": ["u"]}, {"key": "other", "sha256": "s", "url": "v"}, True),
        ({"sha256": ["s"], "url": ["u"]}, {"key": "other", "sha256": "t", "url": "u"}, True),  # it was fetched anew
        ({"sha256": ["s"], "url": ["u"]}, {"key": "k", "sha256": "t", "url": "v"}, False),
        ({"sha256": ["s"], "url": ["u"]}, {"key": "k", "sha256": "t"}, False),
        ({"sha256": ["s"], "url": ["u"]}, {"key": "k"}, True),
        ({"sha256": [], "url": ["u"]}, {"key": "k", "sha256": "t"}, True),
        ({}, {"key": "k", "sha256": "t", "url": "v"}, True),
        ({}, {"key": "other", "sha256": "t", "url": ["v"]}, False),
    ],
)
def test_what_was_removed_is_known_in_other_sets_by_more_than_its_key(
    known: dict[str, list[str]], sample: dict[str, Any], gone: bool
) -> None:
    assert removal_rule((), {"k": known})(sample) is gone
    assert removal_rule({"k"}, {"k": known})({**sample, "key": "k"})  # of this very set
