"""Who uses a data set is seen from outside, and leaves when samples are removed."""

import json
import os
import re
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


@pytest.mark.parametrize("text", ["", '{"kind": "use", "wh', '{"a": 1}', "[]", "null"])
def test_a_lease_that_cannot_be_read_is_anybodys_until_its_file_is_old(tmp_path: Path, text: str) -> None:
    unread = tmp_path / "leases" / "x-1-00.json"
    with Lease(tmp_path, "training a") as lease:
        unread.write_text(text)
        told = f"an unknown owner ({unread} cannot be read)"
        until(lambda: lease.asked == told)  # it may be a removal's: its users leave
        assert told in leases.names(live(tmp_path, "use"))  # and it may be a user's: a removal waits
        before = json.loads(lease.path.read_text())["time"]
        until(lambda: json.loads(lease.path.read_text())["time"] > before)
        with pytest.raises(ValueError, match=f"by {re.escape(told)}: run this again"), Lease(tmp_path, "new"):
            pass
        os.utime(unread, (0, 0))
        until(lambda: not lease.asked)
        assert [owner["what"] for owner in live(tmp_path, "use")] == ["training a"] and not unread.exists()


@pytest.mark.parametrize("change", [{"time": None}, {"time": "soon"}, {"kind": "other"}, {"pid": 0}, {"machine": None}])
def test_a_lease_with_a_field_that_is_none_cannot_be_read(tmp_path: Path, change: dict[str, object]) -> None:
    with Lease(tmp_path, "training a") as lease:
        path = lease.path.with_name("x-1-00.json")
        path.write_text(json.dumps({**lease.owner, "time": time.time(), **change}))
        assert f"{path} cannot be read" in leases.names(live(tmp_path, "removal"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # it is ended on purpose
def test_heartbeats_outlive_every_error_and_their_end_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = Lease._beat

    def fails(error: BaseException) -> None:
        def raises(lease: Lease) -> None:
            raise error

        monkeypatch.setattr(Lease, "_beat", raises)

    with Lease(tmp_path, "training a") as lease:
        fails(RuntimeError("no reason known"))
        lease.path.unlink()
        until(lambda: "trying again: no reason known" in capsys.readouterr().err)
        monkeypatch.setattr(Lease, "_beat", beat)
        until(lease.path.exists)
        assert removal_asked() == ""
        fails(SystemExit())
        until(removal_asked)
        assert removal_asked() == f"{lease.path} is no longer refreshed: others would take {tmp_path} for unused"
    assert removal_asked() == ""


def test_a_process_of_this_machine_is_alive_however_old_its_heartbeat(tmp_path: Path) -> None:
    with Lease(tmp_path, "training a") as lease:
        lease._ended.set()  # as suspended
        lease._thread.join()
        for ago in (10 * leases.DEAD_S, -10 * leases.DEAD_S):
            lease.path.write_text(json.dumps({**lease.owner, "time": time.time() - ago}))
            os.utime(lease.path, (0, 0))
            assert len(live(tmp_path, "use")) == 1
        lease.path.write_text(json.dumps({**lease.owner, "started": 1, "time": time.time()}))
        assert live(tmp_path, "use") == []  # another process had that number


def test_a_process_that_ended_unseen_by_its_parent_is_dead(tmp_path: Path) -> None:
    code = f"from mdm.data.leases import Lease; Lease({str(tmp_path)!r}, 'x').__enter__(); import os; os._exit(9)"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert len(list((tmp_path / "leases").iterdir())) == 1
        assert live(tmp_path, "use") == []


def test_a_heartbeat_of_the_future_is_as_old_as_its_file(tmp_path: Path) -> None:
    path = tmp_path / "leases" / "elsewhere-1-00.json"
    path.parent.mkdir()
    record = {"kind": "use", "what": "x", "host": "elsewhere", "pid": 1, "machine": "another"}
    path.write_text(json.dumps({**record, "time": time.time() + 9e5}))
    assert len(live(tmp_path, "use")) == 1
    os.utime(path, (0, 0))
    assert live(tmp_path, "use") == [] and not path.exists()
