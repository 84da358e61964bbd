"""Three stages in two processes, killed five times, and the same left alone: python benchmarks/kill_and_resume.py

Real torchrun, SIGKILL to the whole group at random moments, the stages 8 -> 16 -> 32 px grown from one another with the
optimizer carried. Writes results/DATE-kill-and-resume.md: the digests of the final state of both runs.
"""

import contextlib
import datetime
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from mdm.files import sha256, write_json  # noqa: E402
from mdm.run.attempts import newest_attempt  # noqa: E402
from mdm.run.checkpoint import newest_checkpoint  # noqa: E402
from mdm.run.job import Job, commit, cpu_name  # noqa: E402
from mdm.run.torchrun import torchrun  # noqa: E402
from mdm.stage import Start  # noqa: E402
from mdm.structure import to_dict  # noqa: E402
from mdm.training.progressive import start_folder  # noqa: E402
from small import small_job, write_dataset  # noqa: E402

STAGES_KILLED, SEED = (1, 1, 2, 3, 3), 1
NIMG = {1: 640, 2: 480, 3: 320}  # levels -> images


def launch(run: Path, processes: int = 2) -> subprocess.Popen[bytes]:
    with (run / "log.txt").open("ab") as log:
        return subprocess.Popen(torchrun("mdm.train", run, processes), stdout=log, stderr=log)


def kill_after(run: Path, process: subprocess.Popen[bytes], seconds: float) -> None:
    """SIGKILL to torchrun and its trainers (each has a session of its own), so long after these began to train.

    Never before the run's first checkpoint.
    """
    before = newest_attempt(run)
    while process.poll() is None and (newest_attempt(run) == before or not list((run / "checkpoints").glob("nimg-*"))):
        time.sleep(0.01)
    time.sleep(seconds)
    every = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in every:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def train(root: Path, jobs: list[Job], kills: list[tuple[int, float]]) -> tuple[Path, list[str]]:
    """All stages one after the other; ``kills``: (stage, seconds after its start) -> the last stage's folder, a log."""
    told, previous = [], None
    for number, job in enumerate(jobs, 1):
        run = root / str(number)
        run.mkdir(parents=True)
        if previous is not None:
            checkpoint, _ = newest_checkpoint(previous / "checkpoints")
            assert checkpoint is not None
            start = Start(stage=str(number - 1), optimizer="carried")
            start_folder(checkpoint, start, job.model, run / "start", seed=0)
            job = replace(job, init=str(run / "start"))
        write_json(run / "job.json", to_dict(job))
        for _, seconds in (kill for kill in kills if kill[0] == number):
            process, begun = launch(run), time.monotonic()
            kill_after(run, process, seconds)
            newest, _ = newest_checkpoint(run / "checkpoints")
            at = "none" if newest is None else newest.name
            told.append(f"stage {number}: SIGKILL after {time.monotonic() - begun:.1f} s; newest checkpoint {at}")
        if launch(run).wait() != 0:
            raise SystemExit(f"stage {number} failed:\n{(run / 'log.txt').read_text()[-2000:]}")
        previous = run
    assert previous is not None
    return previous, told


def digests(run: Path) -> dict[str, str]:
    checkpoint, _ = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    return {str(p.relative_to(checkpoint)): sha256(p) for p in sorted(checkpoint.rglob("*.safetensors"))}


def main() -> int:
    draw = random.Random(SEED)
    kills = [(stage, draw.random() * 3) for stage in STAGES_KILLED]
    root = Path(tempfile.mkdtemp())
    for split, count in (("train", 40), ("val", 9)):
        write_dataset(root / "data", split, count, 32)
    jobs = [small_job(root / "data", levels, nimg=nimg) for levels, nimg in NIMG.items()]
    whole, _ = train(root / "whole", jobs, [])
    killed, told = train(root / "killed", jobs, kills)
    a, b = digests(whole), digests(killed)
    equal = a == b
    verdict = "equal" if equal else "DIFFERENT"
    today = datetime.date.today().isoformat()
    lines = [
        f"# Killed and resumed, {today}",
        "",
        f"{cpu_name()}, {os.cpu_count()} cores; commit {commit(Path(__file__).parent)}; "
        "`python benchmarks/kill_and_resume.py`",
        "",
        "Three stages (8, 16, 32 px), two processes under torchrun, gloo. One run was left alone, the other one's",
        f"torchrun and trainers got SIGKILL {len(kills)} times. The final states: **{verdict}**, byte for byte.",
        "",
        *(f"- {line}" for line in told),
        "",
        "| file of the last checkpoint | uninterrupted, sha256 | killed and resumed, sha256 |",
        "|---|---|---|",
        *(f"| {name} | {a[name][:16]} | {b.get(name, '-')[:16]} |" for name in a),
    ]
    target = Path(__file__).parent / "results" / f"{today}-kill-and-resume.md"
    target.write_text("\n".join(lines) + "\n")
    shutil.rmtree(root)
    print("\n".join(lines))
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
