"""Checkpoint folders: written whole or not at all, verified before use.

``ema/`` and ``raw/`` (config.json + model.safetensors) serve to sample, evaluate and grow; ``state/`` (optimizer,
counters) to resume; ``manifest.json`` with sizes and sha256 of every file comes last. A folder under its final name is
complete: it was written under a temporary one, fsynced and renamed.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mdm.config import Model
from mdm.files import sha256, sync, write_json
from mdm.network.weights import save_weights
from mdm.stage import Cadence

PREFIX = "nimg-"


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
    milestone: str | None = None


class Writer:
    """Writes checkpoints one after another in a thread of its own, so that training waits for the copy alone."""

    def __init__(self, checkpoints: Path, cadence: Cadence, may_write: Callable[[], None]) -> None:
        self.checkpoints, self.cadence, self.may_write = checkpoints, cadence, may_write
        self._pool = ThreadPoolExecutor(1)
        self._last: Future[Path] | None = None

    def submit(self, contents: Contents) -> None:
        """Begin to write; ``finish`` first."""
        self._last = self._pool.submit(save_checkpoint, self.checkpoints, contents, self.cadence, self.may_write)

    def finish(self) -> OSError | None:
        """Wait for the last one -> why it could not be written, if so. Any other error is raised."""
        last, self._last = self._last, None
        try:
            if last is not None:
                last.result()
        except OSError as error:  # a full disk, a lost mount: the checkpoint before is still there
            return error
        return None


def save_checkpoint(
    checkpoints: Path, contents: Contents, cadence: Cadence, may_write: Callable[[], None] = lambda: None
) -> Path:
    """Write ``checkpoints/nimg-…``, then drop what the cadence does not keep.

    ``may_write`` is asked once more before the new folder gets its name, and raises where another attempt owns the run.
    Raises OSError where there is no room; nothing that was there is lost then.
    """
    final = checkpoints / f"{PREFIX}{contents.nimg:012d}"
    temporary = final.with_name(f"{final.name}.{contents.attempt}.tmp")
    may_write()
    for leftover in checkpoints.glob("*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        _write_files(temporary, contents)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)  # room for the next try
        raise error if isinstance(error, OSError) else OSError(str(error)) from error
    may_write()
    if final.exists():  # of a damaged one, or of a stretch that was given up: the one before it is whole
        final.rename(temporary.with_name(f"{final.name}.{contents.attempt}.old.tmp"))
    temporary.rename(final)
    sync(checkpoints)
    prune(checkpoints, cadence)
    return final


def _write_files(folder: Path, contents: Contents) -> None:
    """All files, each on the disk before the manifest that vouches for them."""
    save_weights(folder / "raw", contents.model, contents.raw)
    save_weights(folder / "ema", contents.model, contents.ema)
    (folder / "state").mkdir()
    for name, tensors in contents.state.items():
        save_file(
            {key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "state" / f"{name}.safetensors"
        )
    (folder / "state" / "state.json").write_text(json.dumps(dict(contents.counters), indent=1))
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        sync(path)
    for inner in (folder / "raw", folder / "ema", folder / "state"):
        sync(inner)
    facts = {"nimg": contents.nimg, "attempt": contents.attempt, "milestone": contents.milestone}
    write_json(folder / "manifest.json", {**facts, "files": files})
    sync(folder)


def prune(checkpoints: Path, cadence: Cadence) -> None:
    """Drop checkpoints but the newest ones, the first after each multiple of ``keep_every_nimg``, and milestones."""
    folders = list_checkpoints(checkpoints)
    kept, last = set(folders[-cadence.keep_checkpoints :]), 0
    for folder in folders:
        nimg = nimg_of(folder)
        if cadence.keep_every_nimg and nimg // cadence.keep_every_nimg > last:
            last = nimg // cadence.keep_every_nimg
            kept.add(folder)
        if folder not in kept and _milestone(folder) is not None:
            kept.add(folder)
    for folder in folders:
        if folder not in kept:
            doomed = folder.rename(folder.with_name(f"{folder.name}.old.tmp"))  # no half checkpoint under its name
            shutil.rmtree(doomed, ignore_errors=True)


def _milestone(folder: Path) -> str | None:
    try:
        return json.loads((folder / "manifest.json").read_text())["milestone"]
    except (OSError, ValueError, KeyError):
        return None


def milestone_checkpoint(checkpoints: Path, name: str) -> Path:
    """The checkpoint that was saved as a milestone. Raises ValueError where there is none, or it is damaged."""
    for folder in list_checkpoints(checkpoints):
        if _milestone(folder) == name:
            problem = find_damage(folder)
            if problem is not None:
                raise ValueError(f"{folder}, milestone {name}, is damaged: {problem}")
            return folder
    raise ValueError(f"{checkpoints} has no milestone {name}")


def nimg_of(checkpoint: Path) -> int:
    """The images seen that a checkpoint's name says."""
    return int(checkpoint.name.removeprefix(PREFIX))


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(p for p in checkpoints.glob(PREFIX + "*") if p.suffix != ".tmp")


def newest_checkpoint(checkpoints: Path, wanted: Callable[[Path], bool] | None = None) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose every file is as its manifest says, and a line for each damaged one passed over."""
    passed_over: list[str] = []
    for folder in reversed(list_checkpoints(checkpoints)):
        problem = find_damage(folder)
        if problem is not None:
            passed_over.append(f"{folder.name} is damaged ({problem}): using the one before")
        elif wanted is None or wanted(folder):
            return folder, passed_over
    return None, passed_over


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    try:
        files = json.loads((folder / "manifest.json").read_text())["files"]
        for name, expected in files.items():
            path = folder / name
            if path.stat().st_size != expected["bytes"] or sha256(path) != expected["sha256"]:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None
