import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from evaluation.measuring.nearest import nearest_images


def test_finds_itself_at_distance_zero_in_any_portions(drawings: NDArray[np.uint8]) -> None:
    for size in (7, 1000):
        portions = (drawings[start : start + size] for start in range(0, len(drawings), size))
        index, distance = nearest_images(drawings[10:20], portions)
        assert index.tolist() == list(range(10, 20))
        assert distance.max() == 0


def test_finds_a_noisy_smaller_copy(drawings: NDArray[np.uint8]) -> None:
    small = F.avg_pool2d(torch.from_numpy(drawings).float(), 2)
    noisy = (small + 25 * torch.randn(small.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255)
    index, _ = nearest_images(noisy.to(torch.uint8), [drawings])
    assert (index == np.arange(len(drawings))).mean() > 0.9


def test_distance_is_in_grey_levels() -> None:
    _, distance = nearest_images(np.full((1, 3, 64, 64), 30, np.uint8), [np.full((2, 3, 32, 32), 50, np.uint8)])
    assert distance.tolist() == pytest.approx([20], abs=1e-4)


def test_refuses_other_images(drawings: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="training must be uint8"):
        nearest_images(drawings, [drawings[:0]])
    with pytest.raises(ValueError, match="training: there is no image"):
        nearest_images(drawings, [])
    with pytest.raises(ValueError, match="samples must be uint8"):
        nearest_images(torch.from_numpy(drawings).float(), [drawings])
