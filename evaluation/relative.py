"""A distance beside what it is for real images: its floor, and the mean over several networks' features."""

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from evaluation.statistics.arrays import Features, check_features

T = TypeVar("T")


def real_against_real(metric: Callable[[Features, Features], T], real: Features, n: int, seed: int = 0) -> T:
    """``metric(a, b)`` of two sets of ``n`` different real images each, drawn by the seed from features [N, D]: what a
    perfect model would reach at this n. ValueError as check_features, or unless 2 <= n <= N / 2."""
    return metric(*halves(real, n, seed))


def halves(real: Features, n: int, seed: int = 0) -> tuple[Features, Features]:
    """Two sets [n, D] of different real images, drawn by the seed. Raises ValueError as real_against_real."""
    check_features(real, "real")
    if not 2 <= n <= len(real) // 2:
        raise ValueError(f"two sets of {n} of {len(real)} real images: n must be at least 2 and at most half of them")
    drawn = np.random.default_rng(seed).permutation(len(real))[: 2 * n]
    return np.asarray(real[np.sort(drawn[:n])]), np.asarray(real[np.sort(drawn[n:])])


def drawn(features: Features, count: int, seed: int) -> Features:
    """``count`` of the rows, by the seed; all where there are no more."""
    if count >= len(features):
        return features
    return np.asarray(features[np.sort(np.random.default_rng(seed).permutation(len(features))[:count])])


def relative_to_real(
    metric: Callable[[Features, Features], float],
    samples: Mapping[str, Features],
    real: Mapping[str, Features],
    n: int,
    seed: int = 0,
) -> float:
    """``relative_distance`` of features [N, D] and [M, D] by their space's name: n samples against n real images, by n
    other real images against the same. ValueError as there, and as real_against_real."""
    distances, own = {}, {}
    for space in (space for space in samples if space in real):  # one at a time: of ImageNet's, halves are large
        others, against = halves(real[space], n, seed)
        distances[space], own[space] = metric(drawn(samples[space], n, seed), against), metric(others, against)
    return relative_distance(distances, own)


def relative_distance(distances: Mapping[str, float], real: Mapping[str, float]) -> float:
    """The mean over feature spaces of distance / real images' own distance, both by the space's name; 1 is as good as
    real images (as FDr6, of Inception, ConvNeXt, DINOv2, MAE, SigLIP and CLIP, against ImageNet's validation images).

    A network can be trained on the distance in one space, so a claim needs others. ValueError for other spaces in one
    than in the other, fewer than two, and distances that are negative or not finite, or 0 of the real images.
    """
    if distances.keys() != real.keys() or len(real) < 2:
        raise ValueError(f"the same two feature spaces or more are needed, not {sorted(distances)} and {sorted(real)}")
    for space in real:
        if not (0 <= distances[space] < math.inf and 0 < real[space] < math.inf):
            raise ValueError(f"{space}: no ratio of distances {distances[space]} and {real[space]}")
    return sum(distances[space] / real[space] for space in real) / len(real)
