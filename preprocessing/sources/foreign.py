"""webdataset tars that other people wrote: pictures with captions in .txt or .json beside them.

Samples are told apart by key, and members by extension, as webdataset does it, whatever stands where in a tar.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any

from preprocessing.items import Item, Place, Split
from preprocessing.manifest import digest
from preprocessing.members import END, Stored, check_key, dotted_name, grouped, tar_members
from preprocessing.sources.listing import (
    PICTURES,
    Problem,
    files_below,
    first,
    hashed,
    held_out_rule,
    must_be_file,
    read_caption,
    shown,
)

META = {"url": str, "label": int, "original_width": int, "original_height": int}  # fields that are kept
EDGE_BYTES = 1 << 16


@dataclass
class ForeignTars:
    """The tars of a folder and its subfolders, of a pattern, or one tar. Keys become ours: a slash becomes "_".

    Where tars number their samples anew, each key gets its tar's name before it. A sample that cannot be used is an
    item with its problem: two of one key in one tar, both of them; in several tars, all but that of the first by name,
    since tars are read one after another.
    """

    source: str | Path
    limit: int = 0  # the first so many samples; 0: all
    held_out: float = 0.05  # share of the samples, by the hash of their keys

    kind = "webdataset tars"  # in the fingerprint, with the rule of the split
    _notes: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def fingerprint(self) -> dict[str, Any]:
        """By each tar's name, size and both its ends, not all its bytes: a mirror may have a terabyte of them, and each
        of many machines asks.

        Raises ValueError for a tar that is truncated.
        """
        edges = [(name, path.stat().st_size, _edges(path)) for path, name in self._tars()]
        return {"kind": self.kind, "tars": digest(edges), "limit": self.limit, "held_out": self.held_out}

    def root(self) -> Path:
        return self._paths()[0]

    def notes(self) -> list[str]:
        return self._notes

    def rule(self) -> Callable[[Item], Split]:
        """The split of each item."""
        split_of = held_out_rule(self.source, self._listed(), self.held_out)
        return lambda item: split_of(item.key)

    def items(self) -> Iterator[Item]:
        split_of = self.rule()
        for item in self._listed():
            yield replace(item, split=split_of(item))

    def _tars(self) -> list[tuple[Path, str]]:
        """Each tar, and its name below the folder that all are in, in the names' order."""
        root, paths = self._paths()
        return sorted((path, path.relative_to(root).as_posix()) for path in paths)

    def _paths(self) -> tuple[Path, list[Path]]:
        """The folder that all tars are in, and the tars."""
        source = Path(self.source)
        if source.is_dir():
            paths = [path for path in files_below(source)[0] if path.suffix == ".tar" and shown(path)]
        else:
            paths = [source] if source.is_file() else [Path(path) for path in glob(str(self.source), recursive=True)]
        if not paths:
            raise ValueError(f"{self.source}: no *.tar there; give a folder of webdataset tars, one tar, or a pattern")
        for path in paths:
            must_be_file(path)
        return Path(os.path.commonpath([path.parent for path in paths])), paths

    def _listed(self) -> Iterator[Item]:
        self._notes.clear()
        yield from islice(self._all(), self.limit or None)

    def _all(self) -> Iterator[Item]:
        tars = self._tars()
        self._notes += files_below(Path(self.source))[1] if Path(self.source).is_dir() else []
        anew = _numbered_anew([path for path, _ in tars])
        if anew:
            self._notes.append("the tars number their samples anew: each key has its tar's name before it")
        seen: set[int] = set()  # 8 bytes of each key's hash: of twelve million, about 1 GB
        unread: list[str] = []  # samples whose .json cannot be read
        again = 0  # samples with a key of a tar before theirs
        for path, name in tars:
            samples = grouped(path)
            keys = _keys(path, samples, name.removesuffix(".tar") if anew else "")
            with path.open("rb") as file:
                for sample, key in zip(samples, keys, strict=True):
                    where = f"{sample.key!r} in {name}"
                    if (known := hashed(key) >> 192) in seen:
                        again += 1
                        problem = Problem.KEY_TWICE.at(f"{where}, and in a tar before it")
                        yield Item(_ours(f"{name.removesuffix('.tar')}/{sample.key}"), "", problem=problem)
                        continue
                    seen.add(known)
                    yield _item(path, file.fileno(), sample, key, where, unread)
        if again:
            self._notes.append(f"{again:,} samples have a key of a tar before theirs, whose sample is kept")
        if unread:
            self._notes.append(f"{len(unread):,} .json cannot be read as an object: {first(unread, repr_of=str)}")


