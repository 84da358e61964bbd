import numpy as np
import pytest

from evaluation.fid_infinity import POINTS, fid_infinity
from evaluation.frechet import Gaussian, frechet_distance

DIM = 8
REFERENCE = Gaussian.of_moments(np.full(DIM, 0.3), 1.5 * np.eye(DIM))
TRUTH = DIM * (0.3**2 + (np.sqrt(1.5) - 1) ** 2)  # of standard normal samples


def test_without_bias_and_the_interval_holds_the_truth() -> None:
    """60 draws of 400: the distance itself is too large, the line's end is right, its 95 % interval mostly holds it."""
    draws = np.random.default_rng(0).normal(size=(60, 400, DIM))
    found = [fid_infinity(draw, REFERENCE, seed=i, replicates=12) for i, draw in enumerate(draws)]
    values = np.array([each.estimate.value for each in found])
    plain = np.array([each.distances[-1] for each in found])
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - TRUTH) < 3 * error
    assert plain.mean() - TRUTH > 3 * error
    covered = np.mean([each.estimate.low <= TRUTH <= each.estimate.high for each in found])
    assert 0.85 <= covered <= 1, covered


def test_points_go_from_a_tenth_to_all() -> None:
    samples = np.random.default_rng(0).normal(size=(100, DIM)).astype(np.float32)
    reference = np.random.default_rng(1).normal(size=(300, DIM))
    found = fid_infinity(samples, Gaussian.of_features(reference), replicates=2)
    assert len(found.counts) == POINTS == 15
    assert found.counts[0] == 10 and found.counts[-1] == 100
    assert found.distances[-1] == pytest.approx(frechet_distance(samples, reference), rel=1e-12)


def test_fewer_samples_than_dimensions_and_the_seed() -> None:
    samples = np.random.default_rng(0).normal(size=(40, 60))
    reference = Gaussian.of_features(np.random.default_rng(1).normal(size=(50, 60)))
    first, again = (fid_infinity(samples, reference, seed=3, replicates=2) for _ in range(2))
    assert first.estimate == again.estimate
    assert np.array_equal(first.distances, again.distances) and np.isfinite(first.distances).all()


def test_refuses_too_few() -> None:
    samples = np.random.default_rng(0).normal(size=(40, DIM))
    with pytest.raises(ValueError, match="samples: at least 30 images are needed, there are 29"):
        fid_infinity(samples[:29], REFERENCE)
    with pytest.raises(ValueError, match="at least 2 replicates"):
        fid_infinity(samples, REFERENCE, replicates=1)
    with pytest.raises(ValueError, match="different width: 7 and 8"):
        fid_infinity(samples[:, :7], REFERENCE)
