"""CC12M: the published list of addresses and captions, or a mirror of it in webdataset tars.

Changpinyo et al., "Conceptual 12M" (CVPR 2021). The paper trains on all pairs without filtering or cleaning, and holds
out one in a thousand (App. F): here by the hash of the address, so that a pair is on the same side in every copy of
the list, whatever else of it can still be had.
"""

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preprocessing.items import Item, Split
from preprocessing.manifest import file_sha256
from preprocessing.sources.foreign import ForeignTars
from preprocessing.sources.listing import Problem, hashed, read_caption

LINES = 12_423_374  # of cc12m.tsv as published
HELD_OUT_ONE_IN = 1_000


def split_of(url: str) -> Split:
    return "val" if hashed(url) % HELD_OUT_ONE_IN == 0 else "train"


@dataclass
class Cc12m:
    """The list, cc12m.tsv: a line is an address, a tab, a caption; a quote is a letter, and so is a second tab.

    Keys are the numbers of the lines, from 0, a header not counted.
    """

    path: Path
    limit: int = 0  # the first so many lines; 0: all

    _notes: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def fingerprint(self) -> dict[str, Any]:
        try:
            return {"kind": "list of CC12M", "sha256": file_sha256(self.path), "limit": self.limit}
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read: {error.strerror}") from error

    def root(self) -> Path:
        return self.path

    def notes(self) -> list[str]:
        return self._notes

    def items(self) -> Iterator[Item]:
        self._notes.clear()
        count = windows = 0
        cut = False
        try:
            with self.path.open("rb") as file:
                for line, raw in enumerate(file, 1):
                    text = raw.removesuffix(b"\n")
                    if text.endswith(b"\r"):
                        windows += 1
                        text = text[:-1]
                    if line == 1 and self._is_header(text := text.removeprefix(codecs.BOM_UTF8)):
                        continue
                    if cut := 0 < self.limit <= count:
                        break
                    yield self._item(f"{count:09d}", f"line {line}", text)
                    count += 1
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read: {error.strerror}") from error
        if count == 0:
            raise ValueError(f"{self.path} has no lines: each must be an address, a tab and a caption")
        if windows:
            self._notes.append(f"{self.path.name}: Windows line ends on {windows:,} lines, taken off")
        if cut:
            self._notes.append(f"{self.path.name}: the first {count:,} lines only (limit)")
        elif count != LINES:
            self._notes.append(f"{self.path.name} has {count:,} lines; CC12M as published has {LINES:,}")

    def _is_header(self, text: bytes) -> bool:
        if text.lower() == b"caption\turl":
            raise ValueError(f"{self.path}, line 1: captions stand before addresses: write the columns the other way")
        if text.lower() != b"url\tcaption":
            return False
        self._notes.append(f"{self.path.name}: line 1 is a header, skipped")
        return True

    def _item(self, key: str, where: str, text: bytes) -> Item:
        address, tab, words = text.partition(b"\t")
        if not tab:
            return Item(key, "", problem=Problem.NO_TAB.at(where))
        caption, problem = read_caption(words, where)
        try:
            url = address.decode()
        except UnicodeDecodeError:
            return Item(key, "", problem=Problem.NOT_UTF8.at(f"{where}, the address"))
        return Item(key, caption, split_of(url), url=url, meta={"url": url}, problem=problem)


@dataclass
class Cc12mMirror(ForeignTars):
    """CC12M as somebody else downloaded it: held out by the address in each sample's .json, else by the key."""

    kind = "mirror of CC12M"

    def rule(self) -> Callable[[Item], Split]:
        return lambda item: split_of(item.meta.get("url") or item.key)
