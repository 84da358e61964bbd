"""A weights folder: config.json + model.safetensors, all that sampling, evaluation and growing need."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mdm.config import Model
from mdm.structure import from_dict, to_dict


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A .safetensors file. Raises OSError where it cannot be written: safetensors has an error of its own for that."""
    try:
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error


def save_weights(folder: Path, model: Model, weights: Mapping[str, Tensor]) -> None:
    """config.json + model.safetensors: all that sampling needs. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_dict(model), indent=1))
    save_tensors(folder / "model.safetensors", weights)


def load_weights(folder: Path) -> tuple[Model, dict[str, Tensor]]:
    """The model's configuration and weights. Raises ValueError naming the file that is missing or unreadable."""
    try:
        model = from_dict(Model, json.loads((folder / "config.json").read_text()))
        return model, load_file(folder / "model.safetensors")
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder} is no checkpoint: {Path(error.filename or 'model.safetensors').name} is missing"
        ) from error
    except Exception as error:
        raise ValueError(f"{folder}: unreadable checkpoint ({error})") from error
