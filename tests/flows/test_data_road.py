"""`mdm data` from source to shards, through the command line's function: the web at its worst, then the rest."""

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import webdataset
from imageio_ffmpeg import get_ffmpeg_exe
from pyarrow import parquet

import preprocessing.fetch.download
import preprocessing.pack.making
from data_command import shrink
from drawn import Inline
from flows.cli import main
from hostile_list import HOSTILE, PictureServer, encoded, photograph, write_list
from inputs import write_tar
from mdm.data.shards import Shards
from preprocessing.catalogue import CATALOGUE, find
from preprocessing.manifest import read_manifest
from preprocessing.sets import SPLITS, newest_set
from preprocessing.sources.motion import make_motion_videos

COUNT = 200


def run(*words: object) -> int:
    return main(["data", *map(str, words)])


def set_of(home: Path, name: str) -> Path:
    return newest_set(home / "datasets", name)


def card_of(folder: Path) -> Any:
    return json.loads((folder / "card.json").read_text())


def digests(folder: Path) -> dict[str, str]:
    """Of every split and tier."""
    found = sorted(folder.rglob("manifest.json"))
    return {str(path.relative_to(folder)): json.loads(path.read_text())["digest"] for path in found}


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def members(split: Path) -> dict[str, dict[str, bytes]]:
    """Key -> extension -> bytes, as plain webdataset reads a split's tars."""
    tars = [str(path) for path in sorted(split.glob("*.tar"))]
    found: dict[str, dict[str, bytes]] = {}
    for sample in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False):
        assert sample["__key__"] not in found
        found[sample["__key__"]] = {name: data for name, data in sample.items() if not name.startswith("__")}
    return found


@pytest.fixture(scope="module")
def small() -> Iterator[pytest.MonkeyPatch]:
    """Shards of 20, five seconds of patience, and no pool of processes, which take seconds each to start."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [*CATALOGUE, "mine"]:
            patch.setitem(CATALOGUE, name, find(name))
        patch.setattr(preprocessing.fetch.download, "Policy", preprocessing.fetch.download.Policy)
        patch.setattr(preprocessing.pack.making, "ProcessPoolExecutor", Inline)
        shrink()
        yield patch


@pytest.fixture
def home(small: pytest.MonkeyPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MDM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@dataclass
class Web:
    home: Path
    words: list[object]  # of the command
    server: PictureServer
    expected: Counter[str]
    folder: Path


@pytest.fixture(scope="module")
def web(small: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """CC12M of a server that misbehaves, made once."""
    home = tmp_path_factory.mktemp("web")
    with PictureServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MDM_HOME", str(home))
        expected = write_list(home / "list.tsv", server.name, COUNT)
        words = ["cc12m", "--source", home / "list.tsv", "--limit", COUNT, "--allow", server.name]
        assert run(*words) == 0
        yield Web(home, words, server, expected, set_of(home, "cc12m"))


@pytest.fixture
def web_home(web: Web, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MDM_HOME", str(web.home))
    return web.home


def test_the_web_is_counted_to_the_number_and_both_tiers_hold_the_same(
    web: Web, web_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = card_of(web.folder)
    assert {outcome: line["items"] for outcome, line in card["outcomes"].items()} == dict(web.expected)
    assert card["listed"] == COUNT and sum(card["samples"].values()) == web.expected["ok"]
    assert card["equal_bytes"]["groups"] == 1
    assert any("fewer than 8" in note for note in card["notes"])
    listed = web.folder.parent.parent / "list.tsv"
    lines = listed.read_bytes().split(b"\n")
    for split in SPLITS:
        crops, originals = (members(folder) for folder in (web.folder / split, web.folder / split / "originals"))
        assert list(crops) == list(originals) and len(crops) == card["samples"][split]
        for key, crop in crops.items():
            url, caption = lines[int(key)].split(b"\t", 1)
            assert set(crop) == {"jpg", "txt", "json"} and crop["txt"] == originals[key]["txt"]
            assert crop["txt"] == caption.removesuffix(b"\r") and json.loads(crop["json"])["url"].encode() == url
    assert HOSTILE in {crop["txt"].decode() for split in SPLITS for crop in members(web.folder / split).values()}
    assert run("cc12m", "--verify", "--decode") == 0
    before, hits = times(web.folder), web.server.hits.copy()
    capsys.readouterr()
    assert run(*web.words) == 0
    assert (times(web.folder), web.server.hits) == (before, hits)
    shown = capsys.readouterr().out
    assert f"{web.expected['ok'] / COUNT:.1%} of 200 listed" in shown and "4 refused: scheme" in shown
    assert "\x1b" not in shown and "\u202e" not in shown
    assert not (web.folder / "raw").exists() and not list(web.folder.rglob("*.tmp"))


def test_each_stage_trains_from_the_tier_that_reaches_it(web: Web) -> None:
    small, middle, large = (Shards(web.folder / "train", px=px) for px in (64, 256, 1024))
    assert (small.tier, middle.tier, large.tier) == (
        web.folder / "train",
        web.folder / "train",
        web.folder / "train" / "originals",
    )
    for number in range(0, len(small), 20):
        sides = [shards[number].image.shape for shards in (small, middle, large)]
        assert sides == [(3, 256, 256), (3, 256, 256), (3, 1024, 1024)]
        assert small[number].key == large[number].key and small[number].caption == large[number].caption
        coarse = [
            shards[number].image.float().reshape(3, 16, side // 16, 16, side // 16).mean((2, 4))
            for shards, side in ((small, 256), (large, 1024))
        ]
        assert (coarse[0] - coarse[1]).abs().mean() < 3  # the same picture


def test_what_is_removed_goes_from_both_tiers(web: Web, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(web.home, home)
    folder = set_of(home, "cc12m")
    key = Shards(folder / "train").key(3)
    (home / "keys").write_text(f"{key}\n")
    before = members(folder / "train" / "originals")[key]
    assert run("cc12m", "--remove", home / "keys") == 0
    for tier in (folder / "train", folder / "train" / "originals"):
        assert key not in members(tier) and len(members(tier)) == read_manifest(folder / "train")["samples"] - 1
        assert before["jpg"] not in b"".join(path.read_bytes() for path in tier.glob("*.tar"))
    assert run("cc12m", "--verify", "--decode") == 0
    assert run(*web.words) == 0  # the same command: it stays removed
    assert key not in members(folder / "train" / "originals")
    assert digests(folder) == digests(web.folder)  # of the set as it was made


def pictures(folder: Path, count: int) -> Path:
    """Photographs with captions beside them."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"p{number:03d}.jpg").write_bytes(encoded(photograph(number)))
        (folder / f"p{number:03d}.txt").write_text(f"a ramp, {number}")
    return folder


