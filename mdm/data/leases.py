"""Who uses a data set: a file per user in its folder ``leases/``, refreshed while the user lives.

A file rather than a lock, because jobs outlive the flows that started them, run on other machines, and not every file
system locks. A lease of this machine is dead when its process is gone, however old its heartbeat: a suspended process
goes on. One of another machine is dead when its heartbeat is older than ``DEAD_S``. One that cannot be read may be
anybody's until its file is that old. A removal of samples is announced by a lease of its own kind: users see it at
their next heartbeat and leave, and nobody new comes in before it ends.
"""

import contextlib
import json
import os
import platform
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from mdm.files import write_json

BEAT_S = 5.0  # between two heartbeats
DEAD_S = 300.0  # without one
LOOK_S = 0.5  # between two looks of one who waits
REMOVAL = "samples are being removed"  # what everyone says who leaves for that reason

Kind = Literal["use", "removal"]
FIELDS: dict[str, type] = {"kind": str, "what": str, "host": str, "pid": int, "machine": str, "time": float}
GONE = "X"  # of a process's state
_mine: list["Lease"] = []  # of this process


class Lease:
    """``with Lease(folder, "what I am"):`` says that the data set of a folder is in use, until the block ends.

    Raises ValueError where samples are being removed from it. In a folder that cannot be written, from which nothing
    can be removed either, it only says so.
    """

    def __init__(self, folder: Path, what: str, kind: Kind = "use") -> None:
        self.folder, self.kind = Path(folder), kind
        self.owner = {"kind": kind, "what": what, "host": platform.node(), "pid": os.getpid(), "machine": _machine()}
        self.owner["started"] = _process(os.getpid())[1]
        host = re.sub(r"[^\w.-]", "_", platform.node())
        self.path = self.folder / "leases" / f"{host}-{os.getpid()}-{secrets.token_hex(4)}.json"
        self.asked = ""  # who removes samples, since the last heartbeat
        self._ended, self._thread = threading.Event(), threading.Thread()

    def __enter__(self) -> "Lease":
        self.take()
        _mine.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _mine.remove(self)
        self.release()

    def take(self) -> None:
        told = ""
        try:
            self.path.parent.mkdir(exist_ok=True)
            self._beat()
        except OSError as error:
            told = str(error)
            print(f"{self.folder} is used without a lease: {error.strerror}", file=sys.stderr, flush=True)
        removers = live(self.folder, "removal") if self.kind == "use" else []
        if removers:
            self._drop()
            raise ValueError(f"{REMOVAL} from {self.folder} by {names(removers)}: run this again when that is done")
        self.asked, self._ended = "", threading.Event()
        self._thread = threading.Thread(target=self._refresh, args=[self._ended, told], daemon=True)
        self._thread.start()

    def release(self) -> None:
        self._ended.set()
        self._thread.join()
        self._drop()

    def _drop(self) -> None:
        with contextlib.suppress(OSError):  # it was never there, or dies of age
            self.path.unlink()

    def _beat(self) -> None:
        write_json(self.path, {**self.owner, "time": time.time()})

    def _refresh(self, ended: threading.Event, told: str) -> None:
        while not ended.wait(BEAT_S):
            try:
                self._beat()
                self.asked = names(live(self.folder, "removal")) if self.kind == "use" else ""
                told = ""
            except Exception as error:  # a full disk, a file server that is away: the next beat tries again
                if str(error) != told:
                    print(f"{self.path} cannot be refreshed, trying again: {error}", file=sys.stderr, flush=True)
                told = str(error)

    def trouble(self) -> str:
        """Why its owner should leave the data, "" if it need not."""
        if self.asked:
            return f"{REMOVAL} from {self.folder} by {self.asked}"
        if not self._ended.is_set() and not self._thread.is_alive():
            return f"{self.path} is no longer refreshed: others would take {self.folder} for unused"
        return ""


