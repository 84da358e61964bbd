"""Jobs that outlive their flow are found and waited for."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.launch import JobDied, is_locked, run_job

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def stub_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.mark.kills
def test_a_job_that_lost_its_flow_is_adopted_not_doubled(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from flows.launch import run_job; "
        f"run_job('stub_job', Path({str(tmp_path)!r}), 1, 1, lambda: None)"
    )
    flow = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: (tmp_path / "starts").exists())
    flow.send_signal(signal.SIGKILL)
    flow.wait()
    assert is_locked(tmp_path / "lock")
    polls: list[int] = []
    second = threading.Thread(target=run_job, args=("stub_job", tmp_path, 1, 1, lambda: polls.append(1)))
    second.start()
    wait_for(lambda: len(polls) > 2)
    assert second.is_alive()
    (tmp_path / "go").touch()
    second.join(60)
    assert not second.is_alive()
    assert (tmp_path / "ended").exists()
    assert (tmp_path / "starts").read_text() == "start\n"


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
