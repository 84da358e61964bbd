"""Items -> webdataset tars, each with an index and its rows beside it.

One shard is one unit of work: its marker ``00000.done.json`` is written last, with a digest of what went in, so that a
killed run goes on with the shards that are missing, and makes the same bytes. ``00000.rows.parquet`` has a row for
every item of the shard's list, with what became of it; it alone holds times, so that equal answers make equal tars.
"""

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from preprocessing.fetch.download import Fetched
from preprocessing.fetch.wire import Failed, target_of
from preprocessing.items import Item, Place, Split
from preprocessing.manifest import (
    digest,
    file_sha256,
    finished,
    index_bytes,
    mark_finished,
    unwritable,
    write_file,
)
from preprocessing.members import END, check_key, index_tar
from preprocessing.pack.images import encode_jpeg, encode_png
from preprocessing.pack.lists import REMOVED, read_items
from preprocessing.pack.originals import without_metadata
from preprocessing.pack.rows import OK, is_parquet, write_rows
from preprocessing.pack.tally import count_packed

T = TypeVar("T")

FORMAT = 2
DEADLINE_S = 60  # for one picture's decoding
ENCODERS = {"png": encode_png, "jpg": encode_jpeg}


@dataclass(frozen=True)
class Pixels:
    """The one reader of pictures, and the one way to make squares of them, as the trainer has them."""

    read_rgb: Callable[[bytes], NDArray[np.uint8]]  # bytes -> [H, W, 3]; ValueError: why they are no picture
    centre_crop: Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]  # [H, W, 3] -> [px, px, 3]


@dataclass(frozen=True)
class Tier:
    """A size in which a set holds its pictures."""

    px: int  # centre crops of so many pixels; 0: original bytes, of any size
    image_ext: str = ""  # png or jpg; originals: as they are

    @property
    def name(self) -> str:
        return f"{self.px}px" if self.px else "originals"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a set's contents."""

    format: int = FORMAT
    name: str
    source: dict[str, Any]  # its fingerprint
    tiers: tuple[Tier, ...]  # the first is the set's own, others lie in folders of their names below each split
    per_shard: int  # items of the list, usable or not
    min_px: int = 1  # of the short side; smaller pictures are refused
    least_val: int = 0  # held out in any case
    clips: bool = False  # 16 frames of videos, not pictures
    drop_duplicates: bool = False  # of samples with equal bytes only the first is kept

    @property
    def digest(self) -> str:
        return digest(asdict(self))

    def tier_folder(self, split_folder: Path, tier: Tier) -> Path:
        return split_folder if tier == self.tiers[0] else split_folder / tier.name


@dataclass(frozen=True)
class Shard:
    """One shard of a set, whether it is there or not."""

    folder: Path  # of the set
    recipe: Recipe
    split: Split
    number: int

    @property
    def inputs(self) -> str:
        return digest([self.recipe.digest, self.split, self.number])

    @property
    def paths(self) -> dict[Tier, Path]:
        """Its tars."""
        split = self.folder / self.split
        return {tier: self.recipe.tier_folder(split, tier) / f"{self.number:05d}.tar" for tier in self.recipe.tiers}

    @property
    def rows(self) -> Path:
        return self.folder / self.split / f"{self.number:05d}.rows.parquet"

    def refused(self, allow: tuple[str, ...]) -> int:
        """How many of its items were refused for their address, which ``allow`` names."""
        if not allow or not self.rows.exists():
            return 0
        rows = pq.read_table(self.rows, columns=["url", "final_url", "outcome"]).to_pylist()
        return sum(r["outcome"] == "refused: address" and _refused_at(r) in allow for r in rows)

    def forget(self) -> None:
        """It counts as not made: it is asked and packed again."""
        self.paths[self.recipe.tiers[0]].with_suffix(".done.json").unlink(missing_ok=True)

    def entries(self) -> dict[Tier, dict[str, Any]] | None:
        """The manifests' entries of a shard that is whole in every tier, or None."""
        found = {tier: finished(path, self.inputs) for tier, path in self.paths.items()}
        there = is_parquet(self.rows) and all(path.with_suffix(".idx.npy").exists() for path in self.paths.values())
        whole = {tier: entry for tier, entry in found.items() if entry is not None}
        return whole if there and len(whole) == len(found) else None