@pytest.mark.parametrize("order", [[(1, 3), (2, 3), (3, 3)], [(3, 3), (1, 3), (2, 3)], [(2, 3), (1, 1)]])
def test_parts_in_any_order_make_the_same_set(
    home: Path, tmp_path: Path, order: list[tuple[int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    mine = ["mine", "--source", pictures(tmp_path / "mine", 100)]
    for place, (number, of) in enumerate(order):
        capsys.readouterr()
        assert run(*mine, "--part", f"{number}/{of}") == 0
        said = capsys.readouterr().out
        assert ("this part is made" in said) == (place < len(order) - 1)
    assert not list((home / "datasets").glob("*.part"))
    made = digests(set_of(home, "mine"))
    os.environ["MDM_HOME"] = str(tmp_path / "again")
    assert run(*mine) == 0
    assert digests(set_of(tmp_path / "again", "mine")) == made


def test_a_part_says_which_are_missing(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("mine", "--source", pictures(tmp_path / "mine", 100), "--part", "2/3") == 0
    said = "this part is made; 4 shards are missing (3 of part 1/3, 1 of part 3/3): whoever makes the last of them"
    assert said in capsys.readouterr().out  # 5 shards to train on, 1 held out


def test_equal_pictures_are_counted_and_dropped_where_that_is_asked_for(home: Path, tmp_path: Path) -> None:
    source = pictures(tmp_path / "mine", 60)
    for number in range(5):
        shutil.copy(source / "p059.jpg", source / f"q{number}.jpg")
        (source / f"q{number}.txt").write_text("a placeholder")
    assert run("mine", "--source", source) == 0
    whole = set_of(home, "mine")
    assert card_of(whole)["equal_bytes"]["beyond_the_first"] == 5 and sum(card_of(whole)["samples"].values()) == 65
    assert run("mine", "--source", source, "--drop-duplicates") == 0
    fewer = set_of(home, "mine")
    card = card_of(fewer)
    assert fewer != whole and sum(card["samples"].values()) == 60
    assert card["outcomes"]["dropped: an earlier one has its bytes"]["items"] == 5
    assert {card["equal_bytes"][name] for name in ("groups", "beyond_the_first", "in_both")} == {0}
    kept = [key for split in SPLITS for key in members(fewer / split)]
    assert len(kept) == 60 and len({"p059", *(f"q{i}" for i in range(5))} & set(kept)) == 1
    assert sum(len(Shards(fewer / split).present()) for split in SPLITS) == 60
    assert run("mine", "--verify", "--decode") == 0


def test_captions_are_embedded_in_parts_too(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("mine", "--source", pictures(tmp_path / "mine", 60)) == 0
    folder, embed = set_of(home, "mine"), ["embed", "tiny", "--set", "data.name=mine"]
    assert main([*embed, "--part", "2/2"]) == 0
    assert "this part is made; 3 shards are missing: whoever" in capsys.readouterr().out  # 2 to train on, 1 held out
    assert not list(folder.rglob("text-*/manifest.json"))
    assert main([*embed, "--part", "1/2"]) == 0
    assert "missing" not in capsys.readouterr().out and len(list(folder.rglob("text-*/manifest.json"))) == 2
    before = times(folder)
    assert main(embed) == 0 and times(folder) == before


def mirror(folder: Path, count: int) -> Path:
    """Tars as img2dataset leaves them: members in its order, keys with the tar's number, addresses in .json."""
    folder.mkdir()
    for tar in range(2):
        entries: list[tuple[str, bytes | None]] = []
        for i in range(count // 2):
            number = tar * count // 2 + i
            size = (900, 512) if number % 4 else (300, 200)
            meta = {"url": f"http://example.org/{number}.jpg", "caption": f"a ramp, {number}", "sha256": "x"}
            key = f"{tar:05d}{i:04d}"
            entries += [
                (f"{key}.jpg", encoded(photograph(number, *size))),
                (f"{key}.json", json.dumps(meta).encode()),
                (f"{key}.txt", meta["caption"].encode()),
            ]
        write_tar(folder / f"{tar:05d}.tar", entries)
    return folder


def test_a_mirror_is_split_by_address_and_its_plan_says_how_large_its_pictures_are(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = mirror(tmp_path / "cc12m", 60)
    assert run("cc12m", "--source", source, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "listed: 60 (52 to train on, 8 held out)" in said and "100% below 1024 px" in said
    share = int(said.partition("% below 256,")[0].rpartition(" ")[2])
    assert 0 < share < 60 and "smaller pictures are enlarged" in said  # one in four
    assert not list((home / "datasets").glob("*"))
    assert run("cc12m", "--source", source) == 0
    folder = set_of(home, "cc12m")
    urls = {key: json.loads(sample["json"])["url"] for key, sample in members(folder / "train" / "originals").items()}
    assert len(urls) == 52 and len(set(urls.values())) == 52
    held_out = {json.loads(sample["json"])["url"] for sample in members(folder / "val").values()}
    assert len(held_out) == 8 and not held_out & set(urls.values())
    assert run("cc12m", "--source", f"{source}/*.tar") == 0  # the same tars, as a pattern: nothing to do
    assert len(list((home / "datasets").glob("cc12m-*[0-9a-f]"))) == 1
    assert run("cc12m", "--verify", "--decode") == 0


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve good videos, and what else lies in people's folders, with the reason why it cannot be used."""
    folder = tmp_path_factory.mktemp("clips")
    make_motion_videos(folder, 12, 32)
    (folder / "captions.csv").unlink()
    (folder / "motion.json").unlink()
    good = (folder / "00000.mp4").read_bytes()
    for name, data in BROKEN.items():
        (folder / f"{name}.mp4").write_bytes(good[: len(good) // 2] if data is None else data)
    short = ["-f", "lavfi", "-i", "testsrc=size=64x64:rate=5:duration=2", "-pix_fmt", "yuv420p"]
    subprocess.run([get_ffmpeg_exe(), "-loglevel", "error", *short, str(folder / "short.mp4")], check=True)
    return folder


BROKEN = {"cut": None, "text": b"<html>", "empty": b"", "playlist": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/x.ts\n"}
OUTCOMES = {  # of clips and captions() together
    "ok": 11,
    "video: truncated": 1,
    "video: not a video": 2,
    "video: empty": 1,
    "video: fewer than 16 frames": 1,
    "not UTF-8": 1,
    "caption empty": 1,
}


def captions(clips: Path) -> list[tuple[str, bytes]]:
    """The first good video's caption is in another encoding, and one row more names an empty one."""
    names = sorted(path.name for path in clips.glob("*.mp4"))
    special = {"00000.mp4": b"caf\xe9", "odd.mp4": b""}
    return [(name, special.get(name, f"a clip, {name}".encode())) for name in names]


def write_csv(path: Path, rows: list[tuple[str, bytes]]) -> None:
    path.write_bytes(b"file,caption\n" + b"".join(name.encode() + b',"' + text + b'"\n' for name, text in rows))


def write_jsonl(path: Path, rows: list[tuple[str, bytes]]) -> None:
    path.write_bytes(b"".join(b'{"video": "%s", "text": "%s"}\n' % (name.encode(), text) for name, text in rows))


def write_parquet(path: Path, rows: list[tuple[str, bytes]]) -> None:
    columns = {"path": [name for name, _ in rows], "caption": [t.decode("utf-8", "ignore").rstrip() for _, t in rows]}
    parquet.write_table(pyarrow.table(columns), path)


@pytest.mark.parametrize("write", [write_csv, write_jsonl, write_parquet])
def test_videos_with_any_table_become_clips_and_the_others_are_counted(
    home: Path, tmp_path: Path, clips: Path, write: Callable[[Path, list[tuple[str, bytes]]], None]
) -> None:
    folder = shutil.copytree(clips, tmp_path / "clips")
    shutil.copy(folder / "00001.mp4", folder / "odd.mp4")
    write(folder / f"captions.{write.__name__.removeprefix('write_')}", captions(folder))
    assert run("videos", "--source", folder) == 0
    made = set_of(home, "videos")
    expected = (
        OUTCOMES if write is not write_parquet else {k: n for k, n in OUTCOMES.items() if k != "not UTF-8"} | {"ok": 12}
    )
    assert {outcome: line["items"] for outcome, line in card_of(made)["outcomes"].items()} == expected
    assert run("videos", "--verify", "--decode") == 0
    shards = Shards(made / "train", px=64)
    clip = shards[0]
    assert clip.image.shape == (16, 3, 256, 256) and clip.caption == f"a clip, {clip.key}.mp4"
    frames = clip.image.float()
    assert min((frames[i] - frames[i + 1]).abs().mean() for i in range(15)) > 0.5  # it moves
    before = times(made)
    assert run("videos", "--source", folder) == 0
    assert times(made) == before


def test_webvid_reads_its_own_table(home: Path, tmp_path: Path, clips: Path) -> None:
    folder = tmp_path / "webvid"
    shutil.copytree(clips, folder / "000_050")
    rows = [f"{n:05d},https://example.org/{n}.mp4,PT00H00M03S,000_050,a clip {n}" for n in range(14)]  # two are missing
    (folder / "results_10M_val.csv").write_text(
        "\n".join(["videoid,contentUrl,duration,page_dir,name", *rows, rows[0]])
    )
    assert run("webvid", "--source", folder) == 0
    made = set_of(home, "webvid")
    card = card_of(made)
    assert {outcome: line["items"] for outcome, line in card["outcomes"].items()} == {"ok": 12, "no such video": 2}
    assert any("repeat a videoid" in note for note in card["notes"])
    meta = json.loads(next(iter(members(made / "train").values()))["json"])
    assert meta["contentUrl"].startswith("https://example.org/") and len(meta["times_s"]) == 16


def test_motion_comes_from_the_packages_alone(home: Path) -> None:
    assert run("openmoji-motion", "--limit", 12, "--dry-run") == 0
    assert not home.exists()
    assert run("openmoji-motion", "--limit", 12) == 0
    made = set_of(home, "openmoji-motion")
    assert card_of(made)["samples"] == {"train": 4, "val": 8}
    clip = Shards(made / "train", px=64)[0]
    assert clip.image.shape == (16, 3, 64, 64) and any(
        word in clip.caption for word in ("moving", "zooming", "turning")
    )
