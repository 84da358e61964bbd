"""A folder of somebody's own pictures, with captions from a table, from .txt beside them, or from the files' names."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from preprocessing.items import Item, Place
from preprocessing.manifest import digest, file_sha256
from preprocessing.members import check_key
from preprocessing.sources.listing import (
    Problem,
    files_below,
    first,
    held_out_rule,
    is_file,
    is_picture,
    is_unread,
    must_be_file,
    passed_over,
    read_caption,
    spread,
    unread,
)
from preprocessing.sources.tables import TABLES, read_captions


@dataclass
class Pictures:
    """Keys are the files' stems, a dot in them becomes "_".

    The table, if there is any, decides which pictures belong to the set. Without one, captions come from .txt if a
    picture has one, and those without are items with that problem. Else the names are the captions.
    """

    folder: Path  # of the pictures; or a table that names them, by paths from where it lies
    table: Path | None = None  # None: the one that lies in the folder, if any does
    limit: int = 0  # so many pictures, from all over the folder; 0: all
    held_out: float = 0.05  # share of the pictures, by the hash of their keys

    def fingerprint(self) -> dict[str, Any]:
        """By what every picture and caption is, and where it lies: samples name their file."""
        files = [(i.key, i.meta["file"], i.caption, i.problem, i.place and i.place.sha256) for i in self._listed]
        return {"kind": "folder of pictures", "files": digest(files), "held_out": self.held_out}

    def root(self) -> Path:
        return self._folder_and_table()[0]

    def notes(self) -> list[str]:
        return self._found[1]

    def items(self) -> Iterator[Item]:
        split_of = held_out_rule(self.folder, self._listed, self.held_out)
        return (replace(item, split=split_of(item.key)) for item in self._listed)

    @cached_property
    def _listed(self) -> list[Item]:
        return [replace(item, place=_known(item)) for item in spread(self._found[0], self.limit)]

    @cached_property
    def _found(self) -> tuple[list[Item], list[str]]:
        """All pictures that have a key, sorted by it, without a split; and what is to be said of the folder."""
        folder, table = self._folder_and_table()
        files, notes = _files(folder)
        pictures = [path for path in files if is_picture(path.name)]
        if table is not None:
            found = _from_table(folder, table)
            odd = [problem.partition(": ")[2] for _, _, problem in found if problem.startswith(Problem.NOT_UTF8)]
            if odd:
                notes.append(
                    f"{len(odd):,} captions that are not UTF-8, left out ({first(odd, repr_of=str)}): save the table "
                    "as UTF-8 to have them in"
                )
            unnamed = sorted(
                {path.relative_to(folder).as_posix() for path in pictures} - {file for file, _, _ in found}
            )
            if unnamed:
                notes.append(f"{len(unnamed):,} pictures that {table.name} does not name, left out: {first(unnamed)}")
        elif not pictures:
            raise ValueError(
                f"{folder}: no pictures: looked for *.png, *.jpg, *.jpeg, *.webp, *.bmp, *.gif, *.tif, *.tiff, in its "
                f"subfolders too, and for a table of them in it ({', '.join('*' + kind for kind in TABLES)})"
                + "".join(f"; {line}" for line in unread(path.name for path in files))
            )
        else:
            found = _beside(folder, pictures, set(files), notes)
        texts = {path.with_suffix("") for path in pictures} if table is None else set()
        other = [path for path in files if not is_picture(path.name) and path != table]
        other = [path for path in other if not (path.suffix == ".txt" and path.with_suffix("") in texts)]
        if table is None:
            notes += unread(path.name for path in other)
            other = [path for path in other if not is_unread(path.name)]
        if other:
            notes.append(f"passed over: {passed_over(path.name for path in other)}")
        items = [
            Item(key, caption, place=Place(folder / file), meta={"file": file}, problem=problem)
            for (file, caption, problem), key in zip(found, _keys(folder, [f for f, _, _ in found]), strict=True)
        ]
        return sorted(items, key=lambda item: item.key), notes

    def _folder_and_table(self) -> tuple[Path, Path | None]:
        if self.table is not None:
            return self.folder, self.table
        if self.folder.is_file():
            return self.folder.parent, self.folder
        return self.folder, caption_table(self.folder)


def caption_table(folder: Path) -> Path | None:
    """The one table of captions that lies in a folder. Raises ValueError where there are more."""
    try:
        tables = sorted(path for path in folder.iterdir() if _is_table(path))
    except OSError as error:
        raise ValueError(f"{folder} cannot be read: {error.strerror}") from error
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise ValueError(f"{folder} has more than one table of captions ({names}): give the path of the one")
    return next(iter(tables), None)


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in TABLES and not path.name.startswith(".") and path.is_file()


def _known(item: Item) -> Place:
    """An item's place, with its sha256."""
    assert item.place is not None
    try:
        return replace(item.place, sha256=file_sha256(item.place.file))
    except OSError as error:
        raise ValueError(f"{item.place} cannot be read: {error.strerror}") from error


