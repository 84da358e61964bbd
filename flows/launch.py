"""Start a job under torchrun in a process group of its own, watch it, end it; take over one that outlived its flow.

A job is a module run on a folder. The launcher's lock file is inherited by torchrun and freed by its end, whoever
started it; the job's own ``lock`` is held by rank 0. So a job that lost its flow, or was started by hand, is found and
waited for, not doubled; and whoever waits for a job ends it when told to stop: by the processes of this machine that
run it, and a trainer that is none of them by the STOP file.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from joblib import cpu_count  # sees affinity and a container's quota, which os.cpu_count does not

from flows.cancel import heed_cancel
from mdm.files import is_locked, try_lock
from mdm.run.attempts import newest_attempt
from mdm.run.grace import grace_s
from mdm.run.torchrun import torchrun, torchrun_environment

MARGIN_S = 5  # torchrun kills its processes when the grace is over; then it is torchrun's own turn
POLL_S = 0.5
LAUNCHED = "---- launched ----"


class JobDied(RuntimeError):
    """A job ended without a word: killed, out of memory, machine trouble. Starting it again resumes it."""


def died(_task: object, _run: object, state: Any) -> bool:
    """Prefect's retry condition: a job that died without a word is started again, an error with a reason is not."""
    return isinstance(state.result(raise_on_failure=False), JobDied)


def run_job(module: str, folder: Path, processes: int, threads: int, on_poll: Callable[[], None]) -> None:
    """Run ``torchrun -m module folder`` to its end, calling ``on_poll`` all along; its output goes to folder/log.txt.

    Raises JobDied with the end of the log if it fails, and at the end of a job that this flow had not started: how that
    ended is not known here. Leaving early (cancel, error) ends the job.
    """
    launcher = folder / "launch.lock"
    with launcher.open("a") as lock:
        # Without the second: torchrun died, its worker lives.
        adopted = not try_lock(lock) or is_locked(folder / "lock")
        job = None if adopted else _start(module, folder, processes, threads, lock.fileno())

    def lives() -> bool:
        return job.poll() is None if job is not None else is_locked(launcher) or is_locked(folder / "lock")

    try:
        while lives():
            heed_cancel()
            on_poll()
            time.sleep(POLL_S)
    finally:
        if lives():
            print(f"stopping {module} on {folder.name}: it saves what it has first", file=sys.stderr, flush=True)
            end(module, folder, lives)
            if job is not None:
                job.wait()
    on_poll()
    if job is None:
        raise JobDied(f"{module} on {folder} was not started by this flow, and has ended")
    if job.returncode != 0:
        raise JobDied(f"{module} on {folder} ended with code {job.returncode}:\n{tail(folder / 'log.txt')}")


def _start(module: str, folder: Path, processes: int, threads: int, lock: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **torchrun_environment(folder), "PYTHONUNBUFFERED": "1"}
    environment["OMP_NUM_THREADS"] = str(threads or max(1, cpu_count() // processes))
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


def end(module: str, folder: Path, lives: Callable[[], bool]) -> None:
    """SIGTERM to torchrun, or to the ranks that outlived it; time to save; SIGKILL to whatever is left."""
    if newest_attempt(folder):  # a trainer, on another machine perhaps: it looks for this, its next start removes it
        with contextlib.suppress(OSError):  # a full disk
            (folder / "STOP").touch()
    processes = job_processes(module, folder)
    known = set(processes)
    for process in processes:
        if _parent(process) not in known:
            _signal(process.terminate)
    deadline = time.monotonic() + grace_s(folder) + MARGIN_S
    while (lives() or job_processes(module, folder)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for process in job_processes(module, folder):
        _signal(process.kill)


def job_processes(module: str, folder: Path) -> list[psutil.Process]:
    """This machine's processes of a job: torchrun, the ranks, their data workers, by what a flow starts them with.

    Whoever started a trainer otherwise, its rank 0 is among them, which ends the others.
    """
    wanted = ["-m", module, str(folder)]
    found = [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [])[-3:] == wanted]
    return list({*found, *_owner(folder)})


def _owner(folder: Path) -> list[psutil.Process]:
    """The process that the newest attempt says it is, where it has the folder's lock open: none of the same number."""
    newest, lock = folder / "attempts" / f"{newest_attempt(folder)}.json", str((folder / "lock").resolve())
    try:
        process = psutil.Process(json.loads(newest.read_text())["pid"])
        return [process] * any(file.path == lock for file in process.open_files())
    except (OSError, ValueError, psutil.Error):  # none, torn, gone, or another user's
        return []


def _parent(process: psutil.Process) -> psutil.Process | None:
    try:
        return process.parent()
    except psutil.Error:
        return None


def _signal(send: Callable[[], None]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        send()


def tail(path: Path, lines: int = 15) -> str:
    """The end of the last launch's log, up to where torchrun begins to tell of its own ending."""
    if not path.exists():
        return ""
    last = path.read_text(errors="replace").rpartition(LAUNCHED)[2].splitlines()
    told = [i for i, line in enumerate(last) if "torch/distributed/elastic" in line]
    return "\n".join(last[: told[0] if told else None][-lines:])
