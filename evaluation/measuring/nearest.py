"""The training image nearest to each sample, to see whether a model has learned to draw or to copy.

Near in pixels: Euclidean distance after averaging down to 16 px. Of pictures blurred to 16 px or drowned in noise, as
a weak model's samples are, this found the original 90 % and 93 % of the time among 3,953; EfficientNet features found
17 % and 23 %, because they respond to the damage more than to the picture. Features do better (69 % against 59 %, and
67 % against 35 %) where the copy is moved by two pixels or an eighth smaller: a shifted copy can be missed.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

COMPARED_PX = 16
CHUNK = 1024

Images = NDArray[np.uint8] | Tensor


def nearest_images(samples: Images, training: Iterable[Images]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each of N samples the index of the nearest of M training images [N], and the distance [N].

    Both uint8 [., 3, H, W], sizes may differ; the training images come in portions of any length, which are never held
    together. The distance is the root of the mean squared difference at 16 px, in grey levels (0 … 255).
    Raises ValueError for other shapes or types, or no image.
    """
    query = _small(samples, "samples")
    best = torch.full((len(query),), torch.inf)
    index = torch.zeros(len(query), dtype=torch.int64)
    start = 0
    for portion in training:
        small = _small(portion, "training")
        # The exact form: the one by matrix product rounds the small distances, which are the ones that matter here.
        found, where = torch.cdist(query, small, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
        closer = found < best
        best = torch.where(closer, found, best)
        index = torch.where(closer, where + start, index)
        start += len(small)
    if not start:
        raise ValueError("training: there is no image to compare with")
    return index.numpy(), (best / query.shape[1] ** 0.5).numpy()


def _small(images: Images, name: str) -> Tensor:
    """uint8 [N, 3, H, W] -> float32 [N, 3 · 16 · 16]."""
    tensor = images if isinstance(images, Tensor) else torch.from_numpy(np.require(images, requirements=["W", "C"]))
    if tensor.dtype != torch.uint8 or tensor.ndim != 4 or tensor.shape[1] != 3 or not len(tensor):
        raise ValueError(f"{name} must be uint8 [N, 3, H, W] with N > 0, not {tensor.dtype} {list(tensor.shape)}")
    parts = (F.adaptive_avg_pool2d(part.float(), COMPARED_PX) for part in tensor.split(CHUNK))
    return torch.cat(list(parts)).flatten(1)
