"""How far a part of a set is, and how much of it is of use, before its shards are whole: they take minutes each."""

from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

Progress = Callable[[int, str], None]  # items of the list that are dealt with, of a part; their yield, "61% alive"


class Tally:
    """Items are dealt with, of a list of URLs, when they are asked; of files on this machine, when they are packed."""

    def __init__(self, progress: Progress, web: bool) -> None:
        self.progress, self.what = progress, "alive" if web else "usable"
        self.there = self.there_usable = 0  # in shards of before
        self.missing = 0  # in those to be made
        self.made = self.made_usable = 0  # in those that are made since
        self.asked = self.alive = 0
        self.packed: Any = get_context("spawn").Array("q", 2)  # by all processes; of these, usable

    def tell(self) -> None:
        ahead = max((self.asked, self.alive), tuple(self.packed), (self.made, self.made_usable))
        items, usable = self.there + ahead[0], self.there_usable + ahead[1]
        # What is asked again, when the network was away, counts twice.
        self.progress(self.there + min(ahead[0], self.missing), f"{usable / items:.0%} {self.what}" if items else "")

    def add_asked(self, asked: int, alive: int) -> None:
        self.asked += asked
        self.alive += alive
        self.tell()


_packed: Any = None  # a worker's part of Tally.packed


def count_for(packed: Any) -> None:
    """In a worker: its items are counted there from now on."""
    global _packed
    _packed = packed


def count_packed(usable: bool) -> None:
    if _packed is not None:
        with _packed.get_lock():
            _packed[0] += 1
            _packed[1] += usable
