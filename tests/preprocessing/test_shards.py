"""Shards of a source: the same bytes every time, made once, and named where they are damaged."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from drawn import PIXELS, Inline, recipe, write_drawings
from preprocessing.items import Item, Place
from preprocessing.manifest import FIELDS, digest, read_manifest, verify_dataset, write_file
from preprocessing.pack import making
from preprocessing.pack.rows import ROWS
from preprocessing.pack.shards import Shard, TarFile, Tier, _bytes, _sample
from preprocessing.sources.openmoji import OpenMoji

TWELVE = OpenMoji(limit=13, val_fraction=0.08)
PX = 16


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "ProcessPoolExecutor", Inline)


def write(folder: Path, px: int = PX) -> list[int]:
    """Write both splits in shards of four into the folder above -> what was reported as progress."""
    seen: list[int] = []
    write_drawings(folder.parent, TWELVE, px, progress=lambda done, _: seen.append(done))
    return seen


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.iterdir()) if not path.name.endswith(".parquet"))  # these hold times
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def dozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dataset; not to be written to."""
    folder = tmp_path_factory.mktemp("dozen") / "train"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "ProcessPoolExecutor", Inline)
        seen = write(folder)
    assert seen[-1] == len(TWELVE.drawings) and len(seen) == 1 + len(list(folder.parent.glob("*/*.tar"))) >= 4
    return folder


@pytest.fixture
def copy(dozen: Path, tmp_path: Path) -> Path:
    return shutil.copytree(dozen.parent, tmp_path / "set") / "train"


def test_same_bytes_again(dozen: Path, tmp_path: Path) -> None:
    write(tmp_path / "again" / "train")
    assert contents(tmp_path / "again" / "train") == contents(dozen)


