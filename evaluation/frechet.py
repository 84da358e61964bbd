"""Fréchet distance between two sets of features, each taken as a Gaussian (Dowson & Landau 1982; Heusel et al. 2017).

    d² = |m1 - m2|² + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

With factors S1 = A'A and S2 = B'B the last trace is the sum of the singular values of A B', because S1 S2 and
(A B')(A B')' share their non-zero eigenvalues. That needs no matrix square root, holds for singular covariances
(fewer images than features), and costs an N x N decomposition where N < D. Everything is float64.
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from evaluation.features import check_features


@dataclass(frozen=True)
class Gaussian:
    """Mean [D], and a factor A [r, D] of the covariance S = A'A, r = min(N, D)."""

    mean: NDArray[np.float64]
    factor: NDArray[np.float64]

    @classmethod
    def of_features(cls, features: NDArray[np.floating], name: str = "features") -> "Gaussian":
        """From features [N, D]; the covariance is the unbiased one (N - 1). Raises ValueError as check_features."""
        x = check_features(features, name)
        mean = x.mean(axis=0)
        factor = (x - mean) / np.sqrt(len(x) - 1)  # [N, D]
        if len(x) > x.shape[1]:
            factor = np.asarray(np.linalg.qr(factor, mode="r"))  # [D, D], the same A'A
        return cls(mean, factor)

    @classmethod
    def of_moments(cls, mean: NDArray[np.floating], covariance: NDArray[np.floating]) -> "Gaussian":
        """From a stored mean [D] and covariance [D, D] (symmetric, positive semi-definite up to rounding)."""
        values, vectors = scipy.linalg.eigh(np.asarray(covariance, np.float64))
        if values[0] < -1e-6 * max(values[-1], 1e-300):
            raise ValueError(f"not a covariance: its smallest eigenvalue is {values[0]:.3g}")
        return cls(np.asarray(mean, np.float64), np.sqrt(values.clip(0))[:, None] * vectors.T)


def distance(a: Gaussian, b: Gaussian) -> float:
    """The squared Fréchet distance, as FID reports it; never below 0, which rounding alone could make it."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of different width: {a.mean.shape[0]} and {b.mean.shape[0]}")
    trace_of_root = np.asarray(scipy.linalg.svdvals(a.factor @ b.factor.T)).sum()
    squared = np.square(a.mean - b.mean).sum() + np.square(a.factor).sum() + np.square(b.factor).sum()
    return max(0.0, float(squared - 2 * trace_of_root))


def frechet_distance(samples: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """Squared Fréchet distance of features [N, D] and [M, D]; for repeated use of one reference: Gaussian, distance.

    Biased upwards at finite N, strongly where N < D: compare only values of equal N (and M), and read KID beside it.
    """
    return distance(Gaussian.of_features(samples, "samples"), Gaussian.of_features(reference, "reference"))
