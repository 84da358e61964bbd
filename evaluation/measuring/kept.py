"""Features that are made once: a file for each network and source of pictures, known by what decides its numbers."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evaluation.images.preparation import Pictures
from evaluation.measuring.streaming import extract_blocks, images_done, plan_extraction
from evaluation.networks.features import Extractor
from mdm.files import try_lock, whole_file, write_json
from mdm.structure import digest


class Extract(Protocol):
    """Makes the features that are planned in a folder (streaming.py), in this process or in others."""

    def __call__(
        self, work: Path, pictures: Pictures, networks: Mapping[str, Extractor], progress: Callable[[int], None]
    ) -> None: ...


def extract_here(
    work: Path, pictures: Pictures, networks: Mapping[str, Extractor], progress: Callable[[int], None]
) -> None:
    extract_blocks(list(networks.values()), pictures.batches, work, progress=progress)


def kept_pictures(
    folder: Path,
    name: str,
    pictures: Pictures,
    networks: Mapping[str, Extractor],
    progress: Callable[[int], None],
    extract: Extract = extract_here,
) -> dict[str, NDArray[np.float32]]:
    """Features [N, dim] by the networks' names, memory-mapped, of files ``NAME-NETWORK-DIGEST.npy`` in the folder.

    ``networks``: by their roles. What is not there is extracted, in one pass over the pictures, and can be broken off.
    Beside each file lies what its digest is of. Raises ValueError as ``extract``, where another process makes the
    same, and for a file that is damaged.
    """
    asked = {e.name: {**pictures.identity, "network": [e.name, e.weights, e.resize]} for e in networks.values()}
    files = {what: folder / f"{name}-{what}-{digest(identity)[:16]}.npy" for what, identity in asked.items()}
    lacking = {role: e for role, e in networks.items() if not files[e.name].exists()}
    if lacking:
        extractors = list(lacking.values())
        batch_size = 8 if extractors[0].device.type == "cpu" else 64
        inputs = digest([asked[e.name] for e in extractors])
        work = folder / f"{name}-{digest([inputs, batch_size])[:16]}.part"
        work.mkdir(parents=True, exist_ok=True)
        with (work / "owner.lock").open("a") as lock:
            if not try_lock(lock):
                raise ValueError(f"{work}: another process extracts features there: wait, or stop it")
            plan_extraction(extractors, work, len(pictures), inputs, batch_size)
            if images_done(work) < len(pictures):
                extract(work, pictures, lacking, progress)
            for extractor in extractors:
                write_json(files[extractor.name].with_suffix(".json"), asked[extractor.name])
                os.replace(work / f"{extractor.name}.npy", files[extractor.name])
            shutil.rmtree(work)
    return {e.name: _open(files[e.name], (len(pictures), e.dim)) for e in networks.values()}


def kept_texts(
    folder: Path, captions: Sequence[str], network: Extractor, read: Callable[[Sequence[str]], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """The same of captions, as ``read`` makes them."""
    file = folder / f"captions-{network.name}-{digest([list(captions), network.weights])[:16]}.npy"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        features = read(captions)
        with whole_file(file) as opened:
            np.save(opened, features)
    return _open(file, (len(captions), network.dim))


def forget_others(folder: Path, found: Sequence[NDArray[np.float32]]) -> None:
    """Delete what lies in a folder of kept features and is none of these: of other images, captions or weights, or
    begun and never finished. For a folder that one measurement has for itself."""
    files = {Path(str(array.filename)) for array in found if isinstance(array, np.memmap)}  # resolved ones
    for path in folder.resolve().iterdir():
        if path.suffix == ".part":
            shutil.rmtree(path)
        elif path.with_suffix(".npy") not in files:
            path.unlink()


def _open(file: Path, shape: tuple[int, int]) -> NDArray[np.float32]:
    try:
        found: NDArray[np.float32] = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file} is damaged ({error}). Delete it, the features are made again") from error
    if found.shape != shape:
        raise ValueError(f"{file}: features {list(found.shape)}, not {list(shape)}. Delete it, they are made again")
    return found
