"""Checkpoint folders: written whole or not at all, verified before use.

``ema/`` and ``raw/`` (config.json + model.safetensors) serve to sample, evaluate and grow; ``state/`` (optimizer,
counters) to resume; ``manifest.json`` with sizes and sha256 of every file comes last. A folder under its final name is
complete: it was written under a temporary one, fsynced and renamed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mdm.config import Model
from mdm.structure import from_dict, to_dict

PREFIX = "nimg-"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically: a reader sees the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def save_weights(folder: Path, model: Model, weights: Mapping[str, Tensor]) -> None:
    """config.json + model.safetensors: all that sampling needs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_dict(model), indent=1))
    save_file(
        {name: tensor.detach().contiguous().cpu() for name, tensor in weights.items()}, folder / "model.safetensors"
    )


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


def save_checkpoint(
    checkpoints: Path,
    nimg: int,
    model: Model,
    raw: Mapping[str, Tensor],
    ema: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write ``checkpoints/nimg-…`` and drop all but the newest ``keep`` whole ones."""
    final = checkpoints / f"{PREFIX}{nimg:012d}"
    temporary = final.with_name(final.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    save_weights(temporary / "raw", model, raw)
    save_weights(temporary / "ema", model, ema)
    (temporary / "state").mkdir()
    moments = {name: tensor.contiguous() for name, tensor in optimizer.items()}
    save_file(moments, temporary / "state" / "optimizer.safetensors")
    (temporary / "state" / "state.json").write_text(json.dumps(dict(state), indent=1))
    files = {}
    for path in sorted(p for p in temporary.rglob("*") if p.is_file()):
        files[str(path.relative_to(temporary))] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        sync(path)
    write_json(temporary / "manifest.json", {"nimg": nimg, "files": files})
    shutil.rmtree(final, ignore_errors=True)  # only a damaged one can be in the way: whole ones are resumed from
    temporary.rename(final)
    sync(checkpoints)
    for old in list_checkpoints(checkpoints)[:-keep]:
        shutil.rmtree(old)
    return final


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(p for p in checkpoints.glob(PREFIX + "*") if p.suffix != ".tmp")


def newest_checkpoint(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose every file is as its manifest says, and a line for each one passed over."""
    passed_over: list[str] = []
    for folder in reversed(list_checkpoints(checkpoints)):
        problem = find_damage(folder)
        if problem is None:
            return folder, passed_over
        passed_over.append(f"{folder.name} is damaged ({problem}): using the one before")
    return None, passed_over


def milestone_checkpoint(checkpoints: Path, name: str) -> Path:
    """The checkpoint whose manifest bears that milestone's name. Raises ValueError where none is there and whole."""
    for folder in list_checkpoints(checkpoints):
        try:
            milestone = json.loads((folder / "manifest.json").read_text()).get("milestone")
        except (OSError, ValueError):
            continue  # damaged, but then perhaps another one
        if milestone == name:
            damage = find_damage(folder)
            if damage is not None:
                raise ValueError(f"{folder}, milestone {name}, is damaged ({damage})")
            return folder
    raise ValueError(f"{checkpoints} holds no milestone {name!r}")


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    try:
        files = json.loads((folder / "manifest.json").read_text())["files"]
        for name, expected in files.items():
            path = folder / name
            if path.stat().st_size != expected["bytes"] or sha256(path) != expected["sha256"]:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
