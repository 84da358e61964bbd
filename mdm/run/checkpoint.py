"""Checkpoint folders ``checkpoints/nimg-…``: what is in them, which are kept, which one to use.

``ema/`` and ``raw/`` (config.json + model.safetensors) serve to sample, evaluate and grow; ``state/`` (optimizer,
counters) to resume; ``manifest.json`` vouches for every file (see folder.py). ``kept/nimg-…`` has ``ema/`` alone.
"""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from torch import Tensor

from mdm.config import Model
from mdm.network.weights import save_tensors, save_weights
from mdm.run.folder import find_damage, folder_of, list_folders, nimg_of, read_manifest, remove_folder, write_folder
from mdm.stage import Cadence

KEPT = "kept"  # in the run folder: EMA weights that no pruning takes


class Damaged(ValueError):
    """The checkpoint that was wanted is damaged. ``whole``: the newest one that is not, if any."""

    def __init__(self, folder: Path, problem: str, whole: Path | None) -> None:
        super().__init__(f"{folder} is damaged ({problem})")
        self.folder, self.whole = folder, whole


@dataclass(frozen=True)
class Contents:
    """Everything that a checkpoint holds, in memory that the training does not write to any more."""

    nimg: int
    attempt: int
    model: Model
    raw: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    state: Mapping[str, Mapping[str, Tensor]]  # file name in state/ -> tensors: the optimizer's, other averages
    counters: Mapping[str, Any]
    milestones: Mapping[str, int] = field(default_factory=dict)  # name -> the images at which it was wanted


class Writer:
    """Writes checkpoints one after another in a thread of its own, so that training waits for the copy alone."""

    def __init__(self, checkpoints: Path, cadence: Cadence, may_write: Callable[[], None]) -> None:
        self.checkpoints, self.cadence, self.may_write = checkpoints, cadence, may_write
        self.seconds = 0.0  # that the last one took
        self._whole: set[str] = set()
        self._pool = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def submit(self, contents: Contents, before: Callable[[], None] = lambda: None) -> None:
        """Begin to write, ``before`` first, which raises OSError where it cannot. ``finish`` the last one first."""
        self._last = self._pool.submit(self._write, contents, before)

    @property
    def idle(self) -> bool:
        """Whether the last one is through, so that ``finish`` does not wait."""
        return self._last is None or self._last.done()

    def finish(self) -> OSError | None:
        """Wait for the last one -> why it could not be written, if so. Any other error is raised."""
        last, self._last = self._last, None
        try:
            if last is not None:
                last.result()
        except OSError as error:  # a full disk, a lost mount: the checkpoint before is still there
            return error
        return None

    def _write(self, contents: Contents, before: Callable[[], None]) -> None:
        begun = monotonic()
        before()
        save_checkpoint(self.checkpoints, contents, self.cadence, self.may_write, self._whole)
        self.seconds = monotonic() - begun


def save_checkpoint(
    checkpoints: Path,
    contents: Contents,
    cadence: Cadence,
    may_write: Callable[[], None] = lambda: None,
    whole: set[str] | None = None,
) -> Path:
    """Write ``checkpoints/nimg-…``, then drop what the cadence does not keep. See ``write_folder`` and ``prune``."""

    def fill(folder: Path) -> None:
        save_weights(folder / "raw", contents.model, contents.raw)
        save_weights(folder / "ema", contents.model, contents.ema)
        (folder / "state").mkdir()
        for name, tensors in contents.state.items():
            save_tensors(folder / "state" / f"{name}.safetensors", tensors)
        (folder / "state" / "state.json").write_text(json.dumps(dict(contents.counters), indent=1))

    final = folder_of(checkpoints, contents.nimg)
    facts = {"nimg": contents.nimg, "attempt": contents.attempt, "milestones": dict(contents.milestones)}
    write_folder(final, contents.attempt, facts, fill, may_write)
    known = set() if whole is None else whole
    known.add(final.name)
    prune(checkpoints, cadence, known)
    return final


