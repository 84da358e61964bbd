"""Kernel distance: the unbiased estimate of MMD² with the cubic kernel (x·y/D + 1)³ (Bińkowski et al. 2018, "KID").

Unlike the Fréchet distance its expectation does not depend on the number of images. Bińkowski et al. average it over
subsets, which is fine for tens of thousands of images; with a few hundred all pairs fit, so the estimate uses all of
them and the interval is a bootstrap over images.

The bootstrap resamples the images of both sets and recomputes the estimate, leaving out every pair of an image with
its own copy (such pairs would add the kernel's diagonal and bias each replicate upwards). The replicates' standard
deviation gives a normal interval around the estimate. Where the sets differ this is the usual bootstrap of a
U-statistic (Bickel & Freedman 1981): of OpenMoji against blurred OpenMoji, 100 to 256 images each, it held the true
value in 92 to 96 % of 200 draws. Where they do not differ, the leading term vanishes and the bootstrap's spread is up
to sqrt(3) times too large rather than too small, so the interval errs on the wide side there (it held 0 in 100 of 100).
Heavy-tailed features would need more images than a few hundred: the kernel is cubic.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.features import check_features

Z_95 = 1.959964  # 97.5 % point of the standard normal


@dataclass(frozen=True)
class Kid:
    """The estimate and the ends of its 95 % interval; all may lie below 0, as the estimate is unbiased."""

    value: float
    low: float
    high: float


def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """(x·y/D + 1)³ of features [N, D] and [M, D]: [N, M]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kid(samples: NDArray[np.floating], reference: NDArray[np.floating], seed: int = 0, replicates: int = 1000) -> Kid:
    """KID of features [N, D] against [M, D] with its interval; the same seed gives the same interval.

    Raises ValueError for features that are not 2-D, of different width, fewer than 2 or not finite.
    """
    x, y = check_features(samples, "samples"), check_features(reference, "reference")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features of different width: {x.shape[1]} and {y.shape[1]}")
    within_x, within_y, between = kernel(x, x), kernel(y, y), kernel(x, y)
    np.fill_diagonal(within_x, 0)
    np.fill_diagonal(within_y, 0)

    def estimates(wx: NDArray[np.float64], wy: NDArray[np.float64]) -> NDArray[np.float64]:
        """KID for rows of image weights [R, N] and [R, M]: each mean over its weighted pairs."""
        pairs_x = wx.sum(1) ** 2 - (wx**2).sum(1)
        pairs_y = wy.sum(1) ** 2 - (wy**2).sum(1)
        mean_x = ((wx @ within_x) * wx).sum(1) / pairs_x
        mean_y = ((wy @ within_y) * wy).sum(1) / pairs_y
        mean_between = ((wx @ between) * wy).sum(1) / (wx.sum(1) * wy.sum(1))
        return mean_x + mean_y - 2 * mean_between

    value = float(estimates(np.ones((1, len(x))), np.ones((1, len(y))))[0])
    # How often each image is drawn; a replicate that drew one single image has no pair and says nothing.
    rng = np.random.default_rng(seed)
    wx = rng.multinomial(len(x), np.full(len(x), 1 / len(x)), size=replicates).astype(np.float64)
    wy = rng.multinomial(len(y), np.full(len(y), 1 / len(y)), size=replicates).astype(np.float64)
    usable = (wx.max(1) < len(x)) & (wy.max(1) < len(y))
    spread = float(estimates(wx[usable], wy[usable]).std(ddof=1))
    return Kid(value, value - Z_95 * spread, value + Z_95 * spread)
