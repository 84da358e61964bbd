"""Features of many images by several networks: each image read once, nothing holds them all, a killed run goes on.

The images are cut into blocks of fixed numbers. Any process, one or several at a time, takes blocks that are not done;
batches never reach over the end of a block, so whoever makes a feature, it is the same to the bit.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.networks.features import Extractor, Images, full_precision, split_batches
from mdm.files import load_json, write_json

PLAN = "plan.json"  # what is extracted
DONE = "done"  # a byte for each block: 1 once its features are on the disk
BLOCK = 64  # images, which is what a kill costs each process

Batches = Callable[[int, int], Iterable[Images]]


def extract_all(
    extractors: Sequence[Extractor],
    batches: Batches,
    folder: Path,
    n: int,
    inputs: str,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Features [n, dim] by every extractor's name, memory-mapped from ``folder/NAME.npy``: ``plan_extraction``, then
    every block in this process. Run again, it asks for the blocks that are not done. Raises ValueError as both."""
    plan_extraction(extractors, folder, n, inputs, batch_size)
    extract_blocks(extractors, batches, folder, progress=progress)
    return {e.name: np.load(folder / f"{e.name}.npy", mmap_mode="r") for e in extractors}


def plan_extraction(extractors: Sequence[Extractor], folder: Path, n: int, inputs: str, batch_size: int = 8) -> None:
    """Make the folder ready for ``extract_blocks``, or see that it is: the files at their full size, so that a full
    disk is known at once. ``inputs``: the digest of what decides the images.

    Raises ValueError for a folder of other inputs, or a disk without room.
    """
    names = _weights(extractors)
    if len(names) < len(extractors) or not names:
        raise ValueError(f"extractors of different names are needed, not {[e.name for e in extractors]}")
    asked = {"inputs": inputs, "n": n, "batch_size": batch_size, "block": BLOCK, "weights": names}
    files = {folder / f"{e.name}.npy": e.dim for e in extractors}
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / PLAN).exists():
        found = load_json(folder / PLAN)
        if differ := [key for key in asked if found.get(key) != asked[key]]:
            raise ValueError(
                f"{folder} holds features of other {', '.join(differ)}. Delete the folder, or name another"
            )
        for file, dim in files.items():
            try:
                whole = np.load(file, mmap_mode="r").shape == (n, dim)
            except (OSError, ValueError, EOFError):  # gone, or cut off
                whole = False
            if not whole:
                raise ValueError(f"{file} is gone or damaged. Delete the folder, the features are made again")
        return
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
    (folder / DONE).write_bytes(bytes(-(-n // BLOCK)))
    write_json(folder / PLAN, asked)


@torch.inference_mode()
def extract_blocks(
    extractors: Sequence[Extractor],
    batches: Batches,
    folder: Path,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int], None] | None = None,
) -> None:
    """This process's share of what is planned in the folder and not done: every ``world``-th block.

    ``batches(start, stop)``: the images of these numbers, uint8 [N, 3, H, W] in whatever portions. ``progress`` is
    called with the images done. Raises ValueError for other networks than the planned ones, other than the announced
    number of images, or features that are not finite.
    """
    plan = load_json(folder / PLAN)
    if plan["weights"] != _weights(extractors):
        raise ValueError(f"{folder} was planned with the networks {plan['weights']}, not {_weights(extractors)}")
    files = {extractor.name: folder / f"{extractor.name}.npy" for extractor in extractors}
    done, count = (folder / DONE).read_bytes(), images_done(folder)
    with (folder / DONE).open("r+b") as marks:
        for block in (block for block in range(rank, len(done), world) if not done[block]):
            at, stop = block * BLOCK, min(plan["n"], (block + 1) * BLOCK)
            for images in rebatch(batches(at, stop), plan["batch_size"], at, stop):
                on_device = images.to(extractors[0].device)
                for extractor in extractors:
                    with full_precision():  # not around the images: some are drawn just then (fresh.py)
                        found = extractor.features(on_device).cpu().numpy()
                    if not np.isfinite(found).all():
                        raise ValueError(f"{extractor.name}: features of images {at} and on are not finite")
                    # Opened for each batch: what stays mapped would count as this process's memory.
                    rows = np.load(files[extractor.name], mmap_mode="r+")
                    rows[at : at + len(images)] = found
                    del rows
                at += len(images)
                count += len(images)
                if progress is not None:
                    progress(count)
            for file in files.values():  # the features first, then the byte that says they are there
                np.load(file, mmap_mode="r+").flush()
            os.pwrite(marks.fileno(), b"\1", block)


def images_done(folder: Path) -> int:
    """Of what is planned in the folder, by all its processes; 0 where nothing is."""
    if not (folder / PLAN).exists():
        return 0
    n, done = load_json(folder / PLAN)["n"], (folder / DONE).read_bytes()
    return sum(min(BLOCK, n - block * BLOCK) for block, is_done in enumerate(done) if is_done)


def _weights(extractors: Sequence[Extractor]) -> dict[str, str]:
    return {extractor.name: extractor.weights for extractor in extractors}


def rebatch(portions: Iterable[Images], batch_size: int, start: int, stop: int) -> Iterator[Tensor]:
    """Images number start to stop, in portions of any length -> batches of batch_size; one of other size than the one
    before begins a new batch. Raises ValueError where there are more or fewer."""
    held: list[Tensor] = []
    count = start
    for image in (image for portion in split_batches(portions, 1) for image in portion):
        if held and (len(held) == batch_size or image.shape != held[0].shape):
            yield torch.stack(held)
            held = []
        held.append(image)
        count += 1
        if count > stop:
            raise ValueError(f"there are more than the {stop} images that were announced")
    if count < stop:
        raise ValueError(f"there are only {count} of the {stop} images that were announced")
    yield torch.stack(held)
