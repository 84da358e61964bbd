"""Trainers as forks of one warm process, so that a start takes a tenth of a second.

Reads lines of JSON, [run folder, [start, …]], and answers each with a line: a list of exit codes per start (minus the
signal for a process that was killed). A start is an object; what it does not name has a default:
    world      processes (1), joined over gloo as torchrun's are
    kill       ranks that get ``signal`` (SIGKILL) after ``after_s`` seconds, or once ``images`` are in metrics.jsonl
    options    of the trainer's command line
    poison     [from, to): positions whose noise is NaN, on every rank, or on ``poison_rank`` alone
    full       counts of images at which the disk has no room for a checkpoint
    room_bytes no file may become longer
    group      the signal goes to the whole process group: to the ranks and all processes that they started
    ignore     signals that the processes ignore from the start
    twice      {options}: a second trainer, started when the first has seen ``images``
When one rank has died, the others get ``patience_s`` (10), then SIGKILL, as torchrun does.
"""

import errno
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # by every optimizer, for seconds: once, here

from mdm.config import Model
from mdm.run import checkpoint
from mdm.training import gradients, train


def fork(run: Path, start: dict[str, Any], rank: int, port: int) -> int:
    pid = os.fork()
    if pid:
        os.setpgid(pid, start.get("leader", pid))
        return pid
    for name in ("SIGINT", "SIGHUP"):  # as in a terminal, whatever this process was started by
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    for name in start.get("ignore", ()):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    log = os.open(run / "log.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    world = start.get("world", 1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = 1
    try:
        spoil(start, rank)
        code = train.main([str(run), *start.get("options", [])])
    finally:
        os._exit(code)


def spoil(start: dict[str, Any], rank: int) -> None:
    low, high = start.get("poison", (0, 0))
    if start.get("poison_rank", rank) == rank:
        noise = gradients.noise

        def poisoned(seed: int, positions: Sequence[int], *rest: Any) -> list[torch.Tensor]:
            levels = noise(seed, positions, *rest)
            if any(low <= position < high for position in positions):
                levels[0][0] = float("nan")
            return levels

        setattr(gradients, "noise", poisoned)  # noqa: B010
    save = checkpoint.save_weights

    def without_room(folder: Path, model: Model, weights: Mapping[str, torch.Tensor]) -> None:
        if any(f"nimg-{nimg:012d}" in str(folder) for nimg in start.get("full", ())):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(folder, model, weights)

    setattr(checkpoint, "save_weights", without_room)  # noqa: B010
    if "room_bytes" in start:
        resource.setrlimit(resource.RLIMIT_FSIZE, (start["room_bytes"], resource.RLIM_INFINITY))


def images_seen(run: Path) -> int:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["nimg"] for line in lines if line.endswith("}}")), default=-1)


def wait(pids: list[int], patience_s: float) -> list[int]:
    codes: dict[int, int] = {}
    deadline = time.monotonic() + 240
    while len(codes) < len(pids):
        for pid in set(pids) - set(codes):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
                if codes[pid] != 0:
                    deadline = min(deadline, time.monotonic() + patience_s)
        if time.monotonic() > deadline:
            for pid in set(pids) - set(codes):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def go(run: Path, start: dict[str, Any]) -> list[int]:
    port, begun = free_port(), time.monotonic()
    pids: list[int] = []
    for rank in range(start.get("world", 1)):
        pids.append(fork(run, {**start, "leader": pids[0] if pids else 0}, rank, port))
    if "kill" in start or "twice" in start:
        while time.monotonic() < begun + start.get("after_s", 60) and images_seen(run) < start.get("images", 10**9):
            time.sleep(0.005)
    if "twice" in start:
        pids.append(fork(run, start["twice"], 0, port))
    for rank in start.get("kill", ()):
        send = os.killpg if start.get("group") else os.kill
        send(pids[rank], getattr(signal, start.get("signal", "SIGKILL")))
    return wait(pids, start.get("patience_s", 10))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        run, starts = json.loads(line)
        print(json.dumps([go(Path(run), start) for start in starts]), flush=True)
