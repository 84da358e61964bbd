from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evaluation.measuring.heads import Heads, pool_tokens, retrieval, train_heads

Pairs = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Features of 400 images and texts that share 8 hidden causes, drowned in as much noise of their own."""
    random = np.random.default_rng(0)
    causes = random.normal(size=(400, 8))
    images = causes @ random.normal(size=(8, 60)) + random.normal(size=(400, 60))
    texts = causes @ random.normal(size=(8, 20)) + random.normal(size=(400, 20))
    return images.astype(np.float32), texts.astype(np.float32)


@pytest.fixture(scope="module")
def heads(pairs: Pairs) -> Heads:
    return train_heads(pairs[0][:300], pairs[1][:300], seed=1, steps=100)


def test_held_out_retrieval_is_far_above_chance(heads: Heads, pairs: Pairs) -> None:
    found = retrieval(heads, pairs[0][300:], pairs[1][300:])
    assert found["r1"].mean() > 0.2 and found["r10"].mean() > 0.6
    assert found["matched"].mean() > 0.4 and abs(found["shuffled"].mean()) < 0.1


def test_numbers_per_pair_have_the_mean_and_the_spread_of_the_whole(heads: Heads, pairs: Pairs) -> None:
    images, texts = pairs[0][300:], pairs[1][300:]
    found = retrieval(heads, images, texts)
    cosines = np.array([heads.cosine(images, np.roll(texts, shift, axis=0)) for shift in range(1, 100)])
    assert found["shuffled"].mean() == pytest.approx(cosines.mean(), abs=1e-6)


def test_an_interval_of_shuffled_captions_has_the_spread_over_new_pairs() -> None:
    """200 sets of 40 pairs each: the deviation of their means is the one that each states."""
    random = np.random.default_rng(0)
    plain = Heads(torch.zeros(6), torch.eye(6), torch.zeros(6), torch.eye(6))
    for shift in (0.0, 1.0):  # at 0 the mean over all others is degenerate: the spread is then overstated
        sets = random.normal(shift, 1, (200, 2, 40, 6))
        found = [retrieval(plain, images, texts)["shuffled"] for images, texts in sets]
        stated = np.mean([values.std(ddof=1) for values in found]) / 40**0.5
        assert 0.9 < stated / np.std([values.mean() for values in found]) < 1.6


def test_unrelated_texts_stay_at_chance(pairs: Pairs) -> None:
    texts = np.random.default_rng(5).permutation(pairs[1])
    found = retrieval(train_heads(pairs[0][:300], texts[:300], steps=100), pairs[0][300:], texts[300:])
    assert found["r10"].mean() < 0.25 and abs((found["matched"] - found["shuffled"]).mean()) < 0.1


def test_cosine_is_that_of_the_rows(heads: Heads, pairs: Pairs) -> None:
    cosine = heads.cosine(pairs[0][300:], pairs[1][300:])
    assert cosine.shape == (100,) and cosine.dtype == np.float32 and np.abs(cosine).max() <= 1
    assert cosine == pytest.approx(retrieval(heads, pairs[0][300:], pairs[1][300:])["matched"], abs=1e-6)


def test_a_constant_text_is_not_found() -> None:
    """All captions equal: every one ties, and a tie counts against."""
    constant = Heads(torch.zeros(4), torch.ones(4, 2), torch.zeros(3), torch.ones(3, 2))
    assert retrieval(constant, np.ones((5, 4)), np.ones((5, 3)))["r1"].max() == 0


def test_seed_decides_and_the_global_random_state_stays(pairs: Pairs) -> None:
    before = torch.random.get_rng_state()
    one, two, other = (train_heads(*pairs, seed=seed, steps=3) for seed in (1, 1, 2))
    assert torch.equal(one.image_weight, two.image_weight) and not torch.equal(one.image_weight, other.image_weight)
    assert torch.equal(before, torch.random.get_rng_state())


def test_save_and_load(heads: Heads, pairs: Pairs, tmp_path: Path) -> None:
    heads.save(tmp_path / "heads.safetensors")
    loaded = Heads.load(tmp_path / "heads.safetensors")
    np.testing.assert_array_equal(heads.cosine(*pairs), loaded.cosine(*pairs))
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors: holds \['other'\]"):
        Heads.load(tmp_path / "other.safetensors")


def test_pool_tokens() -> None:
    tokens = np.array([[3, 0], [0, 4], [0, 4], [5, 0]], np.float16)
    pooled = pool_tokens(tokens, np.array([0, 3, 4]))
    np.testing.assert_allclose(pooled, [[3 / 73**0.5, 8 / 73**0.5], [1, 0]], rtol=1e-6)
    with pytest.raises(ValueError, match="caption 1 has no token states"):
        pool_tokens(tokens, np.array([0, 4, 4]))


def test_refuses_other_features(heads: Heads, pairs: Pairs) -> None:
    with pytest.raises(ValueError, match="10 images but 9 texts"):
        train_heads(pairs[0][:10], pairs[1][:9])
    with pytest.raises(ValueError, match=r"image features must be \[N, 60\]"):
        heads.cosine(pairs[1], pairs[1])
    with pytest.raises(ValueError, match="text features: not all are finite"):
        heads.cosine(pairs[0], np.full_like(pairs[1], np.nan))
