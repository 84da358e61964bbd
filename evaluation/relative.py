"""A distance beside what it is for real images: sets for its floor, and the mean over several networks' features."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from evaluation.statistics.arrays import Features, check_features


def apart(real: Features, n: int, others: int, seed: int = 0) -> tuple[Features, Features]:
    """``n`` and ``others`` different real images [., D], drawn by the seed from features [N, D]: a distance of the
    first to the second is what a perfect model would reach with n samples and such a reference.

    ValueError as check_features, and unless both are at least 2 and no more than there are.
    """
    check_features(real, "real")
    if min(n, others) < 2 or n + others > len(real):
        raise ValueError(f"{n} and {others} other ones of {len(real)} real images: 2 at least of each, N together")
    order = np.random.default_rng(seed).permutation(len(real))[: n + others]
    return np.asarray(real[np.sort(order[:n])]), np.asarray(real[np.sort(order[n:])])


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
    other real images against the same. ValueError as there, and as apart."""
    distances, own = {}, {}
    for space in (space for space in samples if space in real):  # one at a time: of ImageNet's, halves are large
        others, against = apart(real[space], n, n, seed)
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