def save_ema(
    run: Path,
    nimg: int,
    model: Model,
    ema: Mapping[str, Tensor],
    attempt: int = 0,
    may_write: Callable[[], None] = lambda: None,
) -> Path:
    """Write the EMA alone as ``RUN/kept/nimg-…/ema``; one that is there, of a stretch that is repeated, is replaced."""
    final = folder_of(run / KEPT, nimg)
    write_folder(final, attempt, {"nimg": nimg}, lambda folder: save_weights(folder / "ema", model, ema), may_write)
    return final


def list_points(run: Path) -> list[Path]:
    """Every folder of a run that has an EMA, fewest images first: checkpoints, and what was kept where none is left."""
    found = {nimg_of(folder): folder for parent in (KEPT, "checkpoints") for folder in list_folders(run / parent)}
    return [found[nimg] for nimg in sorted(found)]


def prune(checkpoints: Path, cadence: Cadence, whole: set[str]) -> None:
    """Drop checkpoints but the newest ones, the first after each multiple of ``keep_every_nimg``, and milestones.

    None is dropped in favour of a damaged one. ``whole``: names of those that are known not to be; where it matters the
    others are read, and added.
    """

    def is_whole(folder: Path) -> bool:
        if folder.name not in whole and find_damage(folder) is None:
            whole.add(folder.name)
        return folder.name in whole

    folders = list_folders(checkpoints)
    if len(folders) <= cadence.keep_checkpoints:
        return
    kept, newest = {folder for folder in folders if _milestones(folder)}, 0
    for folder in reversed(folders):
        if newest == cadence.keep_checkpoints:
            break
        kept.add(folder)
        newest += is_whole(folder)
    periods: dict[int, list[Path]] = {}
    for folder in folders if cadence.keep_every_nimg else ():
        periods.setdefault(nimg_of(folder) // cadence.keep_every_nimg, []).append(folder)
    for period, inside in periods.items():
        if period:
            kept.add(inside[0] if len(inside) == 1 else next(filter(is_whole, inside), inside[0]))
    for folder in folders:
        if folder not in kept:
            remove_folder(folder)


def _milestones(folder: Path) -> dict[str, int]:
    """The milestones that a checkpoint is, and the images at which they were wanted."""
    facts = read_manifest(folder)
    if facts.get("milestone"):  # as it was written before a checkpoint could be several
        return {facts["milestone"]: facts["nimg"]}
    return facts.get("milestones") or {}


def milestone_checkpoint(checkpoints: Path, name: str, nimg: int, batch_size: int) -> Path:
    """The checkpoint that was saved as a milestone wanted at ``nimg`` images.

    It may be of more: of the end of the batch that went over them, and of the next good step where that was skipped.
    Raises ValueError where there is none, Damaged where it is.
    """
    found = {folder: _milestones(folder)[name] for folder in list_folders(checkpoints) if name in _milestones(folder)}
    for folder, at in found.items():
        old = "milestone" in read_manifest(folder)  # says where it was saved, not where it was wanted
        if at == nimg or (old and nimg <= at < nimg + batch_size):
            problem = find_damage(folder)
            if problem is not None:
                raise Damaged(folder, problem, None)
            return folder
    others = "".join(f", but one at {at:,}" for at in found.values())
    raise ValueError(f"{checkpoints} has no milestone {name} at {nimg:,} images{others}")


def newest_checkpoint(checkpoints: Path, wanted: Callable[[Path], bool] | None = None) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose every file is as its manifest says, and a line for each damaged one passed over."""
    passed_over: list[str] = []
    for folder in reversed(list_folders(checkpoints)):
        problem = find_damage(folder)
        if problem is not None:
            passed_over.append(f"{folder.name} is damaged ({problem})")
        elif wanted is None or wanted(folder):
            return folder, passed_over
    return None, passed_over


def last_checkpoint(checkpoints: Path) -> Path | None:
    """The checkpoint of the most images, if there is any: for those who want that one and no other.

    Raises Damaged where it is.
    """
    folders = list_folders(checkpoints)
    if not folders:
        return None
    problem = find_damage(folders[-1])
    if problem is not None:
        raise Damaged(folders[-1], problem, newest_checkpoint(checkpoints)[0])
    return folders[-1]