def _refused_at(row: dict[str, Any]) -> str:
    """HOST:PORT of the hop that was refused, as --allow names it: the URL's, or where it led."""
    try:
        return target_of(row["final_url"] or row["url"]).name
    except Failed:
        return ""


class TarFile:
    """A shard being written: the tar appears under its name when it is whole, and its index after it."""

    def __init__(self, path: Path) -> None:
        from webdataset.writer import TarWriter  # imports torch, which a caller that packs nothing need not wait for

        self.path, self.temporary, self.samples = path, path.with_name(path.name + ".tmp"), 0
        self.file = self.temporary.open("wb")
        # Long names and other scripts' letters need PAX; what has neither is plain USTAR in it.
        self.tar = TarWriter(self.file, user="", group="", mtime=0, encoder=False, format="PAX_FORMAT")

    def __enter__(self) -> "TarFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with suppress(OSError, ValueError):  # on a full disk it is not the first to say so; unclosed, it tries again
            self.tar.close()
        with suppress(OSError):
            self.file.close()
        self.temporary.unlink(missing_ok=True)

    def add(self, key: str, members: dict[str, bytes]) -> None:
        """A sample: extension -> bytes. Equal samples make equal tars: members have no time and no owner."""
        check_key(key)
        self.tar.write({"__key__": key, **members})
        self.samples += 1

    def finish(self, made: dict[str, Any] | None = None) -> dict[str, Any]:
        """-> the manifest's entry. Raises ValueError where the tar is not that of the entry ``made`` before."""
        removed = (made or {}).get("removed", ())
        end = self.tar.tarstream.offset + len(END)
        self.tar.close()
        self.file.flush()
        if removed:
            self.file.truncate(end)  # as preprocessing/remove.py leaves it
        os.fsync(self.file.fileno())
        sha256 = file_sha256(self.temporary)
        if made is not None and made["sha256"] != sha256:
            raise ValueError(
                f"{self.path}: what is made now differs from what is lost (other answers, or other versions of the "
                f"libraries): copy it from elsewhere, or move {self.path.parents[1]} away to have the set made anew"
            )
        index = index_bytes(index_tar(self.temporary, removed))
        self.temporary.replace(self.path)
        write_file(self.path.with_suffix(".idx.npy"), index)
        return made or {
            "file": self.path.name,
            "samples": self.samples,
            "bytes": self.path.stat().st_size,
            "sha256": sha256,
        }


def pack_shard(
    shard: Shard,
    lists: Path,
    root: Path,
    pixels: Pixels,
    fetched: Callable[[], dict[str, Fetched]] | None = None,
    made: dict[Tier, dict[str, Any]] = {},  # noqa: B006
) -> None:
    """Write a shard in all its tiers.

    ``lists``: where its set's lists lie; ``root``: what their files lie below; ``fetched``: the answers to its items'
    URLs, if any can be asked; ``made``: the manifests' entries, where it is lost from a finished set. Raises ValueError
    where its tars are not those, or naming a file that cannot be read or written.
    """
    items = read_items(lists, root, shard.split, shard.number)
    answers = {} if fetched is None or all(item.problem for item in items) else fetched()
    rows, paths, first = [], shard.paths, shard.recipe.tiers[0]
    removed, samples = {tier: set(made.get(tier, {}).get("removed", ())) for tier in paths}, 0  # as it was made
    if (any(removed.values()) or any(item.problem == REMOVED for item in items)) and set(made) != set(paths):
        raise ValueError(
            f"{paths[first]} is lost, samples were removed from it, and no manifest or marker tells what it was: "
            f"restore one, or move {shard.folder} away to have the set made anew"
        )
    try:
        with ExitStack() as stack:
            tars = {tier: stack.enter_context(TarFile(path)) for tier, path in paths.items()}
            for item in items:
                row, members = _sample(item, answers.get(item.key), shard.recipe, pixels)
                count_packed(bool(members))
                rows.append({**row, "place": samples if row["outcome"] == OK else -1})
                for tier, parts in members.items():
                    if samples not in removed[tier]:
                        tars[tier].add(item.key, parts)
                samples += row["outcome"] == OK
            write_rows(shard.rows, rows)
            entries = {tier: tar.finish(made.get(tier)) for tier, tar in tars.items()}
    except OSError as error:
        raise unwritable(Path(error.filename or paths[first]), error) from error
    for tier in reversed(shard.recipe.tiers):  # the first one's last: it stands for all
        mark_finished(paths[tier], shard.inputs, entries[tier])


