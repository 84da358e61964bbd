"""`mdm data` and `mdm embed` killed at random moments: python benchmarks/data_kills.py [KILLS, default 30] [SEED]

In turn the downloader, the packer, the extractor of frames and the embedder: SIGKILL, of the process alone or of its
group. Then nothing of it may live on, and the same command, or two parts of it at once, must finish the rest: what was
finished is not touched, and every digest is that of a run which nobody killed. Writes results/DATE-data-kills.md; exits
with 1 where one failed.
"""

import datetime
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from hostile_list import PictureServer, encoded, photograph  # noqa: E402
from mdm.run.job import commit, cpu_name  # noqa: E402
from preprocessing.sources.motion import make_motion_videos  # noqa: E402

ENDS_S = 30.0  # within which everything must be gone: who imports torch notices late


@dataclass
class Road:
    """A command, and what it makes when nobody kills it."""

    name: str
    words: list[str]
    begins_with: Path | None = None  # the MDM_HOME that it begins with
    digests: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def start(home: Path, words: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "MDM_HOME": str(home), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, str(ROOT / "tests" / "data_command.py"), *words]
    with (home / "log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def alive(home: Path) -> list[str]:
    """The processes that were started for this MDM_HOME and are still there."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MDM_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline())[:100])
        except psutil.Error:
            continue
    return found


def outliving(home: Path) -> list[str]:
    """Those that are there for long after their parent has ended."""
    until = time.monotonic() + ENDS_S
    while (left := alive(home)) and time.monotonic() < until:
        time.sleep(0.1)
    return left


def digests(home: Path) -> dict[str, str]:
    """Of every split, tier and set of caption states."""
    found = sorted((home / "datasets").rglob("manifest.json"))
    return {str(path.relative_to(home)): json.loads(path.read_text())["digest"] for path in found}


def finished(home: Path) -> dict[str, int]:
    """The files of the shards that have their markers, and when they were written; a set's folder loses its .part."""
    times = {}
    for marker in (home / "datasets").rglob("*.done.json"):
        stem = marker.name.removesuffix(".done.json")
        for path in marker.parent.glob(f"{stem}.*"):
            if path.suffix != ".tmp":
                times[str(path.relative_to(home)).replace(".part/", "/")] = path.stat().st_mtime_ns
    return times


def kill(road: Road, home: Path, after_s: float, group: bool, parts: bool) -> tuple[str, int]:
    """What is wrong after a kill and the same command again, or two parts of it at once, "" if nothing; and how many
    files were finished before.
    """
    process = start(home, road.words)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    left = outliving(home)
    before = finished(home)
    if left:
        return f"lives on: {len(left)}, {left[-1]}", len(before)
    again = [[*road.words, "--part", f"{i}/2"] for i in (1, 2)] if parts else [road.words]
    codes = [process.wait() for process in [start(home, words) for words in again]]
    if any(codes):
        return f"again: {codes}, {(home / 'log').read_text().splitlines()[-1]}", len(before)
    after = finished(home)
    touched = [name for name, when in before.items() if after.get(name) != when]
    if touched:
        return f"made again: {touched[0]}", len(before)
    if digests(home) != road.digests:
        return "other digests", len(before)
    return f"lives on: {left[-1]}" if (left := outliving(home)) else "", len(before)


def roads(folder: Path, server: str) -> list[Road]:
    """The four commands, each run once."""
    pictures, clips = folder / "pictures", folder / "clips"
    pictures.mkdir()
    for number in range(200):
        (pictures / f"p{number:03d}.jpg").write_bytes(encoded(photograph(number)))
    make_motion_videos(clips, 60, 64)
    kinds = ("photo", "photo", "photo", "odd")  # the last: not there
    lines = [f"http://{server}/{kinds[i % 4]}/{i}.jpg\ta ramp, {i}\n" for i in range(200)]
    (folder / "list.tsv").write_text("".join(lines))
    packed = folder / "reference-packer"
    found = [
        Road("downloader", ["data", "cc12m", "--source", str(folder / "list.tsv"), "--allow", server]),
        Road("packer", ["data", "mine", "--source", str(pictures)]),
        Road("extractor", ["data", "videos", "--source", str(clips)]),
        Road("embedder", ["embed", "tiny", "--set", "data.name=mine", "--set", "data.val_fraction=0"], packed),
    ]
    for road in found:
        home = folder / f"reference-{road.name}"
        if road.begins_with:
            shutil.copytree(road.begins_with, home, symlinks=True)
        home.mkdir(exist_ok=True)
        begun = time.monotonic()
        if start(home, road.words).wait() != 0:
            raise SystemExit(f"{road.name}: {(home / 'log').read_text()}")
        road.seconds, road.digests = time.monotonic() - begun, digests(home)
    return found


def main(options: list[str]) -> int:
    kills, seed = map(int, [*options, *("30", "0")[len(options) :]])
    draw, failed = random.Random(seed), 0
    lines = [
        "| killed | what | after | of | files finished by then | then | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name, PictureServer() as server:
        folder = Path(name)
        made = roads(folder, server.name)
        for number in range(kills):
            road, group, parts = made[number % len(made)], draw.random() < 0.5, draw.random() < 0.5
            home, after_s = folder / f"kill-{number}", draw.uniform(0, road.seconds)
            if road.begins_with:
                shutil.copytree(road.begins_with, home)
            home.mkdir(exist_ok=True)
            wrong, files = kill(road, home, after_s, group, parts)
            failed += bool(wrong)
            what = "the group" if group else "the process"
            then = "two parts at once" if parts else "the same command"
            when = f"{after_s:.1f} s | {road.seconds:.1f} s"
            lines.append(f"| {road.name} | {what} | {when} | {files} | {then} | {wrong or 'PASS'} |")
            print(lines[-1], flush=True)
            shutil.rmtree(home)
    today = datetime.date.today().isoformat()
    head = [
        f"# The data road killed, {today}",
        "",
        f"`python benchmarks/data_kills.py {kills} {seed}`: {failed} failed",
    ]
    head += [f"Commit {commit(ROOT)}, {cpu_name()}, {os.cpu_count()} cores.", ""]
    out = ROOT / "benchmarks" / "results" / f"{today}-data-kills.md"
    out.write_text("\n".join([*head, *lines]) + "\n")
    print(out.read_text())
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
