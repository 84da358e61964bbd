"""What a preset needs that this machine lacks, found within seconds and said all at once, before anything starts."""

import os
import shutil
import socket

from flows.home import Trouble, datasets, home, make_home, weights
from mdm.config import ENCODERS
from mdm.data.text import how_to_get
from mdm.presets import Preset
from preprocessing.sets import finished_sets


def check_machine(preset: Preset) -> None:
    """Raise Trouble with every missing thing and what to do about it."""
    make_home()
    missing = [*_gpus(preset), *_data(preset), *_encoder(preset), *_disk(preset)]
    if missing:
        lines = "\n".join(f"  - {line}" for line in missing)
        raise Trouble(f"this machine cannot run preset {preset.name}:\n{lines}\n`mdm run tiny` runs on two CPU cores.")


def _gpus(preset: Preset) -> list[str]:
    if preset.hardware.device != "cuda":
        return []
    import torch

    wanted, found = preset.hardware.processes, torch.cuda.device_count()
    if found >= wanted:
        return []
    return [f"GPUs: hardware.processes wants {wanted} CUDA GPUs on this machine, torch finds {found}"]


def _data(preset: Preset) -> list[str]:
    if preset.data.source != "prepared":
        return []
    folder = datasets() / preset.data.name
    if finished_sets(datasets(), preset.data.name):
        return []
    return [f"data: no finished dataset at {folder} (train, val); put shards with index and manifest there"]


def _encoder(preset: Preset) -> list[str]:
    if preset.text is None:
        return []
    spec = ENCODERS[preset.text]
    local = weights() / (spec.files or preset.text)
    if spec.package is not None or (local / "config.json").exists():
        return []
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(str(spec.hub), "config.json"), str):
        return []
    offline = os.environ.get("MDM_OFFLINE") == "1" or os.environ.get("HF_HUB_OFFLINE") == "1"
    if not offline and _hub_answers():
        return []
    why = "MDM_OFFLINE is set" if offline else "the hub cannot be reached"
    lacking = f"text encoder: {preset.text} is neither at {local} nor in the hub's cache, and {why}"
    return [f"{lacking}. {how_to_get(preset.text, local)}"]


def _hub_answers() -> bool:
    try:
        with socket.create_connection(("huggingface.co", 443), timeout=3):
            return True
    except OSError:
        return False


def _disk(preset: Preset) -> list[str]:
    free = shutil.disk_usage(home()).free / 1e9
    if free >= preset.hardware.disk_gb:
        return []
    return [f"disk: {preset.name} needs about {preset.hardware.disk_gb:g} GB at {home()}, {free:.1f} GB are free"]
