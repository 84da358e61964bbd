import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from preprocessing.manifest import FIELDS, digest, read_manifest, verify_dataset, write_file
from preprocessing.openmoji import OpenMoji
from preprocessing.shards import pack, write_openmoji

TWELVE = OpenMoji(limit=13, val_fraction=0.08)
PX = 16
PER_SHARD = 4


def write(folder: Path, px: int = PX, source: OpenMoji = TWELVE) -> list[tuple[int, int]]:
    """Write the training split in shards of four -> what was reported as progress."""
    seen: list[tuple[int, int]] = []
    write_openmoji(source, "train", "dozen", px, folder, PER_SHARD, 1, lambda done, total: seen.append((done, total)))
    return seen


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def dozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dataset; not to be written to."""
    folder = tmp_path_factory.mktemp("dozen") / "train"
    seen = write(folder)
    assert seen[-1] == (len(TWELVE.split("train")),) * 2 and len(seen) == len(list(folder.glob("*.tar"))) >= 3
    return folder


@pytest.fixture
def copy(dozen: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "train"
    folder.mkdir()
    for path in dozen.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_same_bytes_again(dozen: Path, tmp_path: Path) -> None:
    write(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(dozen)


def test_done_is_not_redone(copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    write(copy)
    assert {path: path.stat().st_mtime_ns for path in copy.iterdir()} == before


def test_the_manifest_holds_what_is_there(dozen: Path) -> None:
    manifest = read_manifest(dozen)
    assert manifest["samples"] == len(TWELVE.split("train"))
    assert manifest["digest"] == digest({k: v for k, v in manifest.items() if k != "digest"})
    assert manifest["credit"] == TWELVE.credit and manifest["licence"] == "CC-BY-SA-4.0"
    verify_dataset(dozen)


def test_webdataset_reads_the_tars(dozen: Path) -> None:
    urls = [str(path) for path in sorted(dozen.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    expected = TWELVE.split("train")
    assert [s["__key__"] for s in samples] == [d.key for d in expected]
    assert [s["txt"] for s in samples] == [d.caption for d in expected]
    assert all(s["png"].shape == (PX, PX, 3) for s in samples)


def test_the_index_points_at_the_members(dozen: Path) -> None:
    for path in sorted(dozen.glob("*.tar")):
        spans = np.load(path.with_suffix(".idx.npy"))
        assert spans.dtype == np.int64 and spans.shape[1:] == (3, 2)
        with tarfile.open(path) as tar, path.open("rb") as file:
            members = tar.getmembers()
            assert len(members) == 3 * len(spans)
            for member, (offset, length) in zip(members, spans.reshape(-1, 2), strict=True):
                assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
                data = tar.extractfile(member)
                assert data is not None and os.pread(file.fileno(), int(length), int(offset)) == data.read()
            assert [m.name.rpartition(".")[2] for m in members[:3]] == ["png", "txt", "json"]


def test_only_what_is_missing_is_made(copy: Path, dozen: Path) -> None:
    (copy / "manifest.json").unlink()
    (copy / "00001.done.json").unlink()
    (copy / "00002.tar").write_bytes(b"torn")
    (copy / "00000.tar.tmp").write_bytes(b"half")
    untouched = (copy / "00000.tar").stat().st_mtime_ns
    write(copy)
    assert contents(copy) == contents(dozen)
    assert (copy / "00000.tar").stat().st_mtime_ns == untouched


def test_a_finished_set_is_never_made_into_another(copy: Path) -> None:
    before = contents(copy)
    for px, source in ((24, TWELVE), (PX, OpenMoji(limit=5, val_fraction=0.08))):
        with pytest.raises(ValueError, match="holds a finished data set of other settings"):
            write(copy, px, source)
    assert contents(copy) == before


def test_a_lost_shard_is_made_again_only_as_it_was(copy: Path) -> None:
    manifest = read_manifest(copy)
    manifest["shards"][1]["sha256"] = "0" * 64  # as if another version had drawn it
    (copy / "manifest.json").write_text(json.dumps(manifest))
    (copy / "00001.tar").unlink()
    with pytest.raises(ValueError, match=r"00001\.tar: this machine draws other bytes than those that are lost"):
        write(copy)
    assert not (copy / "00001.tar").exists() and read_manifest(copy) == manifest


def test_a_key_that_webdataset_would_cut_is_refused() -> None:
    for key in ("a.b", "a/b", ""):
        with pytest.raises(ValueError, match=f"the key {key!r} cannot be stored"):
            pack([(key, b"png", b"txt", b"{}")])


@pytest.mark.parametrize("name", ["00001.tar", "00001.idx.npy"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damage_is_named_and_mended(copy: Path, dozen: Path, name: str, damage: str) -> None:
    path = copy / name
    data = bytearray(path.read_bytes())
    data[-10 if name.endswith("npy") else 700] ^= 1
    path.unlink()
    if damage != "gone":
        path.write_bytes(data if damage == "flipped" else data[:-100])
    with pytest.raises(ValueError, match=name):
        verify_dataset(copy)
    path.unlink(missing_ok=True)
    write(copy)
    assert contents(copy) == contents(dozen)


@pytest.mark.parametrize("field", FIELDS)
def test_a_wrong_field_is_named(copy: Path, field: str) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, field: None}))
    with pytest.raises(ValueError, match=f"'{field}'"):
        read_manifest(copy)


def test_wrong_shard_entries_are_named(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    changes: list[tuple[dict[str, Any], str]] = [({"bytes": "1"}, "bytes"), ({"file": "../x.tar"}, "file")]
    for change, field in [*changes, ({"samples": True}, "samples")]:
        shards = [{**manifest["shards"][0], **change}, *manifest["shards"][1:]]
        (copy / "manifest.json").write_text(json.dumps({**manifest, "shards": shards}))
        with pytest.raises(ValueError, match=rf"shards\[0\]\.{field}"):
            read_manifest(copy)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1', "\x00"])
def test_no_manifest_no_dataset(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        read_manifest(copy)


def test_bad_input_is_refused(tmp_path: Path) -> None:
    def nothing(done: int, total: int) -> None: ...

    with pytest.raises(ValueError, match="'nowhere'"):
        write_openmoji(TWELVE, "nowhere", "x", PX, tmp_path, PER_SHARD, 1, nothing)
    with pytest.raises(ValueError, match="at least 1"):
        write_openmoji(TWELVE, "train", "x", 0, tmp_path, PER_SHARD, 1, nothing)


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be made"):
        write(tmp_path / "file" / "train")
    with pytest.raises(ValueError, match=r"cannot be written: No such file or directory\. Free some space"):
        write_file(tmp_path / "missing" / "x", b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "00000.tar.tmp").symlink_to("/dev/full")
    with pytest.raises(ValueError, match=r"00000\.tar cannot be written: No space left"):
        write_file(tmp_path / "00000.tar", b"data")
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import sys
from pathlib import Path
from preprocessing.shards import write_openmoji
from preprocessing.openmoji import OpenMoji
if __name__ == "__main__":
    source = OpenMoji(limit=int(sys.argv[2]), val_fraction=0.08)
    write_openmoji(source, "train", "killed", 48, Path(sys.argv[1]), 4, 2, lambda done, total: None)
"""


