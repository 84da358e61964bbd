"""What a preset needs that this machine lacks, found within seconds and said all at once, before anything starts."""

import os
import shutil
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import psutil

from evaluation.results import memory_bytes
from flows.datasets.sets import did_you_mean
from flows.home import Trouble, datasets, home, make_home, sources, weights
from mdm.config import ENCODERS
from mdm.data.shards import choose_tier
from mdm.data.tars import load_manifest
from mdm.data.text import how_to_get
from mdm.presets import LEAST_SAMPLES, Preset
from preprocessing.catalogue import find
from preprocessing.manifest import read_json, samples_left
from preprocessing.sets import emptied, finished_sets, too_few_held_out


def check_machine(preset: Preset) -> None:
    """Raise Trouble with every missing thing and what to do about it."""
    make_home()
    missing = [*_gpus(preset), *_data(preset), *_encoder(preset), *_disk(preset), *_memory(preset)]
    if missing:
        lines = "\n".join(f"  - {line}" for line in missing)
        raise Trouble(f"this machine cannot run preset {preset.name}:\n{lines}\n`mdm run tiny` runs on two CPU cores.")


def on_this_machine(preset: Preset) -> Preset:
    """The preset with ``hardware.device`` as it is found where it says auto: as many processes as there are GPUs.

    At most as many as the preset has; a run's name and results do not go by it.
    """
    if preset.hardware.device != "auto":
        return preset
    import torch

    from mdm.training.compute import gpu_kind

    device, wanted = gpu_kind() or "cpu", preset.hardware.processes
    most = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device, wanted)
    return replace(preset, hardware=replace(preset.hardware, device=device, processes=min(wanted, most)))


def unused_gpu(preset: Preset) -> str | None:
    """A line on the GPU that a preset for the CPU leaves idle, and on what uses it."""
    if preset.hardware.device != "cpu":
        return None
    import torch

    from mdm.training.compute import gpu_kind

    kind = gpu_kind()
    if kind is None:
        return None
    name = torch.cuda.get_device_name() if kind == "cuda" else "Apple's GPU (MPS)"
    return f"this machine has {name}, and {preset.name} trains on the CPU: add `--device auto` to use it"


def _gpus(preset: Preset) -> list[str]:
    if preset.hardware.device == "mps":
        from mdm.training.compute import gpu_kind

        return [] if gpu_kind() == "mps" else ["GPU: hardware.device is mps, torch finds none"]
    if preset.hardware.device != "cuda":
        return []
    import torch

    wanted, found = preset.hardware.processes, torch.cuda.device_count()
    if found >= wanted:
        return []
    return [f"GPUs: hardware.processes wants {wanted} CUDA GPUs on this machine, torch finds {found}"]


def _data(preset: Preset) -> list[str]:
    name, tops = preset.data.name, [stage.model.resolutions[-1] for stage in preset.stages.values()]
    row = find(name)
    sets = finished_sets(datasets(), name)
    if not sets and row.wants and not (sources() / name).exists():
        return [
            f"data: no finished data set {name}: `mdm data {name} --source PATH` makes it, of {row.wants}"
            + did_you_mean(name)
        ]
    if row.clips or (sets and "frames" in (read_json(sets[-1] / "train" / "manifest.json") or {})):
        return [f"data: {name} is a set of clips, and no preset here trains on clips yet"]
    if sets and row.wants and (unfit := emptied(sets[-1]) or too_few_held_out(sets[-1], LEAST_SAMPLES)):
        return [f"data: {unfit}"]
    if sets and row.wants:
        return list(filter(None, (_unfit(sets[-1] / "train", px) for px in tops)))
    lacking = [px for px in tops if not any(tier.px % px == 0 for tier in row.tiers)]
    return [f"data: {name} has no pictures of {px} px, which a stage trains" for px in lacking]


def _unfit(split: Path, px: int) -> str:
    """Why a split cannot be trained on at a resolution, or nothing."""
    try:
        choose_tier(split, load_manifest(split), px)
    except ValueError as error:
        return f"data: {error}"
    return ""


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
    """Asked as the download would ask it: through the proxy where there is one."""
    try:
        with urllib.request.urlopen(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def _disk(preset: Preset) -> list[str]:
    free = shutil.disk_usage(home()).free / 1e9
    if free >= preset.hardware.disk_gb:
        return []
    return [f"disk: {preset.name} needs about {preset.hardware.disk_gb:g} GB at {home()}, {free:.1f} GB are free"]


def _memory(preset: Preset) -> list[str]:
    """Evaluation holds all its images and their kernels at once; what a machine cannot hold is refused, not begun."""
    settings, px, train = preset.evaluation, preset.px, _training_images(preset)
    real = min(settings.num_real or train, train or settings.num_real)
    wanted, there = memory_bytes(settings.num_samples, real, px) / 1e9, psutil.virtual_memory().total / 1e9
    if wanted <= there:
        return []
    of_real = f"{real:,} training images" if real else "all training images (not counted)"
    return [
        f"memory: evaluation holds {settings.num_samples:,} samples and {of_real} of {px} px at once, about "
        f"{wanted:,.0f} GB of this machine's {there:,.0f} GB: set evaluation.num_samples and evaluation.num_real "
        "(2000 each is enough for the kernel distance)"
    ]


def _training_images(preset: Preset) -> int:
    """Of the newest set of that name; as many as were published where there is none, 0 where nobody says how many."""
    sets = finished_sets(datasets(), preset.data.name)
    manifest = read_json(sets[-1] / "train" / "manifest.json") if sets else None
    return find(preset.data.name).published if manifest is None else samples_left(manifest)
