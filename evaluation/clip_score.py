"""CLIP score: how well an image fits its caption, as the cosine between CLIP's embeddings of both.

The raw cosine is what is stored. What others print is derived from it, and the two usual ways differ: torchmetrics cuts
the mean off at 0, Hessel et al. (2021) each pair.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics.arrays import Features, check_pair, float64_blocks
from evaluation.statistics.estimates import Estimate


@dataclass(frozen=True)
class ClipScore:
    """The cosine of each pair [N], and their mean with its 95 % interval over pairs."""

    cosines: NDArray[np.float64]
    mean: Estimate


def clip_score(image_features: Features, text_features: Features) -> ClipScore:
    """Of embeddings [N, D] of images and [N, D] of their captions, row by row, of any length but 0.

    ValueError as check_pair, for unequal numbers, and for an embedding that is all 0.
    """
    images, texts = check_pair(image_features, text_features, ("image_features", "text_features"))
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} images and {len(texts)} captions: each image needs its own")
    cosines = np.empty(len(images))
    for rows, image in float64_blocks(images):
        text = np.asarray(texts[rows], np.float64)
        lengths = np.linalg.norm(image, axis=1) * np.linalg.norm(text, axis=1)
        if not lengths.all():
            raise ValueError(f"pair {rows.start + lengths.argmin()}: an embedding is all 0 and has no direction")
        cosines[rows] = (image * text).sum(1) / lengths
    return ClipScore(cosines, Estimate.mean_of(cosines))


def torchmetrics_score(cosines: NDArray[np.float64]) -> float:
    """As torchmetrics prints it, and with it the authors' script: 100 · mean, not below 0."""
    return max(0.0, 100 * float(cosines.mean()))


def hessel_score(cosines: NDArray[np.float64]) -> float:
    """As Hessel et al. define it (CLIPScore, w = 2.5): the mean of 2.5 · max(cosine, 0)."""
    return 2.5 * float(cosines.clip(0).mean())
