"""Start a job under torchrun in a process group of its own, watch it, end it; take over one that outlived its flow.

A job is a module run on a folder. The launcher's lock file is inherited by torchrun and freed by its end, whoever
started it; the job's own ``lock`` is held by rank 0. So a job that lost its flow is found and waited for, not doubled.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GRACE_S = 30  # between SIGTERM and SIGKILL: a step and a checkpoint
POLL_S = 0.5
LAUNCHED = "---- launched ----"


class JobDied(RuntimeError):
    """A job ended without a word: killed, out of memory, machine trouble. Starting it again resumes it."""


def died(_task: object, _run: object, state: Any) -> bool:
    """Prefect's retry condition: a job that died without a word is started again, an error with a reason is not."""
    return isinstance(state.result(raise_on_failure=False), JobDied)


def torchrun(module: str, folder: Path, processes: int) -> list[str]:
    """The command that runs a module on a folder in so many processes of this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*launcher, "-m", module, str(folder)]


def run_job(module: str, folder: Path, processes: int, threads: int, on_poll: Callable[[], None]) -> None:
    """Run ``torchrun -m module folder`` to its end, calling ``on_poll`` all along; its output goes to folder/log.txt.

    Raises JobDied with the end of the log if it fails. Leaving early (cancel, error) ends the job.
    """
    launcher = folder / "launch.lock"
    with launcher.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            adopted = is_locked(folder / "lock")  # torchrun died, its worker lives
        except BlockingIOError:
            adopted = True
        if adopted:
            while is_locked(launcher) or is_locked(folder / "lock"):
                on_poll()
                time.sleep(POLL_S)
            on_poll()
            return
        job = _start(module, folder, processes, threads, lock.fileno())
    try:
        while job.poll() is None:
            on_poll()
            time.sleep(POLL_S)
    finally:
        if job.poll() is None:
            end(job)
    on_poll()
    if job.returncode != 0:
        raise JobDied(f"{module} on {folder} ended with code {job.returncode}:\n{tail(folder / 'log.txt')}")


def _start(module: str, folder: Path, processes: int, threads: int, lock: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(threads or os.cpu_count() or 1)}
    with (folder / "log.txt").open("ab") as log:
        log.write(f"{LAUNCHED}\n".encode())
        log.flush()
        return subprocess.Popen(
            torchrun(module, folder, processes),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a kill of the flow must not reach it; ``end`` does, with time to save
            pass_fds=[lock],
        )


def end(job: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the whole group, time to save, SIGKILL."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGTERM)
        try:
            job.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()


def is_locked(path: Path) -> bool:
    """Whether some living process holds the lock file."""
    if not path.exists():
        return False
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def tail(path: Path, lines: int = 15) -> str:
    """The end of the last launch's log, up to where torchrun begins to tell of its own ending."""
    if not path.exists():
        return ""
    last = path.read_text(errors="replace").rpartition(LAUNCHED)[2].splitlines()
    told = [i for i, line in enumerate(last) if "torch/distributed/elastic" in line]
    return "\n".join(last[: told[0] if told else None][-lines:])
