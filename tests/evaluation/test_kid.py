import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.kid import kernel, kid
from evaluation.networks.features import EfficientNetLite0


def by_pairs(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    def k(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(a @ b / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_equals_the_definition() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 7, 3))
    assert kid(x, y[:5]).value == pytest.approx(by_pairs(x, y[:5]), abs=1e-12)


def test_equals_torch_fidelity(pair: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    """torch-fidelity 0.4.0's kid_features_to_metric with one subset of all; torchmetrics 1.9.0's poly_mmd is equal."""
    assert kid(*pair).value == pytest.approx(0.1410689178669, abs=1e-12)


def test_many_images_by_blocks() -> None:
    """The value of all pairs at once, in a small part of the memory of one matrix of them."""
    x, y = np.random.default_rng(0).normal(size=(2, 4000, 3)).astype(np.float32)
    tracemalloc.start()
    found = kid(x, y, replicates=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 4000**2 / 2
    x, y = x.astype(np.float64), y.astype(np.float64)
    within = [(kernel(f, f).sum() - (kernel(f, f).trace())) / (4000 * 3999) for f in (x, y)]
    assert found.value == pytest.approx(sum(within) - 2 * kernel(x, y).mean(), abs=1e-12)


def test_unbiased_and_the_interval_contains_zero_for_equal_distributions() -> None:
    """200 draws of the same distribution: mean within 4 standard errors of 0; 0 outside the interval at most 5 %."""
    random = np.random.default_rng(1)
    results = [kid(x, y, replicates=200) for x, y in random.normal(size=(200, 2, 30, 5))]
    values = np.array([r.value for r in results])
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))
    assert np.mean([not r.low <= 0 <= r.high for r in results]) <= 0.05


def test_interval_covers_the_truth_where_the_sets_differ() -> None:
    """Draws from two fixed populations, whose KID is known exactly: the interval holds it about 95 % of the time."""
    random = np.random.default_rng(2)
    # Bounded, as a network's averaged features are.
    p, q = random.uniform(size=(2, 400, 6)) * np.array([1.0, 1.6])[:, None, None]
    truth = kernel(p, p).mean() + kernel(q, q).mean() - 2 * kernel(p, q).mean()
    rows = random.integers(0, 400, size=(200, 2, 150))
    results = [kid(p[i], q[j], replicates=200) for i, j in rows]
    covered = np.mean([r.low <= truth <= r.high for r in results])
    assert 0.9 <= covered <= 0.99, covered


def test_tells_drawings_from_noise(extractor: EfficientNetLite0, features: NDArray[np.float32]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, size=(48, 3, 64, 64), dtype=np.uint8)
    same, other = kid(features[::2], features[1::2]), kid(features[::2], extractor.extract(noise))
    assert same.low <= 0 <= same.high
    assert other.low > same.high


def test_seed_fixes_the_interval() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 20, 4))
    assert kid(x, y, seed=3) == kid(x, y, seed=3)
    assert kid(x, y, seed=3).value == kid(x, y, seed=4).value


def test_refuses_other_features() -> None:
    good = np.random.default_rng(0).normal(size=(4, 3))
    with pytest.raises(ValueError, match="samples: at least 2"):
        kid(good[:1], good)
    with pytest.raises(ValueError, match="different width: 3 and 2"):
        kid(good, good[:, :2])


def test_the_largest_features_have_finite_intervals() -> None:
    random = np.random.default_rng(0)
    x, y = (9e24 * random.uniform(-1, 1, (40, 2048)) for _ in range(2))
    found = kid(x, y, replicates=50)
    assert np.isfinite([found.value, found.low, found.high]).all()
