"""Mixed-resolution batches (paper Sec. 4.1): not every sample of a batch carries every level.

The prefix rule, which all that works on such a batch keeps: the first B_r samples carry level r, and B_r does not grow
from level to level. So level r is a tensor [B_r, …], and ``carried_by`` cuts whatever belongs to the samples to it.
"""

from collections.abc import Collection, Iterable
from typing import TypeVar

import torch
from torch import Tensor

Rows = TypeVar("Rows", Tensor, list[int])


def carriers_first(places: Iterable[int], carriers: Collection[int]) -> list[int]:
    """The order of a batch that makes the rule true: first who carries the top level, each part in its own order."""
    return sorted(places, key=lambda place: place not in carriers)


def level_sizes(num_levels: int, batch_size: int, carriers: int) -> list[int]:
    """B_r of every level: all samples carry the lower ones, ``carriers`` of them the top one; a lone level is all's."""
    return [batch_size] * (num_levels - 1) + [carriers if num_levels > 1 else batch_size]


def carried_by(level: Tensor, rows: Rows) -> Rows:
    """Of rows that stand for all B samples [B, …], those of the samples that carry a level [B_r, …]."""
    return rows[: len(level)]


def for_whole_batch(rows: Tensor, batch_size: int) -> Tensor:
    """Rows of a level's samples [B_r, …] -> [B, …], with zeros for the samples that do not carry it."""
    missing = batch_size - len(rows)
    return rows if missing == 0 else torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
