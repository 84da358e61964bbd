import numpy as np
import pytest
import scipy.linalg
from numpy.typing import NDArray

from evaluation.frechet import Gaussian, distance, frechet_distance


def by_matrix_root(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The textbook form, through the square root of the product."""
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.real(np.asarray(scipy.linalg.sqrtm(s1 @ s2)))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * root))


def test_known_answer() -> None:
    """S1 = A², S2 = A⁻¹ B² A⁻¹ have tr (S1 S2)^(1/2) = tr B exactly."""
    random = np.random.default_rng(0)
    a, b = (m @ m.T / 60 + 0.1 * np.eye(60) for m in random.normal(size=(2, 60, 60)))
    inverse = np.linalg.inv(a)
    s1, s2 = a @ a, inverse @ b @ b @ inverse
    m1, m2 = random.normal(size=(2, 60))
    exact = ((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * np.trace(b)
    assert distance(Gaussian.of_moments(m1, s1), Gaussian.of_moments(m2, s2)) == pytest.approx(exact, abs=1e-8)


@pytest.mark.parametrize(("n", "m"), [(500, 400), (500, 6), (6, 500)])
def test_equals_the_textbook_form(n: int, m: int) -> None:
    """Also with fewer images than features in either set (d = 8), where a covariance is singular."""
    random = np.random.default_rng(n)
    x, y = random.normal(size=(n, 8)), 1.5 * random.normal(size=(m, 8)) + 0.3
    assert frechet_distance(x, y) == pytest.approx(by_matrix_root(x, y), abs=1e-5)


def test_both_sets_smaller_than_the_features() -> None:
    """The low-rank form equals the full one through the covariances."""
    x, y = np.random.default_rng(0).normal(size=(2, 10, 40))
    full = distance(*(Gaussian.of_moments(f.mean(0), np.cov(f, rowvar=False)) for f in (x, y)))
    assert frechet_distance(x, y) == pytest.approx(full, abs=1e-6)


def test_identical_sets_are_at_zero_and_never_below(features: NDArray[np.float32]) -> None:
    assert 0 <= frechet_distance(features, features) < 1e-8


def test_more_damage_is_further_away(features: NDArray[np.float32]) -> None:
    random = np.random.default_rng(0)
    noise = random.normal(size=features.shape)
    distances = [frechet_distance(features + strength * noise, features) for strength in (0, 0.1, 0.3, 1)]
    assert distances == sorted(distances)


def test_refuses_what_would_hang_or_mislead() -> None:
    good = np.random.default_rng(0).normal(size=(4, 3))
    with pytest.raises(ValueError, match="samples: at least 2"):
        frechet_distance(good[:1], good)
    with pytest.raises(ValueError, match="reference: 1 of 4 rows"):
        frechet_distance(good, np.where(np.arange(12).reshape(4, 3) == 5, np.nan, good))
    with pytest.raises(ValueError, match="different width: 3 and 2"):
        frechet_distance(good, good[:, :2])
    with pytest.raises(ValueError, match="not a covariance"):
        Gaussian.of_moments(np.zeros(2), np.array([[1.0, 0], [0, -1]]))
