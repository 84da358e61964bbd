"""Growing a trained model by one or more levels (paper Sec. 3.3, App. B)."""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from mdm.config import Model, check_growth
from mdm.network.nested import NestedUNet
from mdm.network.weights import load_weights, save_weights
from mdm.stage import Start

CARRIED = "optimizer.safetensors"


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


def start_folder(checkpoint: Path, start: Start, grown: Model, folder: Path, seed: int) -> None:
    """Write what a stage starts from, made of another stage's checkpoint, as a folder that its trainer reads:

    ``raw/`` and ``ema/`` (config.json + model.safetensors; the new levels are the same fresh tensors in both), and with
    a carried optimizer ``optimizer.safetensors``: Adam's state of the old parameters; the new ones have none.
    Raises ValueError where the checkpoint cannot be read or not be grown into ``grown``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for target, source in (("raw", start.weights), ("ema", "ema")):
        model, weights = load_weights(checkpoint / source)
        save_weights(folder / target, grown, grow(model, weights, grown, seed))
    carried = folder / CARRIED
    carried.unlink(missing_ok=True)
    if start.optimizer == "carried":
        shutil.copyfile(checkpoint / "state" / CARRIED, carried)


def is_start(folder: Path, start: Start) -> bool:
    """Whether every file that ``start_folder`` writes is there."""
    weights = [f"{which}/{file}" for which in ("raw", "ema") for file in ("config.json", "model.safetensors")]
    return all((folder / name).exists() for name in [*weights, *[CARRIED] * (start.optimizer == "carried")])
