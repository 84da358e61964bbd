"""The run folder between attempts: who may write it, whether it was asked to stop, what became of it.

Every start of a training is an attempt with a number: ``attempts/N.json``. The highest number owns the folder. On one
machine a lock keeps a second trainer out; where locks do not reach (another node, a network file system) an older
attempt that is still alive sees the newer one's file and leaves before it writes a checkpoint or a metric.
"""

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mdm.files import try_lock, write_json

LOOK_EVERY_S = 1.0  # for a newer attempt: a listing on a network file system is not free
HANDOVER_S = 60.0  # that an attempt with a given number waits for the one before to leave


class Fenced(Exception):
    """A newer attempt owns the run folder."""


class Attempt:
    """One start of a training, as its rank 0 sees the run folder."""

    def __init__(self, run: Path, number: int) -> None:
        self.run, self.number, self._looked = run, number, 0.0

    def check(self) -> None:
        """Raise Fenced if a newer attempt owns the folder: to be called before anything is written into it."""
        newest = newest_attempt(self.run)
        if newest > self.number:
            raise Fenced(f"attempt {newest} owns {self.run} now: attempt {self.number} leaves without writing")

    def is_fenced(self) -> bool:
        """The same as an answer, looked up once a second at most."""
        if time.monotonic() - self._looked < LOOK_EVERY_S:
            return False
        self._looked = time.monotonic()
        return newest_attempt(self.run) > self.number

    def end(self, outcome: str, **facts: Any) -> None:
        """The last word, ``outcome.json``: exit codes do not survive torchrun."""
        self.check()
        write_json(self.run / "outcome.json", {"outcome": outcome, "attempt": self.number, **facts})


def newest_attempt(run: Path) -> int:
    """The highest attempt number so far, 0 where there is none."""
    try:
        names = os.listdir(run / "attempts")
    except FileNotFoundError:
        return 0
    return max((int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdecimal()), default=0)


@contextlib.contextmanager
def attempt(run: Path, number: int | None) -> Iterator[Attempt]:
    """Own the run folder as attempt ``number``, or as the next one where no other trainer holds it.

    A given number takes the folder from an older attempt, which is waited for as long as it needs to notice and leave.
    Raises ValueError where the folder is held, or where the number is not newer than all before it.
    """
    with (run / "lock").open("w") as lock:
        if number is None:
            if not try_lock(lock):
                raise ValueError(f"{run} is being trained by another process")
            number = newest_attempt(run) + 1
        _claim(run, number)
        deadline = time.monotonic() + HANDOVER_S
        while not try_lock(lock) and time.monotonic() < deadline:  # then go on: the older one may not write any more
            time.sleep(0.1)
        (run / "outcome.json").unlink(missing_ok=True)
        (run / "STOP").unlink(missing_ok=True)
        yield Attempt(run, number)


def _claim(run: Path, number: int) -> None:
    newest = newest_attempt(run)
    if number <= newest:
        raise ValueError(f"--attempt {number}: {run} has seen attempt {newest} already; give a higher number")
    (run / "attempts").mkdir(exist_ok=True)
    who = {"attempt": number, "host": platform.node(), "pid": os.getpid(), "time": int(time.time())}
    try:
        with (run / "attempts" / f"{number}.json").open("x") as file:
            json.dump(who, file)
    except FileExistsError:
        raise ValueError(f"--attempt {number}: another trainer of {run} took that number") from None
