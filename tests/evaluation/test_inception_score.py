import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax

from evaluation.inception_score import inception_score


def test_ends_of_the_scale() -> None:
    """Sure of a class each, all equally often: the number of classes. The same for all images: 1."""
    sure = np.tile(np.eye(4), (5, 1))
    assert inception_score(sure, splits=5).mean == pytest.approx(4)
    assert inception_score(np.full((20, 4), 0.25), splits=2).mean == pytest.approx(1)


def test_known_answer() -> None:
    """Two images (p, 1 - p) and (1 - p, p): the mean is (1/2, 1/2), the divergence log 2 - H(p)."""
    p = 0.9
    found = inception_score(np.array([[p, 1 - p], [1 - p, p]]), splits=1)
    assert found.mean == pytest.approx(2 * p**p * (1 - p) ** (1 - p))
    assert found.deviation == 0


def test_equals_torch_fidelity(pair: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    """torch-fidelity 0.4.0's isc_features_to_metric, not shuffled; 7 does not divide 60."""
    p = softmax(pair[0].astype(np.float64), axis=1)
    found = inception_score(p, splits=4)
    assert (found.mean, found.deviation) == pytest.approx((1.4185090364018027, 0.03203626887056728), rel=1e-12)
    assert inception_score(p.astype(np.float32), splits=7).mean == pytest.approx(1.37947171619, rel=1e-6)


def test_refuses_what_is_no_probability() -> None:
    good = np.full((20, 4), 0.25)
    logits = good.copy()
    logits[13] = [3, -1, 0, -1]
    with pytest.raises(ValueError, match="row 13 is none; of logits take the softmax"):
        inception_score(logits, splits=2)
    with pytest.raises(ValueError, match="20 images in 11 splits"):
        inception_score(good, splits=11)
    with pytest.raises(ValueError, match="probabilities: at least 2"):
        inception_score(good[:1])
