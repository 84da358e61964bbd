"""Who uses a data set is seen from outside, and leaves when samples are removed."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mdm.data import leases
from mdm.data.leases import REMOVAL, Lease, give_way, live, removal, removal_asked


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.02)
    monkeypatch.setattr(leases, "LOOK_S", 0.02)


def until(what: object) -> None:
    deadline = time.monotonic() + 10
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_lease_beats_until_its_block_ends(tmp_path: Path) -> None:
    with Lease(tmp_path, "training a"), Lease(tmp_path, "training b"):
        (first, second) = sorted(owner["what"] for owner in live(tmp_path, "use"))
        assert (first, second) == ("training a", "training b") and live(tmp_path, "removal") == []
        (before, _) = (owner["time"] for owner in live(tmp_path, "use"))
        until(lambda: live(tmp_path, "use")[0]["time"] > before)
    assert list((tmp_path / "leases").iterdir()) == []


def test_a_dead_owner_holds_nothing(tmp_path: Path) -> None:
    code = f"import os; from mdm.data.leases import Lease; Lease({str(tmp_path)!r}, 'x').__enter__(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert len(list((tmp_path / "leases").iterdir())) == 1
    assert live(tmp_path, "use") == []  # its process is gone
    record = {"kind": "use", "what": "x", "host": "elsewhere", "pid": os.getpid(), "machine": "another", "time": 0.0}
    for age, alive in ((leases.DEAD_S - 60, 1), (leases.DEAD_S + 60, 0)):  # of another machine only the age is known
        path = tmp_path / "leases" / "elsewhere-1-00.json"
        path.write_text(json.dumps({**record, "time": time.time() - age}))
        assert len(live(tmp_path, "use")) == alive and path.exists() == bool(alive)


def test_a_removal_waits_for_users_and_lets_none_in(tmp_path: Path) -> None:
    said: list[str] = []
    with Lease(tmp_path, "training a") as lease:
        begun = threading.Event()

        def remove() -> None:
            with removal(tmp_path, "mdm data --remove", said.append, 10):
                begun.set()
                with pytest.raises(ValueError, match=f"{REMOVAL} from .* by mdm data --remove"), Lease(tmp_path, "new"):
                    pass

        remover = threading.Thread(target=remove)
        remover.start()
        until(removal_asked)
        assert lease.asked.startswith("mdm data --remove (process") and not begun.is_set()
        give_way(tmp_path, said.append)  # what a flow does between two stages
        assert begun.is_set() and removal_asked() == ""
        remover.join()
        assert [owner["what"] for owner in live(tmp_path, "use")] == ["training a"]  # held again
    assert any("waiting for training a (process" in line for line in said)
    assert any("waiting until that is done" in line for line in said)


def test_a_removal_does_not_wait_for_ever(tmp_path: Path) -> None:
    with (
        Lease(tmp_path, "training a"),
        pytest.raises(ValueError, match=r"still used after 0\.05 s by training a"),
        removal(tmp_path, "mdm data --remove", lambda line: None, 0.05),
    ):
        raise AssertionError("removed from under its user")
    assert live(tmp_path, "removal") == []


def test_a_folder_that_cannot_be_written_is_used_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "leases").write_text("a file in the way, as root writes everywhere")
    with Lease(tmp_path, "training a"):
        assert "is used without a lease: " in capsys.readouterr().err
