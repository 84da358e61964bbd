"""CMMD (Jayasumana et al. 2024): MMD² of CLIP image embeddings under a Gaussian kernel, times 1000.

As the authors' code has it: embeddings of length 1, of ViT-L/14 at 336 px; exp(-|x - y|² / (2 · 10²)); the biased
estimate, which at equal distributions lies about 2000 · (1 - mean kernel) / N above 0.
"""

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics.arrays import Features, check_pair, float64_blocks
from evaluation.statistics.estimates import Estimate
from evaluation.statistics.mmd import mmd

SIGMA, SCALE = 10.0, 1000.0


def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(-|x - y|² / (2 σ²)) - 1 of embeddings [N, D] and [M, D] of any length but 0, taken to length 1: [N, M].

    The 1 drops out of MMD². Without it the kernel, always above 0.98, keeps the digits that decide.
    """
    unit_x, unit_y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    return np.expm1((unit_x @ unit_y.T - 1) / SIGMA**2)


def cmmd(x: Features, y: Features, seed: int = 0, replicates: int = 1000) -> Estimate:
    """CMMD of embeddings [N, D] ("samples" in errors) and [M, D] ("reference") with its bootstrap interval.

    ValueError as check_pair, and for an embedding that is all 0.
    """
    x, y = check_pair(x, y)
    for name, embeddings in (("samples", x), ("reference", y)):
        lengths = np.concatenate([np.linalg.norm(block, axis=1) for _, block in float64_blocks(embeddings)])
        if not lengths.all():
            raise ValueError(f"{name}: embedding {lengths.argmin()} is 0, or nearly, and has no direction")
    found = mmd(x, y, kernel, biased=True, seed=seed, replicates=replicates)
    return Estimate(SCALE * found.value, SCALE * found.low, SCALE * found.high)