@pytest.mark.kills
def test_killed_at_any_moment_then_the_same_bytes(tmp_path: Path) -> None:
    """A SIGKILL once 0, 1, 3 … shards are there; the workers die too; the rerun keeps what was done."""
    script = tmp_path / "write.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    folder, count = tmp_path / "killed", "60"
    for shards in (0, 2, 5):
        process = subprocess.Popen(
            [sys.executable, str(script), str(folder), count], env=environment, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and len(list(folder.glob("*.tar*"))) < shards:
            time.sleep(0.005)
        if shards == 0:
            time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (folder / "manifest.json").exists()
        _wait_for_silence(folder)
        kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.done.json")}
    source = OpenMoji(limit=60, val_fraction=0.08)
    write_openmoji(source, "train", "killed", 48, folder, 4, 1, lambda done, total: None)
    assert kept and all(path.stat().st_mtime_ns == time_ns for path, time_ns in kept.items())
    verify_dataset(folder)
    write_openmoji(source, "train", "killed", 48, tmp_path / "whole", 4, 1, lambda done, total: None)
    assert contents(folder) == contents(tmp_path / "whole")


def _wait_for_silence(folder: Path) -> None:
    """Until no worker writes any more; they end with their parent."""
    before, deadline = None, time.time() + 10
    while (now := sorted(p.name for p in folder.glob("*"))) != before:
        assert time.time() < deadline, "the workers outlived their parent"
        before = now
        time.sleep(0.5)
