"""Features that are made once: a file for each network and source of pictures, known by what decides its numbers."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.images.preparation import Pictures
from evaluation.measuring.streaming import extract_all
from evaluation.networks.features import Extractor
from mdm.files import whole_file, write_json
from mdm.structure import digest


def kept_pictures(
    folder: Path,
    name: str,
    pictures: Pictures,
    networks: Sequence[Extractor],
    progress: Callable[[int], None] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Features [N, dim] by the networks' names, memory-mapped, of files ``NAME-NETWORK-DIGEST.npy`` in the folder.

    What is not there is extracted, in one pass over the pictures, and can be broken off. Beside each file lies what its
    digest is of. Raises ValueError as extract_all, and for a file that is damaged.
    """
    asked = {e.name: {**pictures.identity, "network": [e.name, e.weights, e.resize]} for e in networks}
    files = {what: folder / f"{name}-{what}-{digest(identity)[:16]}.npy" for what, identity in asked.items()}
    lacking = {e.name: e for e in networks if not files[e.name].exists()}
    if lacking:
        inputs = digest([asked[what] for what in lacking])
        work = folder / f"{name}-{inputs[:16]}.part"
        extractors, batch_size = list(lacking.values()), 8 if networks[0].device.type == "cpu" else 64
        extract_all(extractors, pictures.batches, work, len(pictures), inputs, batch_size, progress)
        for what in lacking:
            write_json(files[what].with_suffix(".json"), asked[what])
            os.replace(work / f"{what}.npy", files[what])
        shutil.rmtree(work)
    return {e.name: _open(files[e.name], (len(pictures), e.dim)) for e in networks}


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


def _open(file: Path, shape: tuple[int, int]) -> NDArray[np.float32]:
    try:
        found: NDArray[np.float32] = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file} is damaged ({error}). Delete it, the features are made again") from error
    if found.shape != shape:
        raise ValueError(f"{file}: features {list(found.shape)}, not {list(shape)}. Delete it, they are made again")
    return found
