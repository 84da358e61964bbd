import time
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evaluation.cmmd import cmmd
from evaluation.frechet import frechet_distance
from evaluation.kid import kid
from evaluation.prdc import prdc
from evaluation.statistics.arrays import blocks, check_features, check_pair, float64_blocks


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.uint8, np.int64])
def test_good_features_are_not_copied(kind: type) -> None:
    good: NDArray[Any] = np.ones((3, 4), kind)
    assert check_features(good, "samples") is good


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.ones(4), r"samples: features must be \[N, D\], not \[4\]"),
        (np.ones((2, 3, 4)), r"samples: features must be \[N, D\], not \[2, 3, 4\]"),
        (np.ones((2, 0)), r"samples: features must be \[N, D\], not \[2, 0\]"),
        (np.ones((0, 4)), "samples: at least 2 images are needed, there are 0"),
        (np.ones((1, 4)), "samples: at least 2 images are needed, there are 1"),
        (np.array([["a", "b"]] * 2), "samples: real numbers are needed, not <U1"),
        (np.ones((2, 2), complex), "samples: real numbers are needed, not complex128"),
        (np.array([[1, 2], [3, np.nan], [np.inf, 1]]), "samples: 2 of 3 rows of features are not finite .*first: 1"),
        (np.array([[1, 2], [3, -np.inf]], np.float32), "samples: 1 of 2 rows of features are not finite"),
        (np.array([[1, 2], [3, -1e26]]), r"samples: 1 of 2 rows of features are not finite numbers below 1e\+25"),
        (np.ma.masked_invalid([[1, 2], [3, np.nan]]), "samples: a masked array"),
        (torch.ones(2, 2, dtype=torch.bfloat16), "samples: no array of NumPy's"),
    ],
)
def test_wrong_features_are_named(wrong: NDArray[np.floating], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_features(wrong, "samples")


def test_one_nan_in_many_features_is_found_within_a_second() -> None:
    features = np.zeros((4000, 2048), np.float32)
    features[3999, 2047] = np.nan
    begun = time.process_time()
    with pytest.raises(ValueError, match=r"1 of 4000 rows of features are not finite numbers.*first: 3999"):
        check_features(features, "samples")
    assert time.process_time() - begun < 1


def test_pairs_have_one_width() -> None:
    with pytest.raises(ValueError, match="real and fake have features of different width: 3 and 2"):
        check_pair(np.ones((4, 3)), np.ones((4, 2)), ("real", "fake"))


def test_metrics_take_tensors_and_the_largest_numbers_leave_no_interval_infinite() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 20, 4), np.float32)
    metrics: tuple[Any, ...] = (frechet_distance, kid, cmmd, prdc)
    for metric in metrics:
        assert metric(torch.tensor(x), torch.tensor(y)) == metric(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = kid(0.99e25 * x / np.abs(x).max(), 0.99e25 * y / np.abs(y).max())
    assert np.isfinite([found.value, found.low, found.high]).all()


def test_blocks_hold_every_row_once() -> None:
    assert [(b.start, b.stop) for b in blocks(7, 3)] == [(0, 3), (3, 6), (6, 7)]
    features = np.arange(14, dtype=np.float16).reshape(7, 2)
    parts = list(float64_blocks(features, 3))
    assert all(part.dtype == np.float64 for _, part in parts)
    assert np.array_equal(np.concatenate([part for _, part in parts]), features)
