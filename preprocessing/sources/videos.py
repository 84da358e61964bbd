"""Videos that lie on this machine, as sources: anyone's folder with a table of captions, and a copy of WebVid."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preprocessing.items import Item, Place, Split
from preprocessing.manifest import digest, file_sha256
from preprocessing.members import check_key
from preprocessing.sources.listing import files_below, first, is_file, must_be_file, read_caption, shown, spread
from preprocessing.sources.tables import read_captions, read_table

VIDEOS = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv")


@dataclass
class Videos:
    """A folder of videos, and a table with their files (with or without extension) and captions."""

    folder: Path
    table: Path
    held_out: float = 0.05  # of the videos, by hash of the key
    limit: int = 0  # so many rows, from all over the table; 0: all
    _notes: list[str] = field(default_factory=list, init=False)

    def fingerprint(self) -> dict[str, Any]:
        sizes = [(path.relative_to(self.folder).as_posix(), path.stat().st_size) for path in self._files()]
        return {
            "source": "videos",
            "held_out": self.held_out,
            "limit": self.limit,
            "table": _table_sha256(self.table),
            "files": digest(sizes),
        }

    def items(self) -> Iterator[Item]:
        files = self._files()
        by_name: dict[str, list[Path]] = defaultdict(list)
        for path in files:
            relative = path.relative_to(self.folder)
            for name in {relative.as_posix(), relative.with_suffix("").as_posix(), path.name, path.stem}:
                by_name[name].append(path)
        rows: list[tuple[Path, str, str]] = []  # with the caption's problem
        missing: list[str] = []
        lines: dict[str, int] = {}  # key -> where it stands
        for line, name, caption in read_captions(self.table):
            at, found = f"{self.table}, line {line}", by_name.get(os.path.normpath(name), [])
            if not found:
                missing.append(f"line {line}: {name!r}")
                continue
            if len(found) > 1:
                raise ValueError(f"{at}: {name!r} may be {found[0]} or {found[1]}: write its path in the folder")
            path = found[0]
            _check_key(at, path.stem)
            if path.stem in lines:
                raise ValueError(f"{at}: the key {path.stem!r} is that of line {lines[path.stem]}, too: rename a video")
            lines[path.stem] = line
            rows.append((path, *read_caption(caption, f"line {line}")))
        if missing:
            more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(f"{self.table}, {missing[0]} is not in {self.folder}{more}: put it there, or drop the row")
        used = {path for path, _, _ in rows}
        bare = [path.relative_to(self.folder).as_posix() for path in files if path not in used]
        self._notes = files_below(self.folder)[1]
        self._notes += [f"{len(bare):,} videos without a caption, left out: {first(bare)}"] if bare else []
        for path, caption, problem in spread(rows, self.limit):
            yield Item(path.stem, caption, split_of(path.stem, self.held_out), _place(path), problem=problem)

    def root(self) -> Path:
        return self.folder

    def notes(self) -> list[str]:
        return self._notes

    def _files(self) -> list[Path]:
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is no folder")
        found = [p for p in files_below(self.folder)[0] if p.suffix.lower() in VIDEOS and shown(p)]
        for path in found:
            must_be_file(path)
        if not found:
            raise ValueError(f"{self.folder} holds no videos: none of its files ends in {', '.join(VIDEOS)}")
        return found


@dataclass
class WebVid:
    """A local copy of WebVid with its CSV: the set was withdrawn, and is never downloaded.

    The videos are FOLDER/PAGE_DIR/VIDEOID.mp4 or FOLDER/VIDEOID.mp4. A row whose video is missing makes no sample; of
    rows with the same videoid the first counts, which gives one clip a video (App. F).
    """

    folder: Path
    table: Path
    held_out: float = 0.001
    limit: int = 0  # the first so many videos; 0: all
    _notes: list[str] = field(default_factory=list, init=False)

    def fingerprint(self) -> dict[str, Any]:
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is no folder")
        listed = hashlib.sha256()
        for item in self.items():
            if item.place is not None:
                path = item.place.file
                listed.update(os.fsencode(path.relative_to(self.folder)) + b" %d\n" % path.stat().st_size)
        return {
            "source": "webvid",
            "held_out": self.held_out,
            "limit": self.limit,
            "table": _table_sha256(self.table),
            "files": listed.hexdigest(),
        }

    def items(self) -> Iterator[Item]:
        seen: set[str] = set()
        repeated = 0
        for line, row in read_table(self.table):
            if lacking := [column for column in ("videoid", "page_dir", "name") if column not in row]:
                raise ValueError(f"{self.table}, line {line}: no column {', '.join(map(repr, lacking))}")
            at, key, page = f"{self.table}, line {line}", row["videoid"], row["page_dir"]
            _check_key(at, key)
            if page.startswith("/") or ".." in Path(page).parts:
                raise ValueError(f"{at}: page_dir {page!r} does not lie in the folder of videos")
            if key in seen:
                repeated += 1
                continue
            if 0 < self.limit <= len(seen):
                break
            seen.add(key)
            places = [self.folder / page / f"{key}.mp4", self.folder / f"{key}.mp4"]
            path = next((path for path in places if is_file(path)), None)
            caption, problem = read_caption(row["name"], f"line {line}")
            yield Item(
                key,
                caption,
                split_of(key, self.held_out),
                None if path is None else _place(path),
                meta={name: row[name] for name in ("contentUrl", "duration", "page_dir") if row.get(name)},
                problem="no such video" if path is None else problem,
            )
        if not seen:
            raise ValueError(f"{self.table} names no videos")
        self._notes = [f"{repeated:,} rows repeat a videoid: left out, one clip a video"] if repeated else []

    def root(self) -> Path:
        return self.folder

    def notes(self) -> list[str]:
        return self._notes


def _place(path: Path) -> Place:
    return Place(path, length=path.stat().st_size)


def split_of(key: str, held_out: float) -> Split:
    """By hash, so that what is held out stays so when the set grows."""
    return "val" if int(hashlib.sha256(key.encode()).hexdigest(), 16) % 1_000_000 < held_out * 1_000_000 else "train"


def _check_key(at: str, key: str) -> None:
    try:
        check_key(key)
    except ValueError as error:
        raise ValueError(f"{at}: {error}: rename the video") from error


def _table_sha256(table: Path) -> str:
    try:
        return file_sha256(table)
    except OSError as error:
        raise ValueError(f"{table} cannot be read: {error.strerror}") from error
