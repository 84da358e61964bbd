import math

import numpy as np
import pytest

from evaluation.frechet import frechet_distance
from evaluation.relative import apart, relative_distance, relative_to_real


def test_mean_of_ratios() -> None:
    assert relative_distance({"inception": 3.0, "dinov2": 10.0}, {"dinov2": 20.0, "inception": 1.5}) == 1.25


@pytest.mark.parametrize(
    ("distances", "real", "message"),
    [
        ({"a": 1.0}, {"a": 1.0}, "two feature spaces or more are needed"),
        ({"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 1.0}, r"not \['a', 'b'\] and \['a', 'c'\]"),
        ({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 0.0}, "b: no ratio of distances 1.0 and 0.0"),
        ({"a": math.nan, "b": 1.0}, {"a": 1.0, "b": 1.0}, "a: no ratio"),
        ({"a": -1.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, "a: no ratio"),
    ],
)
def test_refuses_other_spaces(distances: dict[str, float], real: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        relative_distance(distances, real)


def test_sets_for_a_floor_share_no_image() -> None:
    real = np.arange(100.0)[:, None] * np.ones(2)
    first, second = apart(real, 30, 70, seed=1)
    assert sorted([*first[:, 0], *second[:, 0]]) == list(range(100)) and len(first) == 30
    again = apart(real, 30, 70, seed=1)
    assert np.array_equal(first, again[0]) and np.array_equal(second, again[1])
    assert not np.array_equal(first, apart(real, 30, 70, seed=2)[0])
    for n, others in ((1, 50), (50, 1), (50, 51)):
        with pytest.raises(ValueError, match=f"{n} and {others} other ones of 100 real images"):
            apart(real, n, others)


def test_real_images_are_1_and_a_shift_adds_its_square() -> None:
    """Moved by t, a Gaussian's Fréchet distance grows by |t|² + 2 t · (difference of the means)."""
    random = np.random.default_rng(0)
    real = {"a": random.normal(size=(101, 4)), "b": random.normal(size=(101, 7))}
    half = {space: apart(features, 50, 50, seed=3) for space, features in real.items()}
    others = {space: pair[0] for space, pair in half.items()}
    assert relative_to_real(frechet_distance, others, real, 50, seed=3) == pytest.approx(1, rel=1e-12)
    expected = 0.0
    for first, second in half.values():
        own, difference = frechet_distance(first, second), first.mean(0) - second.mean(0)
        expected += (own + len(difference) * 0.25 + 2 * 0.5 * difference.sum()) / own / 2
    moved = {space: features + 0.5 for space, features in others.items()}
    assert relative_to_real(frechet_distance, moved, real, 50, seed=3) == pytest.approx(expected, rel=1e-9)
    more = {space: np.concatenate([features, features]) for space, features in moved.items()}
    assert relative_to_real(lambda a, b: len(a) + len(b), more, real, 50) == 1  # of equal numbers, whatever there is
