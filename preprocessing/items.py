"""What a source lists: samples with their captions, and where the bytes of each lie."""

import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol
from zipfile import BadZipFile, ZipFile

Split = Literal["train", "val"]


@dataclass(frozen=True)
class Place:
    """Bytes on this machine: a whole file, a tar's member (``length`` bytes at ``offset``), or a zip's ``member``.

    They are as long, and have the sha256, that the source found when it listed them; of what it did not look at, any.
    """

    file: Path
    offset: int = 0  # 0: not in a tar, where a header stands first
    length: int | None = None
    member: str = ""
    sha256: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.member}" if self.member else str(self.file)

    def read(self) -> bytes:
        """Raises OSError, also for bytes other than were listed, or a member that is damaged, encrypted or gone."""
        if self.member and not self.offset:
            try:
                data = _archive(self.file, self.file.stat().st_mtime_ns, os.getpid()).read(self.member)
            except (BadZipFile, KeyError, EOFError, RuntimeError, zlib.error) as error:  # RuntimeError: encrypted
                raise OSError(str(error)) from error
        else:
            with self.file.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.length if self.offset else -1)
        self._compare(len(data), "" if not self.sha256 else hashlib.sha256(data).hexdigest())
        return data

    def measure(self) -> tuple[int, str]:
        """Length and sha256 of a whole file that is not held: a video may be larger than the memory. Raises OSError."""
        with self.file.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            length = file.tell()
        self._compare(length, sha256)
        return length, sha256

    def _compare(self, length: int, sha256: str) -> None:
        if self.length not in (None, length):
            raise OSError(f"{length:,} bytes, it was listed with {self.length:,}")
        if self.sha256 not in ("", sha256):
            raise OSError("other bytes than were listed")


@lru_cache(maxsize=2)
def _archive(file: Path, mtime_ns: int, process: int) -> ZipFile:
    """Opened once in each process: its table of contents, of forty thousand members in COCO's, is read at opening."""
    return ZipFile(file)


@dataclass(frozen=True)
class Item:
    """One sample that a source lists: its bytes lie at ``place`` on this machine or at ``url`` on the web.

    ``problem``: why it cannot be used, as CLASS or CLASS: DETAIL, where the source's rules tolerate such items; they
    are counted by class on the data card, and make no sample. The text in it may come from anyone.
    """

    key: str  # as webdataset takes it: no dot, no slash
    caption: str
    split: Split = "train"
    place: Place | None = None
    url: str = ""
    meta: dict[str, Any] = field(default_factory=dict)  # into the sample's .json: label, synset, image_id, …
    problem: str = ""


def printable(text: str) -> str:
    """Text from anyone, to be shown: no control characters, none that turn the direction of writing."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


class Source(Protocol):
    """Where items come from. Two sources of equal fingerprints list equal items in the same order, at equal places
    below their roots: other machines, and later commands, go on with one's list.
    """

    def fingerprint(self) -> dict[str, Any]:
        """What decides the contents, as JSON: settings, and sha256 of the list or files. Raises ValueError."""

    def items(self) -> Iterator[Item]:
        """In a fixed order, each key once. Raises ValueError naming file and line, member or key."""

    def root(self) -> Path:
        """What its items' files lie below: lists name them from there, so that the source may move meanwhile."""

    def notes(self) -> list[str]:
        """Lines for the data card, complete once ``items`` is exhausted: a header skipped, an unexpected count, …"""
