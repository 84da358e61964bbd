"""Which samples a tar holds: members belong together by key and are told apart by extension, as webdataset does it.

Shards of other writers hold a sample's members in any order, and more of them than are read here.
"""

import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

END = bytes(2 * tarfile.BLOCKSIZE)  # of every tar; padding after it may be missing
IMAGES = ("png", "jpg", "jpeg", "webp")
READ = (*IMAGES, "txt", "json")
FRAME = re.compile(r"[0-9]{2}[.]jpg")  # an extension: clips have several pictures, 00.jpg, 01.jpg, …
NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # webdataset's: the key ends at the first dot of the file's name


@dataclass(frozen=True)
class Stored:
    """One sample of a tar."""

    key: str
    start: int  # of its first member's header, in bytes
    members: dict[str, tuple[int, int]] = field(default_factory=dict)  # extension -> offset and length of the data


def check_key(key: str) -> None:
    """Raises ValueError for a key that webdataset would not read back as it is."""
    if not key or "." in key or "/" in key:
        raise ValueError(f"the key {key!r} cannot be stored: webdataset ends a key at its first dot or slash")


def samples_in(path: Path) -> list[Stored]:
    """The samples of a tar, in order. Raises ValueError naming the tar, and the member that is not as it must be."""
    samples: dict[str, Stored] = {}
    last = ""
    for member in _members(path):
        found = NAME.fullmatch(member.name)
        if not member.isfile() or found is None:  # webdataset passes them over, too
            continue
        key, extension = found[1], found[2].lower()
        if "." in extension and extension.rpartition(".")[2] in READ and not FRAME.fullmatch(extension):
            raise ValueError(
                f"{path}: {member.name!r} has a dot in its key, where webdataset ends it (at {key!r}): rename it"
            )
        if key != last and key in samples:
            raise ValueError(f"{path}: the members of {key!r} do not stand together, or two samples have that key")
        sample = samples.setdefault(key, Stored(key, member.offset))
        if extension in sample.members:
            raise ValueError(f"{path}: {member.name!r} is there twice")
        sample.members[extension] = (member.offset_data, member.size)
        last = key
    return list(samples.values())


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """What a tar that was not compressed holds. Raises ValueError naming it where it does not end as a tar ends.

    ``tarfile`` takes a file that is cut between two members for a whole one, and a damaged header for the end.
    """
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            yield from tar
            file.seek(tar.offset)
            if file.read(len(END)) != END:
                raise tarfile.ReadError(f"no end of a tar at byte {tar.offset:,}")
    except tarfile.TarError as error:
        raise ValueError(f"{path} is truncated or damaged: {error}. Make it again") from error


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
