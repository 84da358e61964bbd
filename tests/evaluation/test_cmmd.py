import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.cmmd import cmmd


def test_equals_the_published_code(pair: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    """distance.mmd of the authors' code in float64 (of the PyTorch port at 49fb717), on embeddings of length 1."""
    x, y = pair
    assert cmmd(x, y, replicates=2).value == pytest.approx(0.60545247993, abs=1e-11)
    assert cmmd(3 * x, 0.1 * y, replicates=2).value == pytest.approx(0.60545247993, abs=1e-6)  # float32's rounding


def test_known_answer() -> None:
    """Two points, opposite each other: MMD² = 2 - 2 exp(-4 / 200). All pairs are used, so 40 copies change nothing."""
    x, y = np.array([[2.0, 0]] * 40), np.array([[-0.5, 0]] * 40)
    assert cmmd(x, y, replicates=2).value == pytest.approx(2000 * -np.expm1(-4 / 200), rel=1e-13)
    assert cmmd(x, x, replicates=2).value == 0


def test_over_several_blocks() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(1100, 4)), random.normal(size=(1030, 4)) + 0.5
    u, v = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))

    def mean(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(np.exp((a @ b.T - 1) / 100).mean())

    found = cmmd(x, y, replicates=20)
    assert found.value == pytest.approx(1000 * (mean(u, u) + mean(v, v) - 2 * mean(u, v)), rel=1e-9)
    assert 0 < found.low < found.value < found.high


def test_refuses_other_embeddings() -> None:
    good = np.random.default_rng(0).normal(size=(4, 3))
    with pytest.raises(ValueError, match="reference: embedding 2 is 0, or nearly"):
        cmmd(good, good * (np.arange(4) != 2)[:, None])
    with pytest.raises(ValueError, match="samples: embedding 0 is 0, or nearly"):  # its squares are 0
        cmmd(1e-170 * good, good)
    with pytest.raises(ValueError, match="different width: 3 and 2"):
        cmmd(good, good[:, :2])
    with pytest.raises(ValueError, match="samples: at least 2"):
        cmmd(good[:1], good)
