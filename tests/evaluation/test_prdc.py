import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.prdc import Prdc, prdc


def by_balls(real: NDArray[np.float64], fake: NDArray[np.float64], k: int) -> list[float]:
    """The definitions, from all distances at once."""

    def apart(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.linalg.norm(x[:, None] - y, axis=2)

    inside = apart(real, fake) < np.sort(apart(real, real))[:, k, None]  # [real balls, fakes]
    around = apart(fake, real) < np.sort(apart(fake, fake))[:, k, None]  # [fake balls, reals]
    return [inside.any(0).mean(), around.any(0).mean(), inside.sum(0).mean() / k, inside.any(1).mean()]


def values(found: Prdc) -> list[float]:
    return [found.precision, found.recall, found.density, found.coverage]


def test_numbers_on_a_line() -> None:
    real = np.array([[0.0], [1.0], [3.0], [4.1]])  # radii 1, 1, 1.1, 1.1
    fake = np.array([[0.5], [0.6], [10.0]])  # radii 0.1, 0.1, 9.4
    # 0.5 and 0.6 lie in the first two balls each; 10 in none. Reals 1, 3, 4.1 lie in the fake ball around 10.
    assert values(prdc(real, fake, k=1)) == pytest.approx([2 / 3, 3 / 4, 4 / 3, 2 / 4])


@pytest.mark.parametrize("k", [1, 3, 5])
def test_equals_the_definition_over_several_blocks(k: int) -> None:
    random = np.random.default_rng(0)
    real, fake = random.normal(size=(1100, 4)), 0.8 * random.normal(size=(1030, 4)) + 0.2
    assert values(prdc(real, fake, k)) == pytest.approx(by_balls(real, fake, k), abs=1e-12)


def test_equals_other_implementations(pair: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    """prdc 0.2 (compute_prdc), and torch-fidelity 0.4.0 (prc_features_to_metric) in precision and recall."""
    fake, real = pair
    assert values(prdc(real, fake, 3)) == pytest.approx([0.95, 0.5, 1.8666666666666667, 0.9333333333333333], abs=1e-12)
    assert values(prdc(real, fake, 5)) == pytest.approx([1.0, 0.6333333333333333, 1.9033333333333333, 1.0], abs=1e-12)


def test_the_same_and_far_apart() -> None:
    x = np.random.default_rng(0).normal(size=(50, 3))
    same = prdc(x, x, 3)
    assert same.precision == same.recall == same.coverage == 1
    assert values(prdc(x, x + 100, 3)) == [0, 0, 0, 0]


def test_far_from_0_as_well_as_near_it() -> None:
    random = np.random.default_rng(0)
    real, fake = (random.integers(0, 2**12, (n, 4)) / 2**10 for n in (80, 90))  # exact at 1e7, too
    assert values(prdc(real + 1e7, fake + 1e7)) == values(prdc(real, fake))


def test_refuses_other_input() -> None:
    good = np.random.default_rng(0).normal(size=(4, 3))
    with pytest.raises(ValueError, match="fake: at least 2"):
        prdc(good, good[:1])
    with pytest.raises(ValueError, match="real and fake have features of different width: 3 and 2"):
        prdc(good, good[:, :2])
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k must be at least 1 and below the number of images.*not {k}"):
            prdc(good, good, k)
