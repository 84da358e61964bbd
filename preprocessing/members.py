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
        if "." in extension and extension.rpartition(".")[2] in READ:
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
    """Where each sample's members lie in a tar: int64 [N, 3, 2], offset and length of image, txt, json, in bytes.

    Samples that were removed are counted too, at their places: their rows are zeros. Raises ValueError as
    ``samples_in`` does, and for a sample that lacks a member.
    """
    spans = [_image_text_meta(path, sample) for sample in samples_in(path)]
    there = np.array(spans, dtype=np.int64).reshape(-1, 3, 2)
    whole = np.zeros((len(there) + len(removed), 3, 2), dtype=np.int64)
    whole[np.setdiff1d(np.arange(len(whole)), removed)] = there
    return whole


def _image_text_meta(path: Path, sample: Stored) -> list[tuple[int, int]]:
    images = [extension for extension in IMAGES if extension in sample.members]
    for count, what in ((len(images), "image"), *((e in sample.members, f".{e}") for e in ("txt", "json"))):
        if count != 1:
            there = ", ".join(sorted(sample.members))
            raise ValueError(f"{path}: sample {sample.key!r} must have one {what}; it has {there}")
    return [sample.members[extension] for extension in (images[0], "txt", "json")]