def test_done_is_not_redone(copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    write(copy)
    assert {path: path.stat().st_mtime_ns for path in copy.iterdir()} == before


def test_the_manifest_holds_what_is_there(dozen: Path) -> None:
    manifest = read_manifest(dozen)
    assert manifest["samples"] == len(TWELVE.split("train"))
    assert manifest["digest"] == digest({k: v for k, v in manifest.items() if k != "digest"})
    assert manifest["licence"] == "CC-BY-SA-4.0"
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
            stored = spans[:, [2, 0, 1]].reshape(-1, 2)  # webdataset writes json, png, txt
            for member, (offset, length) in zip(members, stored, strict=True):
                assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
                data = tar.extractfile(member)
                assert data is not None and os.pread(file.fileno(), int(length), int(offset)) == data.read()
            assert [m.name.rpartition(".")[2] for m in members[:3]] == ["json", "png", "txt"]


def test_only_what_is_missing_is_made(copy: Path, dozen: Path) -> None:
    (copy / "manifest.json").unlink()
    (copy / "00001.done.json").unlink()
    (copy / "00002.tar").write_bytes(b"torn")
    (copy / "00000.tar.tmp").write_bytes(b"half")
    untouched = (copy / "00000.tar").stat().st_mtime_ns
    write(copy)
    assert contents(copy) == contents(dozen)
    assert (copy / "00000.tar").stat().st_mtime_ns == untouched


def test_a_lost_shard_is_made_again_only_as_it_was(copy: Path) -> None:
    manifest = read_manifest(copy)
    manifest["shards"][1]["sha256"] = "0" * 64  # as if another version had drawn it
    (copy / "manifest.json").write_text(json.dumps(manifest))
    (copy / "00001.tar").unlink()
    with pytest.raises(ValueError, match=r"00001\.tar: what is made now differs from what is lost"):
        write(copy)
    assert not (copy / "00001.tar").exists() and read_manifest(copy) == manifest


def test_a_key_that_webdataset_would_cut_is_refused(tmp_path: Path) -> None:
    for key in ("a.b", "a/b", ""):
        with TarFile(tmp_path / "x.tar") as tar, pytest.raises(ValueError, match=f"the key {key!r} cannot be stored"):
            tar.add(key, {"png": b"png", "txt": b"txt", "json": b"{}"})
    assert list(tmp_path.iterdir()) == []


def test_long_keys_and_every_script_are_stored_as_they_are(tmp_path: Path) -> None:
    keys = ["x" * 180, "größe %?#&", "写真", "a b"]
    with TarFile(tmp_path / "x.tar") as tar:
        for key in keys:
            tar.add(key, {"png": b"png", "txt": key.encode(), "json": b"{}"})
        tar.finish()
    samples = list(webdataset.WebDataset(f"file:{tmp_path}/x.tar", shardshuffle=False))
    assert [s["__key__"] for s in samples] == keys == [s["txt"].decode() for s in samples]


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


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be made"):
        write(tmp_path / "file" / "train")
    with pytest.raises(ValueError, match=r"cannot be written: No such file or directory\. "):
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
from drawn import write_drawings
from preprocessing.sources.openmoji import OpenMoji
if __name__ == "__main__":
    write_drawings(Path(sys.argv[1]), OpenMoji(limit=60, val_fraction=0.08), 48, name="killed")
"""


@pytest.mark.kills
def test_killed_at_any_moment_then_the_same_bytes(tmp_path: Path) -> None:
    """A SIGKILL once 0, 2, 5 shards are there; the workers die too; the rerun keeps what was done."""
    script = tmp_path / "write.py"
    script.write_text(SCRIPT)
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}
    folder = tmp_path / "killed" / "train"
    for shards in (0, 2, 5):
        process = subprocess.Popen(
            [sys.executable, str(script), str(folder.parent)], env=environment, stderr=subprocess.DEVNULL
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
    write_drawings(folder.parent, source, 48, name="killed")
    assert kept and all(path.stat().st_mtime_ns == time_ns for path, time_ns in kept.items())
    verify_dataset(folder)
    write_drawings(tmp_path / "whole", source, 48, name="killed")
    assert contents(folder) == contents(tmp_path / "whole" / "train")


def _wait_for_silence(folder: Path) -> None:
    """Until no worker writes any more; they end with their parent."""
    before, deadline = None, time.time() + 10
    while (now := sorted(p.name for p in folder.glob("*"))) != before:
        assert time.time() < deadline, "the workers outlived their parent"
        before = now
        time.sleep(0.5)


@pytest.mark.parametrize("text", ["{}", '{"inputs": 1}', None])
def test_a_torn_marker_is_none_and_its_shard_is_made_again(copy: Path, dozen: Path, text: str | None) -> None:
    marker = copy / "00001.done.json"
    inputs = json.loads(marker.read_text())["inputs"]
    marker.write_text(json.dumps({"inputs": inputs}) if text is None else text)
    (copy / "manifest.json").unlink()
    write(copy)
    assert contents(copy) == contents(dozen)


@pytest.mark.parametrize("damage", ["deflated", "encrypted", "gone"])
def test_a_member_of_a_zip_that_cannot_be_read_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.zip"
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        archive.writestr("one.jpg", b"pixels " * 100)
    data = bytearray(path.read_bytes())
    if damage == "deflated":
        data[37:45] = b"\xff" * 8  # behind the header of 30 bytes and the name
    if damage == "encrypted":
        data[6] |= 1
        data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    item = Item("one", "a caption", place=Place(path, member="two.jpg" if damage == "gone" else "one.jpg"))
    with pytest.raises(ValueError, match=r"a\.zip: (one|two)\.jpg cannot be read any more \("):
        _bytes(item, None)


def test_a_video_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (video := tmp_path / "v.mp4").write_bytes(b"no video, 22 bytes" + b"\0\0\0\0")
    clips = recipe(TWELVE, clips=True, tiers=(Tier(16, "jpg"),))
    monkeypatch.setattr(Place, "read", None)
    row, made = _sample(Item("v", "a clip", place=Place(video, length=22)), None, clips, PIXELS)
    assert row["outcome"] == "video: not a video" and not made
    assert (row["bytes"], row["sha256"]) == (22, hashlib.sha256(video.read_bytes()).hexdigest())
    with pytest.raises(ValueError, match=r"v\.mp4 cannot be read any more \(22 bytes, it was listed with 21\)"):
        _sample(Item("v", "a clip", place=Place(video, length=21)), None, clips, PIXELS)


def test_what_other_rules_refused_is_asked_again(copy: Path) -> None:
    shard = Shard(copy.parent, recipe(TWELVE), "train", 0)
    assert shard.entries() is not None and shard.refused(("127.0.0.1:1",)) == 0
    rows = pq.read_table(shard.rows).to_pylist()
    rows[1] |= {"outcome": "refused: address", "url": "http://127.0.0.1:1/x.jpg"}
    rows[2] |= {"outcome": "http 404", "url": "http://127.0.0.1:1/y.jpg"}
    pq.write_table(pa.Table.from_pylist(rows, ROWS), shard.rows)
    assert shard.refused(()) == shard.refused(("127.0.0.1:2",)) == 0 and shard.refused(("127.0.0.1:1",)) == 1
    shard.forget()
    assert shard.entries() is None
