"""ImageNet (ILSVRC 2012): folders of synsets, or the official tar of tars, read where it lies.

A label is the place of the picture's synset among all, sorted: 0 to 999 with the thousand of the challenge.
"""

import hashlib
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

from preprocessing.items import Item, Place
from preprocessing.members import tar_members
from preprocessing.sources.listing import first, held_out_rule, is_picture

TRAINING_TAR = "ILSVRC2012_img_train.tar"
TRAINING_PICTURES = 1_281_167
SYNSETS = 1_000
MAPS = ("synsets.txt", "LOC_synset_mapping.txt", "map_clsloc.txt")  # of labels; beside the pictures, or one folder up
SYNSET = re.compile(r"n\d{8}")
REUSED = 1 / 1_000  # of the training pictures, where none are held out

Picture = tuple[str, str, int, Place]  # synset, file name, bytes, where


@dataclass
class ImageNet:
    """All training pictures, and those of val/ if it has folders of synsets; the caption is the synset's words.

    Without val/, one in a thousand of the training pictures, and at least eight, are listed again as held out, under
    other keys; the notes say so.
    """

    source: Path  # a folder of synsets, or with train/ and val/ of them, or with the tar; or the tar
    limit: int = 0  # so many training pictures, from all over; 0: all

    _notes: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def fingerprint(self) -> dict[str, Any]:
        """By the synsets, the pictures' names and sizes, since nobody reads 140 GB to know a published set again, and
        by the layout: a list that names a tar is of no use to who has the folders.
        """
        listed = hashlib.sha256()
        for synset, name, size, _ in chain(_pictures(self._root), [("", "", 0, None)], _pictures(self._val)):
            listed.update(f"{synset}/{name} {size}\n".encode())
        return {"kind": "ImageNet", "pictures": listed.hexdigest(), "synsets": self._synsets, "limit": self.limit,
                "in": str(self._root.relative_to(self.root()))}  # fmt: skip

    def root(self) -> Path:
        return self.source.parent if self.source.is_file() else self.source

    def notes(self) -> list[str]:
        return self._notes

    def items(self) -> Iterator[Item]:
        self._notes.clear()
        if self._map is None:
            self._notes.append(f"no {', '.join(MAPS)}: labels are places among the {len(self._synsets)} synsets found")
        count = sum(self._found.values())
        if len(self._found) == SYNSETS and count != TRAINING_PICTURES:
            self._notes.append(f"{count:,} training pictures; ImageNet has {TRAINING_PICTURES:,}")
        yield from self._training()
        held_out = list(self._held_out())
        yield from (replace(item, key=f"val_{item.key}", split="val") for item in held_out)

    def _training(self) -> Iterator[Item]:
        step = max(1, sum(self._found.values()) // self.limit) if self.limit else 1
        return map(self._item, islice(_pictures(self._root), 0, self.limit * step or None, step))

    def _held_out(self) -> Iterator[Item]:
        if any(True for _ in _pictures(self._val)):
            yield from map(self._item, _pictures(self._val))
            return
        split_of = held_out_rule(self.source, self._training(), REUSED)
        again = 0
        for item in self._training():
            if split_of(item.key) == "val":
                again += 1
                yield item
        self._notes.append(f"no val/ with folders of synsets: the {again:,} held-out pictures are trained on, too")

    def _item(self, picture: Picture) -> Item:
        synset, name, _, place = picture
        words, label = self._synsets[synset]
        return Item(_key(synset, name), words, place=place, meta={"label": label, "synset": synset})

    @cached_property
    def _root(self) -> Path:
        """The training pictures' folder, or their tar."""
        for root in (self.source / "train", self.source / TRAINING_TAR):
            if root.exists():
                return root
        return self.source

    @property
    def _val(self) -> Path:
        return self.source / "val"

    @cached_property
    def _found(self) -> dict[str, int]:
        """Synset -> how many training pictures."""
        found = Counter(synset for synset, _, _, _ in _pictures(self._root))
        if not found:
            raise ValueError(
                f"{self._root}: no pictures: looked for folders of synsets (n01440764/*.JPEG), also under train/, and "
                f"for {TRAINING_TAR}"
            )
        return found

    @cached_property
    def _map(self) -> Path | None:
        folders = (self.source, self.source.parent)
        return next((folder / name for folder in folders for name in MAPS if (folder / name).is_file()), None)

    @cached_property
    def _synsets(self) -> dict[str, tuple[str, int]]:
        """Synset -> its words and label. Raises ValueError naming a folder that the map lacks."""
        found = {*self._found, *(synset for synset, _, _, _ in _pictures(self._val))}
        words = {synset: synset for synset in found} if self._map is None else _read_map(self._map)
        if lacking := sorted(found - set(words)):
            raise ValueError(f"{self._root}: {first(lacking)} is not in the label map {self._map}: mend one of them")
        return {synset: (words[synset], label) for label, synset in enumerate(sorted(words))}


def _key(synset: str, name: str) -> str:
    stem = Path(name).stem.replace(".", "_")
    return stem if stem.startswith(f"{synset}_") else f"{synset}_{stem}"


def _pictures(root: Path) -> Iterator[Picture]:
    """The pictures of a folder of synsets or of the tar, one synset after the other; none where there is no folder.

    Raises ValueError naming two pictures that would have one key, and what is truncated or cannot be read.
    """
    try:
        for synset, pictures in _in_tar(root) if root.is_file() else _in_folders(root):
            names: dict[str, str] = {}
            for name, size, place in pictures:
                if (other := names.setdefault(_key(synset, name), name)) != name:
                    raise ValueError(f"{root}: {synset}/{other} and {synset}/{name} would have one key: rename one")
                yield synset, name, size, place
    except OSError as error:
        raise ValueError(f"{error.filename or root} cannot be read: {error.strerror}") from error


def _in_folders(root: Path) -> Iterator[tuple[str, list[tuple[str, int, Place]]]]:
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if folder.is_dir() and folder.name != "val" and not folder.name.startswith("."):
            sizes = [(path, path.stat().st_size) for path in sorted(folder.iterdir()) if is_picture(path.name)]
            yield folder.name, [(path.name, size, Place(path, length=size)) for path, size in sizes]


def _in_tar(path: Path) -> Iterator[tuple[str, list[tuple[str, int, Place]]]]:
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for outer in list(tar_members(file, str(path))):
            part = tar.extractfile(outer) if outer.name.endswith(".tar") else None
            if part is not None:
                yield (
                    Path(outer.name).stem,
                    [
                        (Path(m.name).name, m.size, Place(path, outer.offset_data + m.offset_data, m.size, m.name))
                        for m in tar_members(part, f"{path}: {outer.name}")
                        if m.isfile() and is_picture(Path(m.name).name)
                    ],
                )


def _read_map(path: Path) -> dict[str, str]:
    """Synset -> words, of any of the three forms: alone, with words, or with a number and a word."""
    words: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        synset, _, text = line.strip().partition(" ")
        if not line.strip():
            continue
        if SYNSET.fullmatch(synset) is None or synset in words:
            raise ValueError(f"{path}, line {number}: {synset!r} is no synset as n01440764, or is there twice")
        counted = re.fullmatch(r"\d+ (\S+)", text.strip())
        words[synset] = (counted[1].replace("_", " ") if counted else text.strip()) or synset
    return words
