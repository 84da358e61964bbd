"""Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

Around each image lies a ball that reaches to its k-th nearest neighbour in its own set. As in Naeem et al.'s code
(``prdc``) a ball is open; torch-fidelity's is closed, which differs only where distances are equal.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics.arrays import Features, check_pair, float64_blocks

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prdc:
    """``precision``: share of fakes in some real image's ball. ``recall``: share of real images in some fake's ball.
    ``density``: real balls that a fake lies in, over k; it can exceed 1. ``coverage``: share of real balls with a fake
    in them. The first two grow with N, so compare only values of equal N."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: Features, fake: Features, k: int = 3) -> Prdc:
    """Of features [N, D] and [M, D]; usual are 10,000 of each. Block by block, so N x M distances never are in memory.

    ValueError as check_pair, or unless 1 <= k < N and k < M.
    """
    real, fake = check_pair(real, fake, ("real", "fake"))
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(f"k must be at least 1 and below the number of images in either set, not {k}")
    centre = real.mean(axis=0, dtype=np.float64)  # distances stay; their digits do where features lie far from 0
    real_radius, fake_radius = _radius(real, k, centre), _radius(fake, k, centre)
    balls = np.zeros(len(fake))  # real balls around each fake
    nearest = np.full(len(real), np.inf)
    recalled = np.zeros(len(real), bool)
    for rows, block in float64_blocks(real):
        for columns, other in float64_blocks(fake):
            apart = _apart(block - centre, other - centre)
            balls[columns] += (apart < real_radius[rows, None]).sum(0)
            nearest[rows] = np.minimum(nearest[rows], apart.min(1))
            recalled[rows] |= (apart < fake_radius[columns]).any(1)
    return Prdc(
        precision=float((balls > 0).mean()),
        recall=float(recalled.mean()),
        density=float(balls.mean() / k),
        coverage=float((nearest < real_radius).mean()),
    )


def _radius(x: Features, k: int, centre: Array) -> Array:
    """Squared distance of each image to its k-th nearest neighbour: [N]."""
    radius = np.empty(len(x))
    for rows, block in float64_blocks(x):
        least = np.empty((len(block), 0))
        for columns, other in float64_blocks(x):
            apart = _apart(block - centre, other - centre)
            if rows == columns:
                np.fill_diagonal(apart, np.inf)  # no neighbour of itself
            least = np.concatenate([least, apart], axis=1)
            least = np.partition(least, min(k, least.shape[1]) - 1)[:, :k]
        radius[rows] = least.max(1)
    return radius


def _apart(x: Array, y: Array) -> Array:
    """Squared distances [N, M]."""
    squared = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * (x @ y.T)
    return np.asarray(squared.clip(0))
