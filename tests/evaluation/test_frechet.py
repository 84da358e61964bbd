from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.linalg
from numpy.typing import NDArray

from evaluation.frechet import (
    Gaussian,
    distance,
    frechet_distance,
    frechet_distance_from_moments,
    frechet_estimate,
)
from evaluation.statistics.estimates import Z_95

Array = NDArray[np.float64]


def by_matrix_root(x: Array, y: Array) -> float:
    """The textbook form, through the square root of the product."""
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.real(np.asarray(scipy.linalg.sqrtm(s1 @ s2)))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * root))


def in_40_digits(x: Array, y: Array) -> float:
    """|m1 - m2|² + |X|² + |Y|² - 2 · (sum of the singular values of X Y'), X and Y centred and over √(N - 1)."""
    with mpmath.workdps(40):
        means, factors = [], []
        for features in (x, y):
            n, d = features.shape
            mean = [mpmath.fsum(mpmath.mpf(v) for v in column) / n for column in features.T]
            root = mpmath.sqrt(n - 1)
            factors.append(
                mpmath.matrix([[(mpmath.mpf(row[j]) - mean[j]) / root for j in range(d)] for row in features])
            )
            means.append(mpmath.matrix(mean))
        values = mpmath.svd_r(factors[0] * factors[1].T, compute_uv=False)
        squares = sum(mpmath.fsum(v**2 for v in part) for part in (means[0] - means[1], *factors))
        return float(squares - 2 * mpmath.fsum(values))


def rotated(*spectra: NDArray[np.floating]) -> list[NDArray[np.floating]]:
    """Symmetric matrices of these eigenvalues in common axes, which are not the coordinates'."""
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(len(spectra[0]),) * 2))[0]
    return [(matrix + matrix.T) / 2 for matrix in ((axes * spectrum) @ axes.T for spectrum in spectra)]


def test_known_answer() -> None:
    """S1 = A², S2 = A⁻¹ B² A⁻¹ have tr (S1 S2)^(1/2) = tr B exactly."""
    random = np.random.default_rng(0)
    a, b = (m @ m.T / 60 + 0.1 * np.eye(60) for m in random.normal(size=(2, 60, 60)))
    inverse = np.linalg.inv(a)
    s1, s2 = a @ a, inverse @ b @ b @ inverse
    m1, m2 = random.normal(size=(2, 60))
    exact = ((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * np.trace(b)
    assert frechet_distance_from_moments(m1, s1, m2, s2) == pytest.approx(exact, abs=1e-8)
    assert frechet_distance_from_moments(m2, s2, m1, s1) == pytest.approx(exact, abs=1e-8)


def test_one_dimension() -> None:
    """(m1 - m2)² + (s1 - s2)² of normal distributions."""
    found = frechet_distance_from_moments(np.array([1.0]), np.array([[4.0]]), np.array([3.0]), np.array([[25.0]]))
    assert found == pytest.approx(4 + 9, abs=1e-14)
    assert frechet_distance(np.array([[0.0], [2.0]]), np.array([[1.0], [1.0], [4.0]])) == pytest.approx(
        1 + (np.sqrt(2) - np.sqrt(3)) ** 2, abs=1e-14
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("flat", "flat"),
        ("steep", "steep"),
        ("steep", "flat"),
        ("steep", "rising"),
        ("half", "half"),  # singular, in the same directions
        ("half", "other half"),  # in others: a plain eigenvalue form is off by 1e-6
        ("half", "flat"),
        ("none", "none"),
        ("none", "flat"),
    ],
)
def test_covariances_that_commute(first: str, second: str) -> None:
    """Σ (√λ1 - √λ2)² of common axes, whatever the spectra; in either order."""
    d = 80
    spectra: dict[str, NDArray[np.floating]] = {
        "flat": np.ones(d),
        "steep": np.logspace(0, -14, d),
        "rising": np.logspace(-14, 0, d),
        "half": 1.0 * (np.arange(d) < d / 2),
        "other half": 2.0 * (np.arange(d) >= d / 2),
        "none": np.zeros(d),
    }
    l1, l2 = spectra[first], spectra[second]
    s1, s2 = rotated(l1, l2)
    exact, mean = np.square(np.sqrt(l1) - np.sqrt(l2)).sum(), np.zeros(d)
    for a, b in ((s1, s2), (s2, s1)):
        assert frechet_distance_from_moments(mean, a, mean, b) == pytest.approx(exact, abs=5e-9)


@pytest.mark.parametrize(("n", "m"), [(12, 10), (12, 4), (4, 12), (4, 5), (2, 2)])
def test_40_digits(n: int, m: int) -> None:
    """More and fewer images than features (d = 8) in either set."""
    random = np.random.default_rng(n)
    x, y = random.normal(size=(n, 8)), 1.5 * random.normal(size=(m, 8)) + 0.3
    exact = in_40_digits(x, y)
    assert frechet_distance(x, y) == pytest.approx(exact, rel=1e-12)
    assert frechet_distance(y, x) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(500, 400), (500, 6), (6, 500)])
def test_equals_the_textbook_form(n: int, m: int) -> None:
    """Also with fewer images than features in either set (d = 8), where a covariance is singular."""
    random = np.random.default_rng(n)
    x, y = random.normal(size=(n, 8)), 1.5 * random.normal(size=(m, 8)) + 0.3
    assert frechet_distance(x, y) == pytest.approx(by_matrix_root(x, y), abs=1e-5)


