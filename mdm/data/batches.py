"""Training data: positions -> batches (no state, exact resume).

The global position counts images seen. order.py says which sample stands there, shards.py reads it. Flips and dropped
conditions are drawn from (seed, epoch, sample). Nothing here depends on workers, ranks or restarts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from mdm.data.order import Order, hash64
from mdm.data.shards import Read, SampleCondition, Shards, channels_first
from mdm.data.tars import DamagedShard
from mdm.network.conditioning import Condition, pad_tokens

TRIES = 1000  # samples that may take the place of one, before all count as lost


@dataclass(frozen=True)
class Batch:
    """Samples together, as little moved and as few bytes as can be: ``on`` makes of it what the network takes.

    ``images``: uint8 [B, H, H, 3], or of clips [B, F, H, H, 3], as they were decoded. ``states``: of all captions end
    to end [T, D], in the precision they are stored in, ``lengths`` tokens each. Or ``labels`` [B]; or, online, the
    ``captions`` to encode, "" where one was dropped. ``substituted``: a line for each sample that could not be read and
    was replaced, with its position and its shard's file.
    """

    positions: list[int]
    images: Tensor
    substituted: list[str]
    states: Tensor | None = None
    lengths: tuple[int, ...] = ()
    labels: Tensor | None = None
    captions: tuple[str, ...] = ()

    def on(self, device: torch.device) -> tuple[Tensor, Condition]:
        """Images uint8 [B, 3, H, H] (clips: [B, F, 3, H, H]) and the network's condition, on its device."""
        images = channels_first(self.images.to(device, non_blocking=True)).contiguous()
        if self.states is not None:
            return images, pad_tokens(self.states.to(device, non_blocking=True).float(), self.lengths)
        return images, {} if self.labels is None else {"labels": self.labels.to(device, non_blocking=True)}

    def pin_memory(self) -> "Batch":
        """What DataLoader calls: the same in page-locked memory, which a GPU copies from while it computes."""
        states, labels = (part if part is None else part.pin_memory() for part in (self.states, self.labels))
        return replace(self, images=self.images.pin_memory(), states=states, labels=labels)


class TrainingSet:
    """Positions -> a batch.

    ``window_shards`` > 0: shuffled within so many shards at a time (see order.py). A removed sample's place is
    taken by another one, drawn from (seed, position). So is an unreadable one's, where ``shards.storage`` tolerates
    any; else it raises DamagedShard. Counting them is the caller's.
    """

    def __init__(
        self,
        shards: Shards,
        seed: int,
        null: SampleCondition | None = None,
        dropout: float = 0.0,
        flip: bool = False,
        window_shards: int = 0,
    ) -> None:
        self.shards, self.seed, self.flip = shards, seed, flip
        self.null, self.dropout = null, dropout
        self.order = Order(shards.counts, seed, window_shards)

    def index(self, position: int) -> int:
        """Which sample should stand at a global position."""
        return self.order.index(position)

    def batch(self, positions: Sequence[int]) -> Batch:
        """One sample after the other, each copied to its place as soon as it is decoded: all at once fall out of the
        processor's caches.
        """
        indices, problems = [], []
        conditions: list[Any] = []
        images = torch.empty(0, dtype=torch.uint8)
        for place, position in enumerate(positions):
            index, read, problem = self._readable(position)
            if place == 0:
                images = shared_empty((len(positions), *read.pixels.shape), torch.uint8)
                rows = images.numpy()
            rows[place] = read.pixels
            if read.condition is None:
                raise ValueError(f"{self.shards.folder}: {read.key} has no label in its metadata")
            indices.append(index)
            conditions.append(read.condition)
            problems += [problem] if problem else []
        for place, (position, index) in enumerate(zip(positions, indices, strict=True)):
            epoch = position // len(self.shards)
            seed = hash64(self.seed, "augment", epoch, index)
            draws = np.random.Generator(np.random.PCG64(seed)).random(2)  # default_rng's numbers, for half its time
            if self.flip and draws[0] < 0.5:
                images[place] = images[place].flip(-2)
            if self.null is not None and draws[1] < self.dropout:
                conditions[place] = self.null
        batch = partial(Batch, list(positions), images, problems)
        if isinstance(conditions[0], str):
            return batch(captions=tuple(conditions))
        if isinstance(conditions[0], int):
            return batch(labels=torch.tensor(conditions))
        lengths = tuple(map(len, conditions))
        states = shared_empty((sum(lengths), conditions[0].shape[1]), conditions[0].dtype)
        return batch(states=torch.cat(conditions, out=states), lengths=lengths)

    def _readable(self, position: int) -> tuple[int, Read, str]:
        """The sample of a position, or the first that can take its place, and why it had to, if that was damage."""
        problem = ""
        for turn in range(TRIES):
            again = hash64(self.seed, "substitute", position, turn) % len(self.shards)
            index = again if turn else self.index(position)
            if index in self.shards.removed:
                continue
            try:
                return index, self.shards.read(index), problem
            except DamagedShard as error:
                if not self.shards.storage.tolerate:
                    raise
                problem = problem or f"position {position} has another sample: {error}"
        raise ValueError(problem or f"{self.shards.folder}: next to all samples were removed")


def shared_empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor to be filled; in a worker process where the training can see it, so that nothing is copied there."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)
