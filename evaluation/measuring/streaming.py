"""Features of many images by several networks: each image read once, nothing holds them all, a killed run goes on."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.networks.features import Extractor, Images, full_precision, split_batches
from mdm.files import load_json, try_lock, write_json

PROGRESS = "progress.json"


@torch.inference_mode()
def extract_all(
    extractors: Sequence[Extractor],
    batches: Callable[[int], Iterable[Images]],
    folder: Path,
    n: int,
    inputs: str,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
    keep_every_s: float = 5.0,
) -> dict[str, NDArray[np.float32]]:
    """Features [n, dim] by every extractor's name, memory-mapped from ``folder/NAME.npy``.

    ``batches(start)``: the images from number ``start`` on, uint8 [N, 3, H, W] in whatever portions; ``inputs``: the
    digest of what decides them. Every ``keep_every_s`` seconds the features so far are on the disk and counted; run
    again, it asks for the rest alone. Batches are cut at the same images wherever it was interrupted and however the
    images are portioned, so the features are the same to the bit. ``progress`` is called with the images done.

    Raises ValueError, before any work where it can be known, for a folder of other inputs, another process in it, a
    disk without room, other than n images, or features that are not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = {extractor.name: extractor.weights for extractor in extractors}
    if len(sources) < len(extractors) or not sources:
        raise ValueError(f"extractors of different names are needed, not {[e.name for e in extractors]}")
    files = {extractor.name: folder / f"{extractor.name}.npy" for extractor in extractors}
    asked = {"inputs": inputs, "n": n, "batch_size": batch_size, "weights": sources}
    with (folder / "lock").open("a") as lock, full_precision():
        if not try_lock(lock):
            raise ValueError(f"{folder}: another process extracts features there: wait, or stop it")
        done = _start(folder, asked, {files[e.name]: e.dim for e in extractors}, n)
        kept, kept_at = done, monotonic()
        try:
            for images in rebatch(batches(done), batch_size, done, n) if done < n else ():
                on_device = images.to(extractors[0].device)
                for extractor in extractors:
                    found = extractor.features(on_device).cpu().numpy()
                    if not np.isfinite(found).all():
                        raise ValueError(f"{extractor.name}: features of images {done} and on are not finite")
                    # Opened for each batch: what stays mapped would count as this process's memory.
                    rows = np.load(files[extractor.name], mmap_mode="r+")
                    rows[done : done + len(images)] = found
                    del rows
                done += len(images)
                if monotonic() - kept_at >= keep_every_s:
                    _keep(folder, asked, done, list(files.values()))
                    kept, kept_at = done, monotonic()
                if progress is not None:
                    progress(done)
        finally:
            if done > kept:
                _keep(folder, asked, done, list(files.values()))
    return {name: np.load(file, mmap_mode="r") for name, file in files.items()}


def _start(folder: Path, asked: dict[str, object], files: dict[Path, int], n: int) -> int:
    """How many images are done; the files are made at their full size, so that a full disk is known at once."""
    if (folder / PROGRESS).exists():
        found = load_json(folder / PROGRESS)
        done = int(found.pop("done", -1))
        differ = [key for key in asked if found.get(key) != asked[key]]
        if differ or not 0 <= done <= n:
            what = f"holds features of other {', '.join(differ) or 'progress'}"
            raise ValueError(f"{folder} {what}. Delete the folder, or name another")
        for file, dim in files.items():
            try:
                whole = np.load(file, mmap_mode="r").shape == (n, dim)
            except (OSError, ValueError, EOFError):  # gone, or cut off
                whole = False
            if not whole:
                raise ValueError(f"{file} is gone or damaged. Delete the folder, the features are made again")
        return done
    for file, dim in files.items():
        temporary = file.with_suffix(".tmp")
        try:
            np.lib.format.open_memmap(temporary, "w+", np.float32, (n, dim)).flush()
            with temporary.open("r+b") as opened:
                os.posix_fallocate(opened.fileno(), 0, temporary.stat().st_size)  # else a full disk would kill us
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise ValueError(
                f"{file}: {error.strerror or error}: features of {n} images need {4 * n * dim / 1e6:.0f} MB there. "
                "Make room, or name a folder on another disk"
            ) from error
        temporary.replace(file)
    _keep(folder, asked, 0, list(files))
    return 0


def _keep(folder: Path, asked: dict[str, object], done: int, files: list[Path]) -> None:
    """The features first, then the number that says they are there."""
    for file in files:
        np.load(file, mmap_mode="r+").flush()
    write_json(folder / PROGRESS, {**asked, "done": done})


def rebatch(portions: Iterable[Images], batch_size: int, start: int, n: int) -> Iterator[Tensor]:
    """Images number start to n, in portions of any length -> batches of batch_size; one of other size than the one
    before begins a new batch. Raises ValueError where there are more or fewer."""
    held: list[Tensor] = []
    count = start
    for image in (image for portion in split_batches(portions, 1) for image in portion):
        if held and (len(held) == batch_size or image.shape != held[0].shape):
            yield torch.stack(held)
            held = []
        held.append(image)
        count += 1
        if count > n:
            raise ValueError(f"there are more than the {n} images that were announced")
    if count < n:
        raise ValueError(f"there are only {count} of the {n} images that were announced")
    yield torch.stack(held)
