"""Features of sets of images, kept in a file: only of images that it does not know they are computed again.

An image is known by its pixels' sha256, a file by its extractor; so a removal or a few new samples cost next to
nothing, and what no set holds any more is forgotten.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.networks.features import EfficientNetLite0
from mdm.files import whole_file

Known = dict[str, NDArray[np.float32]]  # sha256 of an image's pixels -> its features [1280]


def kept_features(
    folder: Path,
    sets: Mapping[str, NDArray[np.uint8]],
    input_px: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, NDArray[np.float32]]:
    """Features [N, 1280] of every set of images uint8 [N, 3, H, H], of the folder's file or made now.

    ``progress(done, total)`` counts images. The file is written after each set, so a killed run goes on.
    """
    file = folder / f"{EfficientNetLite0.name}-{input_px}px.npz"
    known, used = read_features(file), Known()
    extractor: EfficientNetLite0 | None = None
    done, total = 0, sum(len(images) for images in sets.values())

    def show(n: int) -> None:
        progress(done + n, total)

    found = {}
    for name, images in sets.items():
        digests = [hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest() for image in images]
        new = [i for i, digest in enumerate(digests) if digest not in known]
        features = {digest: known[digest] for digest in digests if digest in known}
        done += len(images) - len(new)
        show(0)
        if new:
            extractor = extractor or EfficientNetLite0(input_px=input_px)
            made = extractor.extract(images[new], progress=show)
            features |= dict(zip((digests[i] for i in new), made, strict=True))
            write_features(file, {**known, **used, **features})
        done += len(new)
        used |= features
        found[name] = np.stack([features[digest] for digest in digests])
    if used.keys() != known.keys():
        write_features(file, used)
    return found


def read_features(file: Path) -> Known:
    """Raises ValueError naming a file that is damaged."""
    if not file.exists():
        return {}
    try:
        with np.load(file) as arrays:
            return dict(zip(arrays["images"].tolist(), arrays["features"], strict=True))
    except Exception as error:  # zipfile and numpy raise whatever they stumble over
        raise ValueError(f"{file} is damaged ({error}): delete it, the features are computed again") from error


def write_features(file: Path, known: Known) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as target:
        np.savez(target, images=np.array(list(known)), features=np.stack(list(known.values())))
