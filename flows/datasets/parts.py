"""Who is at work on a set: a lock for the set itself, and one for each part (I of N) of what is made in it.

Parts of one N never overlap, and go on at the same time. Whoever wants shards that somebody else is making waits: the
whole set (1 of 1) overlaps with every part, and so may parts of another N.
"""

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from flows.home import Busy, hold
from mdm.files import is_locked

LOOK_S = 1.0  # between two looks of one who waits

Part = tuple[int, int]
Say = Callable[[str], None]


def set_lock(folder: Path) -> AbstractContextManager[None]:
    """Hold a data set while it is changed as a whole. Raises Busy where somebody else does."""
    return hold(folder.with_name(folder.name + ".lock"), f"dataset {folder.name}")


@contextmanager
def part_lock(folder: Path, what: str, part: Part) -> Iterator[None]:
    """Hold a part of what is made in a set's folder. Raises Busy where somebody makes some of the same shards."""
    locks = locks_folder(folder)
    with ExitStack() as mine:
        with set_lock(folder):  # of two who come at once, one sees the other
            for path in locks.glob(f"{what}-*.lock"):
                found = re.fullmatch(r"(\d+)-of-(\d+)", path.stem.removeprefix(f"{what}-"))
                if found and overlap((int(found[1]), int(found[2])), part):
                    with hold(path, f"part {found[1]}/{found[2]} of the {what} of {folder.name}"):
                        pass
            own = locks / f"{what}-{part[0]}-of-{part[1]}.lock"
            mine.enter_context(hold(own, f"part {part[0]}/{part[1]} of the {what} of {folder.name}"))
        yield


def at_work(folder: Path, what: str) -> list[str]:
    """The parts of what is made in a set's folder that somebody makes now."""
    held = (path for path in sorted(locks_folder(folder).glob(f"{what}-*.lock")) if is_locked(path))
    return [f"part {path.stem.removeprefix(f'{what}-').replace('-of-', '/')}" for path in held]


def locks_folder(folder: Path) -> Path:
    return folder.with_name(folder.name + ".locks")


def overlap(one: Part, other: Part) -> bool:
    """Whether some shard is in both: every N-th from I on (preprocessing.pack.lists.shard_numbers)."""
    return (one[0] - other[0]) % math.gcd(one[1], other[1]) == 0


def hold_in_turn(folder: Path, say: Say) -> AbstractContextManager[None]:
    """Hold a data set, after whoever has it now."""
    return in_turn(lambda: set_lock(folder), say)


@contextmanager
def in_turn(take: Callable[[], AbstractContextManager[None]], say: Say) -> Iterator[None]:
    """Hold a lock, after those who have it now."""
    with ExitStack() as stack:
        told = False
        while True:
            try:
                stack.enter_context(take())
                break
            except Busy as busy:
                if not told:
                    say(f"{busy}; going on when it is free")
                told = True
                time.sleep(LOOK_S)
        yield