def _edges(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(EDGE_BYTES)
        file.seek(max(0, path.stat().st_size - EDGE_BYTES))
        end = file.read()
        if not end.endswith(END):  # cut, or with something after its end
            file.seek(0)
            for _ in tar_members(file, str(path)):
                pass
    return digest([start.hex(), end.hex()])


def _numbered_anew(tars: list[Path]) -> bool:
    """Whether tars share keys: judged by the first two and the first of each folder, without reading all of them."""
    folders = {path.parent: path for path in reversed(tars)}
    seen: set[str] = set()
    for path in sorted({*tars[:2], *folders.values()}):
        keys = {sample.key for sample in grouped(path)}
        if keys & seen:
            return True
        seen |= keys
    return False


def _keys(path: Path, samples: list[Stored], prefix: str) -> list[str]:
    """Keys as ours must be, without dot or slash. Raises ValueError for two that become one."""
    keys = [(f"{prefix}/" if prefix else "") + sample.key.removeprefix("./") for sample in samples]
    ours = [_ours(key) for key in keys]
    theirs: dict[str, str] = {}
    for sample, key in zip(samples, ours, strict=True):
        other = theirs.setdefault(key, sample.key)
        if other != sample.key:
            raise ValueError(f"{path}: the keys {other!r} and {sample.key!r} would both become {key!r}: rename one")
    return ours


def _ours(key: str) -> str:
    return key.replace("/", "_").replace(".", "_").encode("utf-8", "backslashreplace").decode()


def _item(path: Path, file: int, sample: Stored, key: str, where: str, unread: list[str]) -> Item:
    def read(extension: str) -> bytes:
        offset, length = sample.members.get(extension, (0, 0))
        return os.pread(file, length, offset)

    pictures = sorted(PICTURES & set(sample.members))
    if problem := _unusable(sample, key, pictures, where):
        return Item(key, "", problem=problem)
    about = _object(read("json")) if "json" in sample.members else {}
    if about is None:
        unread.append(where)
        about = {}
    text = read("txt") if "txt" in sample.members else about.get("caption", about.get("text"))
    caption, problem = "", Problem.NO_CAPTION.at(where)
    if isinstance(text, bytes | str):
        caption, problem = read_caption(text.strip(), where)
    meta = {name: about[name] for name, kind in META.items() if type(about.get(name)) is kind}
    if (label := read("cls").strip()).isdigit() and len(label) < 10:
        meta.setdefault("label", int(label))
    offset, length = sample.members[pictures[0]]
    place = Place(path, offset, length, f"{sample.key}.{pictures[0]}")
    return Item(key, caption, place=place, meta=meta, problem=problem)


def _unusable(sample: Stored, key: str, pictures: list[str], where: str) -> str:
    """The problem of a sample that has not one picture, or no key of ours."""
    try:
        check_key(key)
    except ValueError as error:
        return Problem.ODD_KEY.at(f"{where}: {error}")
    if sample.twice:
        return Problem.KEY_TWICE.at(f"{where}: {first(sample.twice)} again")
    if not pictures and (dotted := dotted_name(sample)) is not None:
        return Problem.DOT_IN_KEY.at(f"{where}: {dotted!r} has a dot in its key, where webdataset ends it")
    if len(pictures) != 1:
        problem = Problem.SEVERAL_IMAGES if pictures else Problem.NO_IMAGE
        return problem.at(f"{where}: it has {', '.join(map(repr, sorted(sample.members)))}")
    return ""


def _object(data: bytes) -> dict[str, Any] | None:
    """A sample's .json, or None where it is no object. Half a surrogate pair, which no text can hold, becomes "?"."""
    try:
        about = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(about, dict):
        return None
    return {k: v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for k, v in about.items()}
