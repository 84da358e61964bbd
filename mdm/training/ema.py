"""Averages of the weights, in float32, all tensors of a chunk in one fused operation.

``EMA`` is the paper's (App. B). ``PowerAverages`` are the two lengths from which ``posthoc.py`` rebuilds any other.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20  # of temporaries at a time; a larger single tensor goes alone

LENGTHS = (0.05, 0.10)  # sigma_rel of the two power-function averages (Karras et al. 2024, Sec. 3.2)
LONGEST = 12**-0.5  # sigma_rel of gamma = 0, the plain mean of all weights so far


class EMA:
    """Keeps float32 averages beside a model: average <- decay * average + (1 - decay) * weight after every step."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = _copies(weights)

    @torch.no_grad()
    def update(self, weights: Sequence[Tensor], decay: float, keep: Tensor | None = None) -> None:
        """``weights``: in the order in which they came first. ``keep``: see ``move``."""
        move(list(self.weights.values()), [w.detach() for w in weights], 1 - decay, keep)


class PowerAverages:
    """Averages under a power function of time, t^gamma (Karras et al. 2024, Sec. 3.1), one per tracked length.

    Their reach grows with the training: ``sigma_rel`` is the width of the average as a share of the images seen.
    ``weights``: sigma_rel -> parameter's name -> float32 average.
    """

    def __init__(self, weights: Mapping[str, Tensor], lengths: Sequence[float] = LENGTHS) -> None:
        self.weights: dict[float, dict[str, Tensor]] = {length: _copies(weights) for length in lengths}
        self._gammas = {length: gamma_of(length) for length in lengths}

    @torch.no_grad()
    def update(self, weights: Sequence[Tensor], nimg: int, batch_size: int, keep: Tensor | None = None) -> None:
        """After the step that ends at ``nimg`` images of this training. ``weights``: in the model's order.

        The first step's share is 1: what the averages were made from is forgotten.
        """
        current = [w.detach() for w in weights]
        for length, averages in self.weights.items():
            move(list(averages.values()), current, power_share(self._gammas[length], nimg, batch_size), keep)


@torch.no_grad()
def move(averages: list[Tensor], weights: list[Tensor], share: float, keep: Tensor | None = None) -> None:
    """average <- average + share * (weight - average), in place.

    ``keep``: 0-dim float tensor, 0 where the step was skipped because it was not finite. Then every average stays bit
    for bit what it was, NaN among the weights or not, and nothing is read from the device to find out.
    """
    if keep is None:
        torch._foreach_lerp_(averages, weights, share)  # without temporaries
        return
    kept = keep != 0
    for part in _chunks(averages):
        moved = torch._foreach_lerp(averages[part], weights[part], share)
        for average, new in zip(averages[part], moved, strict=True):  # 0 * NaN is NaN: to be chosen, not multiplied
            torch.where(kept, new, average, out=average)


def gamma_of(sigma_rel: float) -> float:
    """The exponent of the power function whose average has that relative width (Karras et al. 2024, App. C).

    sigma_rel = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)), hence a cubic in gamma; its largest root is meant.
    Raises ValueError outside 0 … 0.2886 (gamma = 0, the plain mean).
    """
    if not 0 < sigma_rel <= LONGEST:
        raise ValueError(f"the relative length must lie above 0 and be at most {LONGEST:.4f}, got {sigma_rel:g}")
    inverse = sigma_rel**-2
    return max(0.0, float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max()))


def power_share(gamma: float, nimg: int, batch_size: int) -> float:
    """1 - beta of the step that ends at ``nimg`` images: beta = (1 - batch / nimg)^(gamma + 1) (Sec. 3.1)."""
    if nimg <= batch_size:
        return 1.0
    return -math.expm1((gamma + 1) * math.log1p(-batch_size / nimg))  # with all digits where it is tiny


def _copies(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.detach().float().clone() for name, weight in weights.items()}


def _chunks(tensors: list[Tensor]) -> Iterator[slice]:
    """Runs of tensors of at most ``CHUNK_BYTES`` together."""
    start = size = 0
    for i, tensor in enumerate(tensors):
        if size and size + tensor.nbytes > CHUNK_BYTES:
            yield slice(start, i)
            start, size = i, 0
        size += tensor.nbytes
    if tensors:
        yield slice(start, len(tensors))