def _files(folder: Path) -> tuple[list[Path], list[str]]:
    """All files below a folder, sorted, but for what hidden folders hold; and links to folders, as notes."""

    files, notes = files_below(folder)
    for path in files:
        if is_picture(path.name):
            must_be_file(path)
    return files, notes


def _from_table(folder: Path, table: Path) -> list[tuple[str, str, str]]:
    """(file, caption, problem) of each row. Raises ValueError naming the table and the line."""
    found, lines, missing = [], dict[str, int](), list[str]()
    for line, name, text in read_captions(table):
        file = os.path.normpath(name) if name else ""
        if os.path.isabs(file) and Path(file).is_relative_to(folder.absolute()):
            file = Path(file).relative_to(folder.absolute()).as_posix()
        if lines.setdefault(file, line) != line:
            raise ValueError(
                f"{table}, line {line} names {name!r} again, as line {lines[file]} does: leave one of them"
            )
        if not _is_utf8(name):
            raise ValueError(f"{table}, line {line}: the file's name is not UTF-8: save the table as UTF-8")
        if not file or not is_file(folder / file):
            missing.append(f"line {line} names {name!r}")
        caption, problem = read_caption(text.strip(), f"{table.name}, line {line}")
        if is_unread(file):
            problem = Problem.UNREAD.at(f"{file}: export it as JPEG or PNG")
        found.append((file, caption, problem))
    if missing:
        more = f" (and {len(missing) - 1:,} more such lines)" if len(missing) > 1 else ""
        raise ValueError(
            f"{table}, {missing[0]}, which is no file in {folder}{more}: put it there or leave the line out"
        )
    return found


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _beside(folder: Path, pictures: list[Path], files: set[Path], notes: list[str]) -> list[tuple[str, str, str]]:
    """(file, caption, problem) of each picture, by its .txt or by its name."""
    names = [path.relative_to(folder).as_posix() for path in pictures]
    texts = [path.with_suffix(".txt") for path in pictures]
    if not files & set(texts):
        notes.append("captions are made from the files' names")
        return [(name, *read_caption(words(path.stem), name)) for name, path in zip(names, pictures, strict=True)]
    found = []
    for name, text in zip(names, texts, strict=True):
        if text in files:
            found.append((name, *read_caption(_read(text).strip(), f"{text.relative_to(folder)}")))
        else:
            found.append((name, "", Problem.NO_CAPTION.at(f"{name}: no {text.name} beside it")))
    without = [name for name, _, problem in found if problem.startswith(Problem.NO_CAPTION)]
    if without:
        notes.append(f"{len(without):,} pictures without .txt, though others have one: {first(without)}")
    return found


def words(stem: str) -> str:
    """A caption from a file's name: "red_car-01" is "red car"."""
    return " ".join(re.sub(r"[-_\d]", " ", stem).split())


def _read(path: Path) -> bytes:
    must_be_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def _keys(folder: Path, files: list[str]) -> list[str]:
    """The key of each file. Raises ValueError naming a file that can have none, and two that would have the same."""
    keys, owners, pairs = [], dict[str, str](), list[str]()
    for file in files:
        key = Path(file).stem.replace(".", "_")
        if not _is_utf8(key):
            raise ValueError(f"{folder}: the name of {file!r} is not UTF-8: rename it")
        try:
            check_key(key)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}: rename {file!r}") from error
        if (other := owners.setdefault(key, file)) != file:
            pairs.append(f"{other!r} and {file!r} would both have the key {key!r}")
        keys.append(key)
    if pairs:
        more = f" (and {len(pairs) - 1:,} more such pairs)" if len(pairs) > 1 else ""
        raise ValueError(f"{folder}: {pairs[0]}{more}: rename one of each, or move one away")
    return keys
