"""Which samples a tar holds: members belong together by key and are told apart by extension, as webdataset does it.

Shards of other writers hold a sample's members in any order, and more of them than are read here.
"""

import re
import tarfile
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import numpy as np

END = bytes(2 * tarfile.BLOCKSIZE)  # of every tar; padding after it may be missing
IMAGES = ("png", "jpg", "jpeg", "webp")
READ = (*IMAGES, "txt", "json")
FRAME = re.compile(r"[0-9]{2}[.]jpg")  # an extension: clips have several pictures, 00.jpg, 01.jpg, …
NO_TEXT = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, halves of pairs, ends of lines
NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # webdataset's: the key ends at the first dot of the file's name


@dataclass(frozen=True)
class Stored:
    """One sample of a tar."""

    key: str
    start: int  # of its first member's header, in bytes
    members: dict[str, tuple[int, int]] = field(default_factory=dict)  # extension -> offset and length of the data
    twice: list[str] = field(default_factory=list)  # names that are there again; the first of each is in ``members``
    apart: bool = False  # members of other samples stand between its own


def check_key(key: str) -> None:
    """Raises ValueError for a key that webdataset would not read back as it is, or no list of keys can name."""
    if not key or "." in key or "/" in key:
        raise ValueError(f"the key {key!r} cannot be stored: webdataset ends a key at its first dot or slash")
    if key != key.strip() or any(unicodedata.category(letter) in NO_TEXT for letter in key):
        raise ValueError(
            f"the key {key!r} has a space at an end, or characters that are not text: `--remove` takes lines"
        )


def samples_in(path: Path) -> list[Stored]:
    """The samples of a tar of ours, in order: each stands in one piece, so that it can be taken out.

    Raises ValueError naming the tar, and the member that is not as it must be.
    """
    samples = grouped(path)
    for sample in samples:
        if sample.apart:
            raise ValueError(
                f"{path}: the members of {sample.key!r} do not stand together, or two samples have that key"
            )
        if sample.twice:
            raise ValueError(f"{path}: {sample.twice[0]!r} is there twice")
        if (dotted := dotted_name(sample)) is not None:
            raise ValueError(
                f"{path}: {dotted!r} has a dot in its key, where webdataset ends it (at {sample.key!r}): rename it"
            )
    return samples


def dotted_name(sample: Stored) -> str | None:
    """The member whose key had a dot in it, as its writer meant it."""
    dotted = (e for e in sample.members if "." in e and e.rpartition(".")[2] in READ and not FRAME.fullmatch(e))
    return next((f"{sample.key}.{extension}" for extension in dotted), None)


def grouped(path: Path) -> list[Stored]:
    """Whatever samples a tar holds, by key, in the order of their first members; neighbours are never mixed up.

    Raises ValueError naming a tar that is damaged or cut.
    """
    samples: dict[str, Stored] = {}
    last = ""
    with path.open("rb") as file:
        for member in tar_members(file, str(path)):
            found = NAME.fullmatch(member.name)
            if not member.isfile() or found is None:  # webdataset passes them over, too
                continue
            key, extension = found[1], found[2].lower()
            sample = samples.setdefault(key, Stored(key, member.offset))
            if key != last and sample.members:
                samples[key] = sample = replace(sample, apart=True)
            if extension in sample.members:
                sample.twice.append(member.name)
            else:
                sample.members[extension] = (member.offset_data, member.size)
            last = key
    return list(samples.values())


def tar_members(file: IO[bytes], name: str) -> Iterator[tarfile.TarInfo]:
    """What a tar that was not compressed holds. Raises ValueError naming it where it does not end as a tar ends.

    ``tarfile`` takes a file that is cut between two members for a whole one, and a damaged header for the end.
    """
    if file.read(2) == b"\x1f\x8b":
        raise ValueError(f"{name} is compressed: unpack it with gunzip first")
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            yield from tar
            file.seek(tar.offset)
            if file.read(len(END)) != END:
                raise tarfile.ReadError(f"no end of a tar at byte {tar.offset:,}")
    except tarfile.TarError as error:
        raise ValueError(f"{name} is truncated or damaged: {error}. Make it again") from error


def index_tar(path: Path, removed: Sequence[int] = ()) -> np.ndarray:
    """Where each sample's members lie in a tar: int64 [N, F + 2, 2], offset and length of images, txt, json, in bytes.

    F is 1 for pictures, and the number of frames for clips. Samples that were removed are counted too, at their places:
    their rows are zeros. Raises ValueError as ``samples_in`` does, for a sample that lacks a member, and for one that
    has another number of frames than the first.
    """
    spans = [_images_text_meta(path, sample) for sample in samples_in(path)]
    width = len(spans[0]) if spans else 3
    if any(len(row) != width for row in spans):
        raise ValueError(f"{path}: not all samples have {width - 2} images, as the first one has")
    there = np.array(spans, dtype=np.int64).reshape(-1, width, 2)
    whole = np.zeros((len(there) + len(removed), width, 2), dtype=np.int64)
    whole[np.setdiff1d(np.arange(len(whole)), removed)] = there
    return whole


def _images_text_meta(path: Path, sample: Stored) -> list[tuple[int, int]]:
    frames = sorted(extension for extension in sample.members if FRAME.fullmatch(extension))
    pictures = [extension for extension in IMAGES if extension in sample.members]
    wrong = [f".{extension}" for extension in ("txt", "json") if extension not in sample.members]
    if len(pictures) != (0 if frames else 1):
        wrong.insert(0, "image")
    if wrong:
        there = ", ".join(sorted(sample.members))
        raise ValueError(f"{path}: sample {sample.key!r} must have one {wrong[0]}; it has {there}")
    return [sample.members[extension] for extension in (*frames, *pictures, "txt", "json")]
