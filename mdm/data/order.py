"""The order of training: a global position -> a sample, as a function of (seed, position) alone.

The global position counts images seen. No worker, rank, batch size or restart takes part, so resuming needs one
integer, and any number of processes may go on. Two orders, both with every sample once per epoch:

full     one keyed permutation of all samples per epoch: a perfect shuffle, and every sample from another shard
window   for storage where opening a file is slow: the shards of an epoch stand in a keyed order, that line is cut into
         windows of W shards or more, and a keyed permutation mixes the samples within each
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np


def hash64(*parts: int | str) -> int:
    """A 63-bit integer from a tuple: the seed of everything random that belongs to it."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def permute(position: int, size: int, key: int) -> int:
    """Where a keyed bijection of 0 … size-1 sends a position (Feistel rounds, walked until the result fits)."""
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    while True:
        left, right = position >> half_bits, position & mask
        for turn in range(4):
            mixed = (right * 0x9E3779B97F4A7C15 + key + turn * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
            mixed = ((mixed ^ (mixed >> 31)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ ((mixed >> 29) & mask)
        position = left << half_bits | right
        if position < size:
            return position


class Order:
    """position -> index of a sample, for shards of ``counts`` samples each.

    ``window_shards`` = W > 0 asks for the window order. The windows are as equal as whole shards allow and hold W to
    2 W - 1 of them: never fewer, because a small last window would be badly mixed. Shards that make no two windows
    (fewer than 2 W) are in the full order, which is then as local. Raises ValueError where there is no sample.
    """

    def __init__(self, counts: Sequence[int], seed: int, window_shards: int = 0) -> None:
        self.seed = seed
        self.starts = np.concatenate([[0], np.cumsum(counts)])  # of each shard, in the set's own numbering
        self.samples = int(self.starts[-1])
        if self.samples == 0:
            raise ValueError("there are no samples to put in order")
        windows = len(counts) // window_shards if window_shards else 1
        self.cuts = [i * len(counts) // windows for i in range(windows + 1)] if windows > 1 else []

    def index(self, position: int) -> int:
        """Which sample stands at a global position."""
        epoch, place = divmod(position, self.samples)
        if not self.cuts:
            return permute(place, self.samples, hash64(self.seed, "order", epoch))
        shards, line = self._line(epoch)
        bounds = line[self.cuts]  # where each window begins
        window = int(np.searchsorted(bounds, place, side="right")) - 1
        begin, end = int(bounds[window]), int(bounds[window + 1])
        place = begin + permute(place - begin, end - begin, hash64(self.seed, "window", epoch, window))
        turn = int(np.searchsorted(line, place, side="right")) - 1
        return int(self.starts[shards[turn]] + place - line[turn])

    @lru_cache(maxsize=8)  # noqa: B019 (a few epochs: workers look to both sides of an epoch's border)
    def _line(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards [S] in an epoch's order, and where each begins on the line that they make, with its end [S+1]."""
        count, key = len(self.starts) - 1, hash64(self.seed, "shards", epoch)
        shards = np.array([permute(i, count, key) for i in range(count)])
        return shards, np.concatenate([[0], np.cumsum(np.diff(self.starts)[shards])])
