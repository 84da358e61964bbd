"""What the sources share: which files are pictures, what a caption must be, why an item cannot be used, the held-out
rule.
"""

import codecs
import hashlib
import heapq
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from preprocessing.items import Item, Split

T = TypeVar("T")

PICTURES = frozenset(("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"))
UNREAD = frozenset(  # pictures of kinds that the one reader does not know: telephones', cameras', drawing programs'
    ("heic", "heif", "avif", "jxl", "jp2", "dng", "nef", "cr2", "cr3", "arw", "orf", "rw2", "raf", "psd", "svg", "eps")
)
MAX_CAPTION = 10_000  # characters; the longest of CC12M has fewer
HELD_OUT_AT_LEAST = 8


class Problem(StrEnum):
    """Why a listed item cannot be used: the classes of ``Item.problem`` that are known before a picture is read."""

    NO_TAB = "no tab"
    NO_CAPTION = "no caption"
    EMPTY = "caption empty"
    NOT_UTF8 = "not UTF-8"
    TOO_LONG = f"caption over {MAX_CAPTION:,} characters"
    NO_IMAGE = "no image"
    UNREAD = "kind of picture that cannot be read"
    SEVERAL_IMAGES = "several images"
    KEY_TWICE = "key twice"
    DOT_IN_KEY = "dot in key"
    ODD_KEY = "odd key"

    def at(self, where: str) -> str:
        return f"{self}: {where}"


def files_below(folder: Path) -> tuple[list[Path], list[str]]:
    """All files below a folder, sorted, but for what hidden folders hold; and a note of links to folders, if any.

    Pipes are among them: who reads one calls ``must_be_file`` before. Raises ValueError naming a folder that cannot be
    read: what lies there would be left out unsaid.
    """

    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error

    files, links = list[Path](), list[str]()
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links += [name for name in folders if Path(parent, name).is_symlink()]
        files += [Path(parent, name) for name in names]
    return sorted(files), [f"links to folders are not followed: {first(sorted(links))}"] if links else []


def must_be_file(path: Path) -> None:
    """Raises ValueError for what is no file: a pipe gives its bytes once, or lets its reader wait for ever."""
    if not is_file(path):
        raise ValueError(f"{path} is no file, but a pipe, or a link to one that is gone: take it away")


def is_file(path: Path) -> bool:
    """Whether a file is there; a name that none can have (a caption in the column of files) is nobody's."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def shown(path: Path) -> bool:
    """Whether a file is meant to be seen: macOS leaves a hidden ._NAME beside every NAME on foreign disks."""
    return not path.name.startswith(".")


def read_caption(data: bytes | str, where: str) -> tuple[str, str]:
    """(caption, "") of text as it came, or ("", problem) naming where it stands."""
    try:
        caption = data.removeprefix(codecs.BOM_UTF8).decode() if isinstance(data, bytes) else data
        caption.encode()  # JSON may spell half a surrogate pair, which no file can hold
    except UnicodeError:
        return "", Problem.NOT_UTF8.at(where)
    if not caption.strip():
        return "", Problem.EMPTY.at(where)
    if len(caption) > MAX_CAPTION:
        return "", Problem.TOO_LONG.at(where)
    return caption, ""


def hashed(text: str) -> int:
    """What decides splits and choices: sha256 as a number below 2^256."""
    return int(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), 16)


def held_out_rule(source: object, items: Iterable[Item], share: float) -> Callable[[str], Split]:
    """The split of each key: held out are those with the smallest hashes, a share of all and at least eight.

    A key that is held out stays so when the set grows, unless it was one of the eight. Raises ValueError naming the
    source where the usable items are too few.
    """
    problems: list[str] = []

    def usable() -> Iterator[int]:
        for item in items:
            if not item.problem:
                yield hashed(item.key)
            else:
                problems.append(item.problem)

    smallest = heapq.nsmallest(HELD_OUT_AT_LEAST + 1, usable())
    if len(smallest) <= HELD_OUT_AT_LEAST:
        raise too_few(str(source), len(smallest), HELD_OUT_AT_LEAST, problems)
    bound = max(int(share * 2**256), smallest[HELD_OUT_AT_LEAST - 1] + 1)
    return lambda key: "val" if hashed(key) < bound else "train"


def too_few(source: str, usable: int, held_out: int, problems: Sequence[str]) -> ValueError:
    """That so few usable items are listed that none would be left to train on."""
    unusable = f"; not usable: {first(problems, repr_of=str)}" if problems else ""
    return ValueError(
        f"{source} has {usable} pictures with captions: {held_out} are held out, so at least {held_out + 1} are "
        f"needed, and fifty to train on: add at least {held_out + 1 - usable} more{unusable}"
    )


def none_to_train_on(source: str, held_out: int) -> ValueError:
    """That a share holds out whatever is listed."""
    return ValueError(
        f"{source}: all {held_out:,} listed items are held out, none is left to train on: give a smaller --held-out"
    )


def share_for(keys: Iterable[str], count: int) -> float:
    """The least share, of three digits, that holds out so many of these keys."""
    bound = heapq.nsmallest(count, map(hashed, keys))[-1]
    return math.ceil(bound / 2**256 * 1000 + 1e-9) / 1000


def spread(listed: Sequence[T], limit: int) -> Sequence[T]:
    """So many of a list, from all over it; 0: all."""
    return listed[:: max(1, len(listed) // limit)][:limit] if limit else listed


def first(names: Sequence[object], shown: int = 3, repr_of: Callable[[object], str] = repr) -> str:
    """The first few of many, and how many more there are."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(map(repr_of, names[:shown])) + more


def passed_over(names: Iterable[str]) -> str:
    """Files counted by extension."""
    kinds = Counter("hidden" if n.startswith(".") else Path(n).suffix.lower() or "without extension" for n in names)
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))


def unread(names: Iterable[str]) -> list[str]:
    """A line for the pictures among these files that are of a kind that cannot be read; none where there are none."""
    found = [name for name in names if is_unread(name)]
    if not found:
        return []
    return [f"{passed_over(found)} cannot be read, left out: export them as JPEG or PNG to have them in"]


def is_unread(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower().removeprefix(".") in UNREAD


def is_picture(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower().removeprefix(".") in PICTURES