def test_equals_other_implementations(pair: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    """torch-fidelity 0.4.0 (fid_statistics_to_metric) and torchmetrics 1.9.0 (_compute_fid); of 10 images in 16
    dimensions they differ in the ninth digit, 13.95968859 and 13.95968862."""
    x, y = pair
    assert frechet_distance(x, y) == pytest.approx(4.29418983469616, rel=1e-13)
    assert frechet_distance(x[:10], y) == pytest.approx(13.9596886, rel=1e-7)


def test_both_sets_smaller_than_the_features() -> None:
    """The low-rank form equals the full one through the covariances."""
    x, y = np.random.default_rng(0).normal(size=(2, 10, 40))
    full = frechet_distance_from_moments(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
    assert frechet_distance(x, y) == pytest.approx(full, rel=1e-12)


def test_images_that_are_all_alike_or_twice_there() -> None:
    x = np.random.default_rng(0).normal(size=(20, 30))
    same = np.ones((5, 30))
    assert frechet_distance(same, same) == 0
    assert frechet_distance(x, same) == pytest.approx(np.square(x.mean(0) - 1).sum() + np.trace(np.cov(x.T)), rel=1e-13)
    twice = np.repeat(x, 2, axis=0)  # covariance 38/39 of x's
    scale = 1 - np.sqrt(38 / 39)
    assert frechet_distance(twice, x) == pytest.approx(scale**2 * np.trace(np.cov(x.T)), abs=1e-8)


def test_a_reference_is_factored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    reference = Gaussian.of_features(random.normal(size=(50, 8)))
    samples = [Gaussian.of_features(random.normal(size=(n, 8))) for n in (40, 5, 30)]
    first = distance(samples[0], reference)

    def again(*args: Any, **options: Any) -> None:
        raise AssertionError("factored again")

    monkeypatch.setattr(scipy.linalg.lapack, "dpstrf", again)
    assert distance(samples[0], reference) == first
    assert distance(samples[1], reference) > 0 and distance(samples[2], reference) > 0


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
    with pytest.raises(ValueError, match="different width: 3 and 2"):
        frechet_distance_from_moments(np.zeros(3), np.eye(3), np.zeros(2), np.eye(2))


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        (np.zeros(2), np.diag([1.0, -1]), "not a covariance: a variance is -1"),
        (np.zeros(2), np.array([[1.0, 2], [2, 1]]), "not a covariance: it has a negative eigenvalue"),
        (np.zeros(2), np.array([[0.0, 1], [1, 0]]), "not a covariance: it has a negative eigenvalue"),
        (np.zeros(2), np.array([[1.0, 0.5], [0.4, 1]]), "not a covariance: it is not symmetric"),
        (np.zeros(2), np.array([[1.0, np.inf], [np.inf, 1]]), "not finite"),
        (np.zeros(2), 1j * np.eye(2), "covariance: real numbers are needed, not complex128"),
        (np.zeros(2), np.eye(2, dtype=bool), "covariance: real numbers are needed, not bool"),
        (np.ma.masked_equal([0.0, 1.0], 1), np.eye(2), "mean: a masked array"),
        (np.full(2, 1e200), np.eye(2), "not finite and below 1e\\+25"),
        (np.zeros(2), 1e200 * np.eye(2), "not finite and below 1e\\+25"),
        (np.zeros(3), np.eye(2), r"a mean \[D\] and a covariance \[D, D\] are needed, not \[3\] and \[2, 2\]"),
        (np.zeros((2, 1)), np.eye(2), r"not \[2, 1\] and \[2, 2\]"),
    ],
)
def test_refuses_wrong_moments(mean: Array, covariance: Array, message: str) -> None:
    wrong = mean, covariance
    for good in ((np.zeros(2), np.eye(2)), (np.zeros(2), np.zeros((2, 2)))):  # the second: all images alike
        for order in ((wrong, good), (good, wrong)):
            with pytest.raises(ValueError, match=message):
                frechet_distance_from_moments(*order[0], *order[1])


@pytest.mark.parametrize(("n", "dim"), [(300, 8), (40, 100)])
def test_the_interval_has_the_spread_over_new_samples(n: int, dim: int) -> None:
    """More and fewer images than dimensions."""
    random = np.random.default_rng(0)
    scale = np.linspace(0.2, 2, dim)
    reference = Gaussian.of_features(scale * random.normal(size=(500, dim)))
    drawn = [1.1 * scale * random.normal(size=(n, dim)) for _ in range(150)]
    found = [frechet_estimate(samples, reference, seed) for seed, samples in enumerate(drawn[:30])]
    assert found[0].value == distance(Gaussian.of_features(drawn[0]), reference)
    assert found[0] == frechet_estimate(drawn[0], reference, 0) != frechet_estimate(drawn[0], reference, 1)
    stated = np.mean([(estimate.high - estimate.low) / 2 / Z_95 for estimate in found])
    spread = np.std([distance(Gaussian.of_features(samples), reference) for samples in drawn])
    assert 0.8 < stated / spread < 1.4
    with pytest.raises(ValueError, match="samples: at least 3 images are needed, there are 2"):
        frechet_estimate(drawn[0][:2], reference)
