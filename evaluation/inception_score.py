"""Inception score (Salimans et al. 2016): exp of the mean KL divergence of an image's classes from all images' classes.

It sees no real images and grows with N; usual are 50,000 images in 10 splits of 5,000.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr

from evaluation.statistics.arrays import Features, check_features


@dataclass(frozen=True)
class InceptionScore:
    """Mean and standard deviation over splits; between 1 and the number of classes."""

    mean: float
    deviation: float


def inception_score(probabilities: Features, splits: int = 10) -> InceptionScore:
    """Of class probabilities [N, C], the rows of a softmax, cut into splits in the order given: mix images that are
    sorted by class before.

    ValueError as check_features, for rows that are no probabilities, and for fewer than two images a split.
    """
    check_features(probabilities, "probabilities")
    count = len(probabilities)
    if not 1 <= splits <= count // 2:
        raise ValueError(f"{count} images in {splits} splits: at least 1 split of at least 2 images is needed")
    edges = [i * count // splits for i in range(splits + 1)]
    scores = [_score(probabilities[a:b], a) for a, b in pairwise(edges)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(part: Features, first: int) -> float:
    p: NDArray[np.float64] = np.asarray(part, np.float64)
    wrong = (p.min(1) < 0) | (np.abs(p.sum(1) - 1) > 1e-2)  # half precision is off by 1e-3
    if wrong.any():
        raise ValueError(f"probabilities: row {first + wrong.argmax()} is none; of logits take the softmax first")
    p = p / p.sum(1, keepdims=True)
    return float(np.exp(rel_entr(p, p.mean(0)).sum(1).mean()))
