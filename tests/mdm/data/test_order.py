"""Both orders: bijections, functions of the position alone, well mixed, cheap at 10,000 shards."""

import time
from itertools import pairwise

import numpy as np
import pytest

from mdm.data.order import Order, permute

UNEVEN = [3, 0, 8, 1, 5, 5, 13, 2, 8, 8, 4]


@pytest.mark.parametrize("size", [1, 2, 3, 40, 1000])
def test_permutation_is_a_bijection_that_depends_on_the_key(size: int) -> None:
    orders = [[permute(i, size, key) for i in range(size)] for key in (1, 2)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    assert size < 40 or orders[0] != orders[1]


@pytest.mark.parametrize("window", [0, 1, 2, 3, 5, 11, 100])
def test_every_sample_once_per_epoch_in_another_order_each_time(window: int) -> None:
    order, total = Order(UNEVEN, seed=3, window_shards=window), sum(UNEVEN)
    epochs = [[order.index(e * total + i) for i in range(total)] for e in range(3)]
    assert all(sorted(epoch) == list(range(total)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != [Order(UNEVEN, seed=4, window_shards=window).index(i) for i in range(total)]


@pytest.mark.parametrize("window", [0, 3])
def test_the_order_has_no_memory(window: int) -> None:
    """Positions of several epochs, asked for backwards and by many instances, give what they give in order."""
    total = sum(UNEVEN)
    forwards = [Order(UNEVEN, 0, window).index(i) for i in range(4 * total)]
    order = Order(UNEVEN, 0, window)
    assert [order.index(i) for i in reversed(range(4 * total))] == forwards[::-1]


def test_a_window_holds_w_to_twice_w_shards_and_few_shards_are_one_full_order() -> None:
    counts, window = [10] * 103, 32
    order = Order(counts, 0, window)
    assert np.diff(order.cuts).tolist() == [34, 34, 35]
    bounds = np.array(order.cuts) * 10
    for begin, end in pairwise(bounds):
        shards = {order.index(i) // 10 for i in range(begin, end)}
        assert len(shards) == (end - begin) // 10
    full = Order([10] * 63, 0)
    assert [Order([10] * 63, 0, window).index(i) for i in range(630)] == [full.index(i) for i in range(630)]


def test_batches_are_mixed() -> None:
    """Distinct shards in a batch of 64: of all 128 shards about 50.5, of a window's 32 about 27.8 can be expected."""
    mean = {}
    for window in (0, 32):
        order = Order([1000] * 128, 1, window)
        batches = [{order.index(start + i) // 1000 for i in range(64)} for start in range(0, 64000, 640)]
        mean[window] = np.mean([len(batch) for batch in batches])
    assert 49 < mean[0] < 52
    assert 26.5 < mean[32] < 29


def test_ten_thousand_shards_are_cheap() -> None:
    order = Order([1000] * 10_000, 0, 32)
    begun = time.perf_counter()
    order.index(0)
    assert time.perf_counter() - begun < 2  # an epoch's line, made once: 0.05 s alone on a core
    begun = time.perf_counter()
    for i in range(2000):
        order.index(i % 2 * 10_000_000 - 1 + i)  # to and fro over an epoch's border
    assert time.perf_counter() - begun < 2  # 20 µs each, and one more line


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        Order([0, 0], 0)
