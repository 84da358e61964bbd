"""What the sources share: which files are pictures, what a caption must be, why an item cannot be used, the held-out
rule.
"""

import codecs
import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from preprocessing.items import Item, Split

T = TypeVar("T")

PICTURES = frozenset(("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"))
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
    SEVERAL_IMAGES = "several images"
    KEY_TWICE = "key twice"
    DOT_IN_KEY = "dot in key"
    ODD_KEY = "odd key"

    def at(self, where: str) -> str:
        return f"{self}: {where}"


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
        unusable = f"; not usable: {first(problems, repr_of=str)}" if problems else ""
        raise ValueError(
            f"{source} has {len(smallest)} pictures with captions: {HELD_OUT_AT_LEAST} are held out, so at least "
            f"{HELD_OUT_AT_LEAST + 1} are needed, and fifty to train on{unusable}"
        )
    bound = max(int(share * 2**256), smallest[HELD_OUT_AT_LEAST - 1] + 1)
    return lambda key: "val" if hashed(key) < bound else "train"


def spread(listed: Sequence[T], limit: int) -> Sequence[T]:
    """So many of a list, from all over it; 0: all."""
    return listed[:: max(1, len(listed) // limit)][:limit] if limit else listed


def first(names: Sequence[object], shown: int = 3, repr_of: Callable[[object], str] = repr) -> str:
    """The first few of many, and how many more there are."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(map(repr_of, names[:shown])) + more


def passed_over(names: Iterable[str]) -> str:
    """Files that are no pictures, counted by extension."""
    kinds = Counter("hidden" if n.startswith(".") else Path(n).suffix.lower() or "without extension" for n in names)
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))


def is_picture(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower().removeprefix(".") in PICTURES
