"""The authors' weight files (``vis_model.pth``) as weights folders of ours, with their terms beside them."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mdm.config import MODELS, Model
from mdm.files import whole_folder
from mdm.network.nested import NestedUNet
from mdm.network.weights import save_weights
from mdm.released.keys import convert_keys
from mdm.released.unpickle import read_torch_file

RELEASED = ("64x64", "256x256", "1024x1024")
MAX_PARAMETERS = 10_000  # the largest released file has 1,063; each name is compared with many patterns
MAX_NAME_CHARS = 256  # the longest has 135

TERMS = """\
These weights are Apple's, converted from a checkpoint released with apple/ml-mdm; they are not this project's work.

Code:     released under Apple's sample code licence (the LICENSE file of apple/ml-mdm).
Weights:  no terms of their own are stated; read that licence before you use or pass them on.
Training: about 50 million image-text pairs from Flickr, not CC12M. What these weights draw or score is a result of the
          released models and must never be shown as a reproduction on CC12M.
"""


def convert(file: Path, folder: Path, name: str | None = None, dry_run: bool = False) -> str:
    """Write a released weight file as ``folder`` with config.json, model.safetensors, TERMS.txt -> the model's name.

    Without a ``name`` the model is recognised. With ``dry_run`` all is read and compared, and nothing written. Raises
    ValueError naming the file and what is wrong with it, the keys that do not fit included.
    """
    if name is not None and name not in MODELS:
        raise ValueError(f"unknown model {name!r}; there are {', '.join(MODELS)}")
    if folder.exists():
        raise ValueError(f"{folder} exists already: choose another folder, or remove it")
    weights = read_state_dict(file)
    try:
        name = name or recognise(weights)
        converted = fit(weights, MODELS[name])
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if not dry_run:
        users = Counter(tensor.untyped_storage().data_ptr() for tensor in converted.values())
        for key, tensor in converted.items():  # safetensors refuses two views of the same numbers
            if users[tensor.untyped_storage().data_ptr()] > 1:
                converted[key] = tensor.clone()
        with whole_folder(folder) as made:
            save_weights(made, MODELS[name], converted)
            (made / "TERMS.txt").write_text(TERMS)
    return name


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """The parameters in a released file, under its names. The rest of it (settings, losses) is left out."""
    content = read_torch_file(file)
    weights = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise ValueError(f"{file}: no released checkpoint: it holds no state_dict")
    if len(weights) > MAX_PARAMETERS:
        raise ValueError(f"{file}: its state_dict holds {len(weights)} parameters, more than any released model")
    for key, value in weights.items():
        if not isinstance(key, str) or len(key) > MAX_NAME_CHARS or not key.isascii() or not key.isprintable():
            raise ValueError(f"{file}: {str(key)[:80]!r} in its state_dict is no parameter's name")
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ValueError(f"{file}: {key} in its state_dict is no tensor of floating-point numbers")
    return weights


def recognise(weights: Mapping[str, Tensor]) -> str:
    """Which released model has these keys: the one with as many levels. Whether all fit, ``fit`` finds out."""
    num_levels = 1 + max(key.count("inner_unet.") for key in weights)
    for name in RELEASED:
        if len(MODELS[name].levels) == num_levels:
            return name
    raise ValueError(f"{num_levels} nested levels: no released model has so many")


def fit(weights: Mapping[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Released parameters under our names. Raises ValueError listing the missing, unexpected and misshapen ones."""
    with torch.device("meta"):
        expected = NestedUNet(model).state_dict()
    return convert_keys(weights, model, expected)
