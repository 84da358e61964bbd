"""Kernel distance: the unbiased estimate of MMD² with the cubic kernel (x·y/D + 1)³ (Bińkowski et al. 2018, "KID").

Unlike the Fréchet distance its expectation does not depend on the number of images. Bińkowski et al. average it over
subsets; here the estimate uses all pairs.
"""

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics.arrays import Features, check_pair
from evaluation.statistics.estimates import Estimate
from evaluation.statistics.mmd import mmd


def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """(x·y/D + 1)³ of features [N, D] and [M, D]: [N, M]."""
    k = x @ y.T / x.shape[1] + 1
    return k * k * k


def kid(x: Features, y: Features, seed: int = 0, replicates: int = 1000) -> Estimate:
    """KID of features [N, D] ("samples" in errors) against [M, D] ("reference") with its bootstrap interval; all three
    numbers may lie below 0, as the estimate is unbiased. ValueError as check_pair."""
    return mmd(*check_pair(x, y), kernel, biased=False, seed=seed, replicates=replicates)
