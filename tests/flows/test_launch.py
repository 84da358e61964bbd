"""Jobs that outlive their flow are found and waited for."""

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import launch
from flows.cancel import Cancelled
from flows.launch import JobDied, job_processes, run_job
from mdm.files import is_locked, try_lock, write_json
from mdm.run.grace import grace_s
from mdm.structure import to_dict
from small import small_job

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def stub_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@contextlib.contextmanager
def started(command: list[str], folder: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that nothing of this test is told of, and that does not outlive it."""
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def leave() -> None:
    raise KeyboardInterrupt


@pytest.fixture
def lost(tmp_path: Path) -> Path:
    """The folder of a job whose flow is gone: torchrun alone holds the launcher's lock."""
    with (tmp_path / "launch.lock").open("a") as lock:
        assert try_lock(lock)
        launch._start("stub_job", tmp_path, 1, 1, lock.fileno())
    wait_for(lambda: (tmp_path / "starts").exists())
    assert is_locked(tmp_path / "lock")
    return tmp_path


@pytest.mark.kills
def test_a_job_that_lost_its_flow_is_adopted_not_doubled(lost: Path) -> None:
    polls: list[int] = []

    def poll() -> None:
        polls.append(1)
        if len(polls) == 3:
            (lost / "go").touch()

    with pytest.raises(JobDied, match="was not started by this flow"):  # how it ended is looked up, or tried
        run_job("stub_job", lost, 1, 1, poll)
    assert (lost / "ended").exists()
    assert (lost / "starts").read_text() == "start\n"


@pytest.mark.kills
@pytest.mark.parametrize("torchrun_lives", [True, False])
def test_whoever_adopts_a_job_ends_it_when_told_to_stop(lost: Path, torchrun_lives: bool) -> None:
    (launcher,) = (p for p in job_processes("stub_job", lost) if "torch.distributed.run" in p.cmdline())
    if not torchrun_lives:
        launcher.kill()
        wait_for(lambda: not is_locked(lost / "launch.lock"))

    with pytest.raises(KeyboardInterrupt):
        run_job("stub_job", lost, 1, 1, leave)
    assert not is_locked(lost / "lock") and not job_processes("stub_job", lost)
    assert not (lost / "ended").exists()


@pytest.mark.kills
def test_a_trainer_that_was_started_by_hand_ends_well_when_told_to_stop(squares: Path, tmp_path: Path) -> None:
    (run := tmp_path / "run").mkdir()
    write_json(run / "job.json", to_dict(small_job(squares, nimg=1_000_000, eval_every_nimg=1_000_000)))
    command = [sys.executable, "-m", "mdm.train", "run", "--attempt=3", "--tolerate=0"]
    with started(command, tmp_path, PYTHONPATH=str(HERE.parents[1])):
        wait_for((run / "metrics.jsonl").exists)
        with pytest.raises(KeyboardInterrupt):
            run_job("mdm.train", run, 1, 1, leave)
        assert not is_locked(run / "lock")
        assert json.loads((run / "outcome.json").read_text())["outcome"] == "stopped"


def test_a_trainer_whose_process_is_not_seen_finds_the_stop_file_and_is_waited_for(tmp_path: Path) -> None:
    """On another machine, say. Its number is one of this machine's, too, which is left alone."""
    (tmp_path / "attempts").mkdir()
    code = (
        "import fcntl, os, time; file = open('lock', 'w'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "while not os.path.exists('STOP'): time.sleep(0.05)\n"
        "time.sleep(1)"
    )
    with started(["sleep", "60"], tmp_path) as other, started([sys.executable, "-c", code], tmp_path):
        write_json(tmp_path / "attempts" / "1.json", {"attempt": 1, "host": "far-away", "pid": other.pid, "time": 1})
        wait_for(lambda: is_locked(tmp_path / "lock"))
        with pytest.raises(KeyboardInterrupt):
            run_job("mdm.train", tmp_path, 1, 1, leave)
        assert not is_locked(tmp_path / "lock")
        assert other.poll() is None


def test_leaving_early_ends_the_job(tmp_path: Path) -> None:
    def leave() -> None:
        if (tmp_path / "starts").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job("stub_job", tmp_path, 1, 1, leave)
    wait_for(lambda: not is_locked(tmp_path / "lock"))
    assert not (tmp_path / "ended").exists()


def test_a_failing_job_is_reported_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "fail").touch()
    with pytest.raises(JobDied, match="told to fail"):
        run_job("stub_job", tmp_path, 1, 1, lambda: None)
    assert os.path.exists(tmp_path / "log.txt")


def test_a_flow_that_was_cancelled_ends_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nobody told it: after an outage of the server a worker gives up."""
    answers = iter(["away", "no", "yes"])

    def asked(_: str) -> bool:
        answer = next(answers)
        if answer == "away":
            raise OSError("the server is away")
        return answer == "yes"

    monkeypatch.setattr("flows.cancel.flow_run", SimpleNamespace(id="7"))
    monkeypatch.setattr("flows.cancel.LOOK_EVERY_S", 0)
    monkeypatch.setattr("flows.cancel.is_cancelling", asked)
    with pytest.raises(Cancelled):
        run_job("stub_job", tmp_path, 1, 1, lambda: None)
    assert not job_processes("stub_job", tmp_path)


def test_a_machine_whose_name_resolves_nowhere_and_a_core_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "go").touch()
    code = (
        "import os; from pathlib import Path; from flows.launch import run_job; os.sched_setaffinity(0, {0}); "
        f"run_job('stub_job', Path({str(tmp_path)!r}), 2, 0, lambda: None)"
    )
    nameless = ["unshare", "-Ur", "--uts", "sh", "-c", 'hostname no-such-host; exec "$@"', "sh"]
    if subprocess.run([*nameless, "true"], capture_output=True).returncode != 0:
        nameless = []  # a container that admits no namespaces: then only the cores are looked at
    subprocess.run([*nameless, sys.executable, "-c", code], check=True, timeout=60)
    told = (tmp_path / "environment").read_text().split()
    assert told == ["1", str(math.ceil(grace_s(tmp_path)))] * 2
