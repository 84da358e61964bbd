"""Growing a trained model by one or more levels (paper Sec. 3.3, App. B)."""

from dataclasses import replace

import torch
from torch import Tensor

from mdm.config import Model
from mdm.nested import NestedUNet


def grow(model: Model, weights: dict[str, Tensor], grown: Model, seed: int) -> dict[str, Tensor]:
    """Weights of ``grown``: those of ``model`` where it has them, fresh ones (from the seed) in the new levels.

    The new levels' adapters and outputs start at zero, so the old levels compute bit for bit what they did and the new
    outputs are 0. An equal model is carried over as it is: stages need not match the levels (App. B). Raises ValueError
    where ``grown`` is not ``model`` with levels added outside.
    """
    check_growth(model, grown)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = NestedUNet(grown).state_dict()
    return {**fresh, **weights}


def check_growth(model: Model, grown: Model, where: str = "") -> None:
    """Raise ValueError where one model cannot be grown into the other."""
    if grown.levels[: len(model.levels)] != model.levels:
        raise ValueError(
            f"{where}cannot grow {model.resolutions} px into {grown.resolutions} px: the inner levels must be equal"
        )
    if replace(grown, levels=model.levels) != model:
        raise ValueError(f"{where}cannot grow: everything but the levels must stay as it was trained")
