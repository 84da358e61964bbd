import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.clip_score import clip_score, hessel_score, torchmetrics_score


def test_known_answer() -> None:
    """Angles of 0, 60 and 180 degrees between vectors of any length."""
    images = np.array([[2.0, 0], [1, 0], [0, 3]])
    texts = np.array([[5.0, 0], [0.5, np.sqrt(0.75)], [0, -0.1]])
    score = clip_score(images, texts)
    assert score.cosines == pytest.approx([1, 0.5, -1], abs=1e-15)
    assert score.mean.value == pytest.approx(1 / 6)
    half = 1.959964 * np.std([1, 0.5, -1], ddof=1) / np.sqrt(3)
    assert (score.mean.low, score.mean.high) == pytest.approx((1 / 6 - half, 1 / 6 + half))
    assert torchmetrics_score(score.cosines) == pytest.approx(100 / 6)
    assert hessel_score(score.cosines) == pytest.approx(2.5 * 1.5 / 3)
    assert torchmetrics_score(-score.cosines) == 0


def test_equals_torchmetrics(pair: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    """torchmetrics 1.9.0's clip_score, of a model that returned these features; it was 0 of x and y, whose
    mean is below 0."""
    x, y = pair
    assert torchmetrics_score(clip_score(x, x.astype(np.float64) + y).cosines) == pytest.approx(
        61.51219545361, abs=1e-10
    )
    apart = clip_score(x, y)
    assert apart.mean.value == pytest.approx(-0.0226728226578, abs=1e-12)
    assert torchmetrics_score(apart.cosines) == 0


def test_pairs_over_several_blocks() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 2500, 3)).astype(np.float32)
    cosines = clip_score(x, y).cosines
    i = 2222
    assert cosines[i] == pytest.approx(x[i] @ y[i] / np.linalg.norm(x[i]) / np.linalg.norm(y[i]), abs=1e-6)


def test_refuses_other_embeddings() -> None:
    good = np.random.default_rng(0).normal(size=(4, 3))
    with pytest.raises(ValueError, match="4 images and 3 captions"):
        clip_score(good, good[:3])
    with pytest.raises(ValueError, match="pair 2: an embedding is all 0"):
        clip_score(good, good * (np.arange(4) != 2)[:, None])
    with pytest.raises(ValueError, match="text_features: 1 of 4 rows"):
        clip_score(good, np.where(np.arange(12).reshape(4, 3) == 5, np.nan, good))
    with pytest.raises(ValueError, match="image_features and text_features have features of different width: 3 and 2"):
        clip_score(good, good[:, :2])