class Refused(ValueError):
    """An item makes no sample: the class of reasons that this falls into, which the data card counts, and more."""

    def __init__(self, outcome: str, detail: str = "") -> None:
        super().__init__(f"{outcome}: {detail}" if detail else outcome)
        self.outcome, self.detail = outcome, detail


def _sample(
    item: Item, answer: Fetched | None, recipe: Recipe, pixels: Pixels
) -> tuple[dict[str, Any], dict[Tier, dict[str, bytes]]]:
    """What became of an item, and its members in each tier; none where it makes no sample, or was removed."""
    if item.problem == REMOVED:
        return {"key": item.key, "outcome": OK, "detail": "", "url": "", "final_url": ""}, {}
    row: dict[str, Any] = {"key": item.key, "url": item.url, "caption_chars": len(item.caption)}
    if answer is not None:
        row |= {"final_url": answer.final_url, "status": answer.status, "fetched_s": answer.fetched_s}
    try:
        if item.problem:
            outcome, _, detail = item.problem.partition(": ")
            raise Refused(outcome, detail)
        if recipe.clips:
            assert item.place is not None
            row["bytes"], row["sha256"] = _as_listed(item.place, Place.measure)
            found, pictures = _clip(item.place.file, recipe)
        else:
            data = _bytes(item, answer)
            row |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            found, pictures = _picture(data, recipe, pixels)
    except Refused as error:
        return {**row, "outcome": error.outcome, "detail": error.detail[:300]}, {}
    known = {**found, **item.meta, "key": item.key, "sha256": row["sha256"]} | ({"url": item.url} if item.url else {})
    texts = {"txt": item.caption.encode(), "json": json.dumps(known, sort_keys=True).encode()}
    row |= {"outcome": OK, "detail": "", "width": found["width"], "height": found["height"]}
    return row, {tier: {**parts, **texts} for tier, parts in pictures.items()}


def _bytes(item: Item, answer: Fetched | None) -> bytes:
    if item.place is not None:
        return _as_listed(item.place, Place.read)
    if answer is None:
        raise ValueError(f"nothing was fetched for {item.key} ({item.url})")
    if answer.outcome != OK:
        raise Refused(answer.outcome, answer.detail)
    return answer.data


def _as_listed(place: Place, read: Callable[[Place], T]) -> T:
    try:
        return read(place)
    except OSError as error:
        raise ValueError(
            f"{place} cannot be read any more ({error}): the source has changed since it was listed. Put it back, or "
            "run the same command again with one that stays as it is"
        ) from error


Made = tuple[dict[str, Any], dict[Tier, dict[str, bytes]]]  # what is known of it, and its images by extension


def _picture(data: bytes, recipe: Recipe, pixels: Pixels) -> Made:
    try:
        with _deadline(DEADLINE_S):
            rgb = pixels.read_rgb(data)
    except ValueError as error:
        what, _, detail = str(error).partition(" (")
        raise Refused(f"picture: {what}", detail.removesuffix(")")) from None
    height, width = rgb.shape[:2]
    if min(width, height) < recipe.min_px:
        raise Refused(f"picture: its short side is below {recipe.min_px} px", f"{width} x {height}")
    pictures = {}
    for tier in recipe.tiers:
        if tier.px:
            ext, stored = tier.image_ext, ENCODERS[tier.image_ext](pixels.centre_crop(rgb, tier.px))
        else:
            stored, ext = without_metadata(data, rgb)
        pictures[tier] = {ext: stored}
    return {"width": width, "height": height}, pictures


def _clip(file: Path, recipe: Recipe) -> Made:
    from preprocessing.pack import video

    pictures, known = {}, {}
    for tier in recipe.tiers:
        try:
            clip = video.extract_clip(file, tier.px, seed=0)
        except video.Refused as error:
            raise Refused(f"video: {error.reason}", error.detail) from None
        known = {"width": clip.width, "height": clip.height, "times_s": clip.times_s}
        pictures[tier] = {f"{number:02d}.jpg": frame for number, frame in enumerate(clip.frames)}
    return known, pictures


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """TimeoutError in this thread after so long: decoders come back to Python for each piece of a file."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(*_: Any) -> None:
        raise TimeoutError(f"it took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
