"""Videos that lie on this machine, as sources: anyone's folder with a table of captions, and a copy of WebVid."""

import csv
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

VIDEOS = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv")
CAPTION_CHARACTERS = 10_000  # at most
NAMED = 5  # files in one message


@dataclass
class Videos:
    """A folder of videos, and a table with their files (with or without extension) and captions."""

    folder: Path
    table: Path
    held_out: float = 0.05  # of the videos, by hash of the key
    _notes: list[str] = field(default_factory=list, init=False)

    def fingerprint(self) -> dict[str, Any]:
        sizes = [(path.relative_to(self.folder).as_posix(), path.stat().st_size) for path in self._files()]
        return {
            "source": "videos",
            "held_out": self.held_out,
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
        rows: list[tuple[Path, str]] = []
        missing: list[str] = []
        lines: dict[str, int] = {}  # key -> where it stands
        for line, row in _rows(self.table, "file", "caption"):
            at, found = f"{self.table}, line {line}", by_name.get(row["file"], [])
            if not found:
                missing.append(f"line {line}: {row['file']!r}")
                continue
            if len(found) > 1:
                raise ValueError(f"{at}: {row['file']!r} may be {found[0]} or {found[1]}: write its path in the folder")
            path = found[0]
            _check_key(at, path.stem)
            if path.stem in lines:
                raise ValueError(f"{at}: the key {path.stem!r} is that of line {lines[path.stem]}, too: rename a video")
            lines[path.stem] = line
            rows.append((path, row["caption"]))
        if missing:
            more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(f"{self.table}, {missing[0]} is not in {self.folder}{more}: put it there, or drop the row")
        if not rows:
            raise ValueError(f"{self.table} names no videos")
        used = {path for path, _ in rows}
        bare = [path.relative_to(self.folder).as_posix() for path in files if path not in used]
        self._notes = [_listed("videos without a caption, left out", bare)] if bare else []
        for path, caption in rows:
            split = _split(path.stem, self.held_out)
            yield Item(path.stem, caption, split, Place(path), problem=_caption_problem(caption))

    def notes(self) -> list[str]:
        return self._notes

    def _files(self) -> list[Path]:
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is no folder")
        found = sorted(p for p in self.folder.rglob("*") if p.suffix.lower() in VIDEOS and p.is_file())
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
            "table": _table_sha256(self.table),
            "files": listed.hexdigest(),
        }

    def items(self) -> Iterator[Item]:
        seen: set[str] = set()
        repeated = 0
        for line, row in _rows(self.table, "videoid", "page_dir", "name"):
            at, key, page = f"{self.table}, line {line}", row["videoid"], row["page_dir"]
            _check_key(at, key)
            if page.startswith("/") or ".." in Path(page).parts:
                raise ValueError(f"{at}: page_dir {page!r} does not lie in the folder of videos")
            if key in seen:
                repeated += 1
                continue
            seen.add(key)
            places = [self.folder / page / f"{key}.mp4", self.folder / f"{key}.mp4"]
            path = next((path for path in places if _is_file(path)), None)
            yield Item(
                key,
                row["name"],
                _split(key, self.held_out),
                None if path is None else Place(path),
                meta={name: row[name] for name in ("contentUrl", "duration", "page_dir") if row.get(name)},
                problem="no such video" if path is None else _caption_problem(row["name"]),
            )
        if not seen:
            raise ValueError(f"{self.table} names no videos")
        self._notes = [f"{repeated:,} rows repeat a videoid: left out, one clip a video"] if repeated else []

    def notes(self) -> list[str]:
        return self._notes


def _split(key: str, held_out: float) -> Split:
    """By hash, so that what is held out stays so when the set grows."""
    return "val" if int(hashlib.sha256(key.encode()).hexdigest(), 16) % 1_000_000 < held_out * 1_000_000 else "train"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _check_key(at: str, key: str) -> None:
    try:
        check_key(key)
        if not key.isprintable():
            raise ValueError(f"the key {key!r} has characters that are not text")
    except ValueError as error:
        raise ValueError(f"{at}: {error}: rename the video") from error


def _caption_problem(caption: str) -> str:
    if not caption.strip():
        return "empty caption"
    if len(caption) > CAPTION_CHARACTERS:
        return f"caption too long: {len(caption):,} characters"
    if any("\ud800" <= c <= "\udfff" for c in caption):  # what _rows makes of bytes that are not UTF-8
        return "caption not UTF-8"
    return ""


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return f"{len(names):,} {what}: {', '.join(map(repr, names[:NAMED]))}{more}"


def _table_sha256(table: Path) -> str:
    try:
        return file_sha256(table)
    except OSError as error:
        raise ValueError(f"{table} cannot be read: {error.strerror}") from error


def _rows(table: Path, *columns: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, row) of a CSV with a header that has these columns. Raises ValueError naming file and line."""
    try:
        with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            lacking = [column for column in columns if column not in (reader.fieldnames or ())]
            if lacking:
                raise ValueError(f"{table}, line 1: the header lacks {', '.join(map(repr, lacking))}")
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"{table}, line {reader.line_num}: not as many columns as the header has")
                yield reader.line_num, row
    except OSError as error:
        raise ValueError(f"{table} cannot be read: {error.strerror}") from error
    except csv.Error as error:
        raise ValueError(f"{table}, line {reader.line_num}: {error}") from error
