"""Growing a trained model by one or more levels (paper Sec. 3.3, App. B)."""

from dataclasses import replace

import torch
from torch import Tensor

from mdm.config import Model
from mdm.nested import NestedUNet


def grow(model: Model, weights: dict[str, Tensor], grown: Model, seed: int) -> dict[str, Tensor]:
    """Weights of ``grown``: those of ``model`` where it has them, fresh ones (from the seed) in the new levels.

    The new levels' adapters and outputs start at zero, so the old levels compute bit for bit what they did and the new
    outputs are 0. Raises ValueError where ``grown`` is not ``model`` with levels added outside.
    """
    old = len(model.levels)
    if grown.levels[:old] != model.levels or len(grown.levels) <= old:
        raise ValueError(
            f"cannot grow {model.resolutions} px into {grown.resolutions} px: the inner levels must be equal"
        )
    if replace(grown, levels=model.levels) != model:
        raise ValueError("cannot grow: everything but the levels must stay as it was trained")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = NestedUNet(grown).state_dict()
    return {**fresh, **weights}