def removal_asked() -> str:
    """Why this process should leave the data that it holds a lease on, "" if it need not."""
    return next(filter(None, (lease.trouble() for lease in _mine)), "")


def live(folder: Path, kind: Kind) -> list[dict[str, Any]]:
    """The leases on a data set whose owners are alive, and may be of this kind. What the dead left is cleared away."""
    found = []
    for path in sorted((folder / "leases").glob("*.json")):
        try:
            owner = _read(path)
            age_s = time.time() - path.stat().st_mtime
        except FileNotFoundError:  # released meanwhile
            continue
        if _is_dead(owner, age_s):
            with contextlib.suppress(OSError):
                path.unlink()
        elif owner is None:
            found.append({"kind": kind, "what": f"an unknown owner ({path} cannot be read)"})
        elif owner["kind"] == kind:
            found.append(owner)
    return found


def others(folder: Path) -> list[dict[str, Any]]:
    """The living users of a data set besides this process."""
    me = (_machine(), os.getpid())
    return [owner for owner in live(folder, "use") if (owner.get("machine"), owner.get("pid")) != me]


def _read(path: Path) -> dict[str, Any] | None:
    """A lease, None where it cannot be read. Raises FileNotFoundError."""
    try:
        owner = json.loads(path.read_text())
        fits = all(isinstance(owner[field], type_) for field, type_ in FIELDS.items())
        return owner if fits and owner["kind"] in get_args(Kind) and owner["pid"] > 0 else None
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, KeyError):  # torn, another program's, or another user's
        return None


def names(owners: list[dict[str, Any]]) -> str:
    return ", ".join(o["what"] + (f" (process {o['pid']} on {o['host']})" if "pid" in o else "") for o in owners)


def give_way(folder: Path, say: Callable[[str], None]) -> None:
    """Between two works of a long process: let a removal of samples pass, then hold the same leases again."""
    while removers := live(folder, "removal"):
        say(f"{REMOVAL} from {folder} by {names(removers)}: waiting until that is done")
        held = [lease for lease in _mine if lease.folder == folder and lease.kind == "use"]
        for lease in held:
            lease.release()
        while live(folder, "removal"):
            time.sleep(LOOK_S)
        for lease in held:
            lease.take()


@contextlib.contextmanager
def removal(folder: Path, what: str, say: Callable[[str], None], wait_s: float) -> Iterator[None]:
    """Ask all users of a data set to leave, and wait for it. Raises ValueError naming who is still there then."""
    with Lease(folder, what, "removal"):
        deadline, told = time.monotonic() + wait_s, ""
        while users := live(folder, "use"):
            if names(users) != told:
                told = names(users)
                say(f"{folder.name}: waiting for {told} to leave")
            if time.monotonic() > deadline:
                raise ValueError(f"{folder} is still used after {wait_s:g} s by {told}: stop that, then run this again")
            time.sleep(LOOK_S)
        yield


def _is_dead(owner: dict[str, Any] | None, file_age_s: float) -> bool:
    if owner is not None and owner["machine"] == _machine():
        state, started = _process(owner["pid"])
        known = owner.get("started", started)  # not in a lease of before
        return state == GONE or (None not in (known, started) and known != started)
    age_s = file_age_s if owner is None else time.time() - owner["time"]
    return (age_s if age_s >= 0 else file_age_s) > DEAD_S  # below 0: that machine's clock is ahead


def _process(pid: int) -> tuple[str, int | None]:
    """The state of a process of this machine, and when it began, by which it is told from a later one of its number.

    In clock ticks since the machine started (proc_pid_stat(5)), None where that is not told.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return GONE, None
    except PermissionError:  # another user's
        pass
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # no Linux, or it does not show others' processes
        return "", None
    return GONE if state in "ZX" else state, int(numbers[18])  # Z: it ended, its parent has not looked yet


def _machine() -> str:
    """Where a process number means something: a host since it started, and there a container."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)
