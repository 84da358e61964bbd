"""SIGKILL in what makes data sets: the packer and the embedder.

The downloader's is in tests/preprocessing/test_download.py; thirty at random moments, the extractor's among them, are
benchmarks/data_kills.py.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from data_command import PER_SHARD
from drawn import Inline
from flows.cli import main
from hostile_list import encoded, photograph
from preprocessing.catalogue import CATALOGUE, find
from preprocessing.embed import embed_captions, set_folder
from preprocessing.manifest import read_manifest
from preprocessing.sets import newest_set
from small import fake_encode

TESTS = Path(__file__).parent.parent
pytestmark = pytest.mark.kills


def start(*words: object, **environment: str) -> subprocess.Popen[bytes]:
    paths = f"{TESTS.parent}{os.pathsep}{TESTS}"
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


def marked(folder: Path) -> dict[str, int]:
    """The files of finished shards, whether the set is finished or not, and when they were written."""
    found = {}
    for marker in folder.rglob("*.done.json"):
        for path in marker.parent.glob(f"{marker.name.removesuffix('.done.json')}.*"):
            if path.suffix != ".tmp":
                found[str(path.relative_to(folder)).replace(".part/", "/")] = path.stat().st_mtime_ns
    return found


def test_ctrl_c_is_one_line_and_ends_the_packers_at_once(tmp_path: Path) -> None:
    """It reaches every process of the terminal's group, those that are just being started too."""
    mine, home = tmp_path / "mine", tmp_path / "home"
    mine.mkdir()
    for number in range(60):
        (mine / f"p{number:03d}.jpg").write_bytes(encoded(photograph(number)))
    words = ["data", "mine", "--source", str(mine)]
    with start(TESTS / "data_command.py", *words, MDM_HOME=str(home)) as process:
        children = psutil.Process(process.pid).children
        wait_for(lambda: any(child.memory_info().rss > 25e6 for child in children()))  # one that imports
        under_it = children(recursive=True)
        for status in (
            Path(f"/proc/{worker.pid}/status") for worker in under_it if "spawn_main" in str(worker.cmdline())
        ):
            if status.exists():  # Linux: nothing that runs in it can be interrupted
                assert int(status.read_text().partition("SigBlk:")[2].split()[0], 16) & 1 << (signal.SIGINT - 1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout is not None
        said = process.stdout.read().decode().replace("\r", "\n")
        assert process.wait(10) == 130
    assert said.endswith("mdm: interrupted; the same command goes on from here\n") and "Traceback" not in said
    wait_for(lambda: not [p for p in under_it if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], 5)


def test_a_packer_that_is_killed_goes_on_and_nothing_of_it_lives_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent alone is killed: its workers notice."""
    mine, home = tmp_path / "mine", tmp_path / "home"
    mine.mkdir()
    for number in range(120):
        (mine / f"p{number:03d}.jpg").write_bytes(encoded(photograph(number)))
    words = ["data", "mine", "--source", str(mine)]
    settings = {"MDM_HOME": str(home), "LOKY_MAX_CPU_COUNT": "1"}
    with start(TESTS / "data_command.py", *words, **settings) as process:
        wait_for(lambda: marked(home))
        under_it = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    assert under_it
    wait_for(lambda: not [p for p in under_it if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], 30)
    before = marked(home)
    assert not list((home / "datasets").glob("mine-*/train/manifest.json"))  # it was not done
    monkeypatch.setattr("preprocessing.pack.making.ProcessPoolExecutor", Inline)
    monkeypatch.setitem(CATALOGUE, "mine", replace(find("mine"), per_shard=PER_SHARD))
    found = []
    for place in (home, tmp_path / "whole"):
        monkeypatch.setenv("MDM_HOME", str(place))
        assert main(words) == 0
        found.append(newest_set(place / "datasets", "mine"))
    after = marked(home)
    assert {name: after[name] for name in before} == before and len(after) > len(before)
    assert not list(found[0].rglob("*.tmp"))
    for split in ("train", "val"):
        assert read_manifest(found[0] / split) == read_manifest(found[1] / split)


EMBED = """
import sys, time
from pathlib import Path
from preprocessing.catalogue import CATALOGUE, find
from preprocessing.embed import embed_part
from small import fake_encode

def slowly(captions):
    time.sleep(0.1)
    return fake_encode(captions)

embed_part(Path(sys.argv[1]), "fake", "fake-2", slowly, 8, part=(int(sys.argv[2]), 2))
"""


def test_embedders_that_are_killed_go_on_in_another_number_of_parts(squares: Path, tmp_path: Path) -> None:
    data = shutil.copytree(squares / "train", tmp_path / "train")
    whole = embed_captions(shutil.copytree(data, tmp_path / "whole"), "fake", "fake-2", fake_encode, 8)
    target = set_folder(data, "fake", "half")
    shutil.rmtree(target)  # another encoder's
    with start("-c", EMBED, data, 1) as first, start("-c", EMBED, data, 2) as second:
        wait_for(lambda: marked(target))
        for process in (first, second):
            process.send_signal(signal.SIGKILL)
    before = marked(target)
    assert before and not (target / "manifest.json").exists()
    assert embed_captions(data, "fake", "fake-2", fake_encode, 8) == whole
    after = marked(target)
    assert {name: after[name] for name in before} == before
