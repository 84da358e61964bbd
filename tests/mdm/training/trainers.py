"""Starting trainers in tests, and reading what they leave behind."""

import atexit
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mdm.files import sha256, write_json
from mdm.run.checkpoint import newest_checkpoint
from mdm.run.job import Job
from mdm.structure import to_dict


def prepare(run: Path, job: Job) -> Path:
    run.mkdir()
    write_json(run / "job.json", to_dict(job))
    return run


@functools.cache
def forks() -> subprocess.Popen[str]:
    """The process that all trainers are forked from: it imports torch once."""
    script = str(Path(__file__).with_name("forks.py"))
    server = subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.kill)
    return server


def starts(run: Path, *each: dict[str, Any]) -> list[list[int]]:
    """Exit codes of every start's processes (see forks.py)."""
    server = forks()
    assert server.stdin is not None and server.stdout is not None
    print(json.dumps([str(run), each]), file=server.stdin, flush=True)
    return json.loads(server.stdout.readline())


def outcome(run: Path) -> dict[str, Any]:
    return json.loads((run / "outcome.json").read_text())


def final_state(run: Path) -> dict[str, str]:
    """Digests of weights, EMA and optimizer state of the last checkpoint."""
    checkpoint, _ = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    return {str(p.relative_to(checkpoint)): sha256(p) for p in checkpoint.rglob("*.safetensors")}


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def points(run: Path) -> dict[tuple[int, str], float]:
    """Every point of metrics.jsonl but speeds and machine; each may be there once."""
    found: dict[tuple[int, str], float] = {}
    for point in lines(run):
        for name, value in point["values"].items():
            if not name.startswith(("speed/", "system/")):
                assert (point["nimg"], name) not in found
                found[point["nimg"], name] = value
    return found
