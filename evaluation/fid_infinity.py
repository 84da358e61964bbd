"""The Fréchet distance that infinitely many samples would have (Chong & Forsyth 2020): its bias falls as 1/N, so a line
through the distances of more and more samples, against 1/N, is followed to 0.

15 numbers of samples from N/10 to N, evenly spaced, as in dgm-eval; the samples are those of one random order, so each
point holds the one before, and the moments are summed once. The bias is a line in 1/N only where N/10 is more than
about the number of dimensions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.frechet import Gaussian, distance
from evaluation.statistics.arrays import Features, blocks, check_features
from evaluation.statistics.estimates import Estimate
from evaluation.statistics.moments import Moments

POINTS = 15


@dataclass(frozen=True)
class FidInfinity:
    """The line's value at 1/N = 0 with its interval, and the points that it goes through: N [15], distance [15]."""

    estimate: Estimate
    counts: NDArray[np.int64]
    distances: NDArray[np.float64]


def fid_infinity(samples: Features, reference: Gaussian, seed: int = 0, replicates: int = 20) -> FidInfinity:
    """Of features [N, D] against a reference that is taken as exact; the same seed gives the same numbers.

    The interval is by the standard deviation of the value over bootstrap resamples of the samples. Each of these costs
    15 distances: 20 replicates of 30,000 samples of 2048 features take about five minutes. ValueError as distance, for
    fewer than 30 samples or features that check_features refuses, and for fewer than 2 replicates.
    """
    check_features(samples, "samples", fewest=30)
    if replicates < 2:
        raise ValueError(f"an interval needs at least 2 replicates, not {replicates}")
    n = len(samples)
    rng = np.random.default_rng(seed)
    counts = np.linspace(n // 10, n, POINTS).astype(np.int64)
    distances = _distances(samples, rng.permutation(n), counts, reference)
    again = [
        _at_infinity(counts, _distances(samples, rng.integers(0, n, n), counts, reference)) for _ in range(replicates)
    ]
    estimate = Estimate.normal(_at_infinity(counts, distances), float(np.std(again, ddof=1)))
    return FidInfinity(estimate, counts, distances)


def _distances(
    samples: Features, order: NDArray[np.int64], counts: NDArray[np.int64], reference: Gaussian
) -> NDArray[np.float64]:
    """Of the first ``counts`` [15] samples of an order [N]."""
    found, moments, dim = [], Moments(samples.shape[1]), samples.shape[1]
    for count in counts:
        new = order[moments.count : count]
        for block in blocks(len(new)):
            moments.add(samples[new[block]])
        few = count <= dim
        ours = Gaussian.of_features(samples[order[:count]]) if few else Gaussian(moments.mean, moments.covariance)
        found.append(distance(ours, reference))
    return np.array(found)


def _at_infinity(counts: NDArray[np.int64], distances: NDArray[np.float64]) -> float:
    """Where a least-squares line through (1/N, distance) [15] meets 0; it may lie below 0."""
    return float(np.polynomial.Polynomial.fit(1 / counts, distances, 1)(0.0))
