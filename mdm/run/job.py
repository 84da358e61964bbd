"""What a trainer is told (``job.json``) and what it notes of itself (``config.json``)."""

import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mdm.config import Device, Model, Sampling
from mdm.data.embeddings import TextSource
from mdm.files import load_as
from mdm.stage import Cadence, Compute, Storage, Training
from mdm.structure import to_dict

PACKAGES = ("torch", "transformers", "numpy", "safetensors")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a trainer needs to know, as ``job.json`` in the run folder."""

    model: Model
    training: Training
    compute: Compute = field(default_factory=Compute)
    cadence: Cadence = field(default_factory=Cadence)
    storage: Storage = field(default_factory=Storage)
    sampling: Sampling
    train_data: str  # dataset folders
    val_data: str
    train_digest: str = ""  # the manifests' digests: other data in these folders is refused; "" in jobs of before
    val_digest: str = ""
    text: TextSource | None  # their captions' states: stored, or made by the encoder; none for labels
    init: str | None = None  # folder to start from: raw/, ema/ and, where it is carried over, optimizer.safetensors
    seed: int = 0
    device: Device = "auto"
    threads: int = 0  # CPU threads per process; 0: torch's choice
    data_workers: int = 0  # decoding processes per trainer process; 0: in the trainer itself


def load_job(run: Path) -> Job:
    """``job.json`` of a run folder. Raises ValueError naming the file or field."""
    if not (run / "job.json").exists():
        raise ValueError(f"{run} is no training run: job.json is missing")
    return load_as(Job, run / "job.json")


def resolved(job: Job, device: torch.device, world: int) -> dict[str, Any]:
    """``config.json``: the job with every default, and on what it ran."""
    hardware = f"{cpu_name()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    if device.type == "cuda":
        hardware += f", {torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return {
        "job": to_dict(job),
        "versions": {"python": platform.python_version(), **{p: v for p in PACKAGES if (v := _version(p))}},
        "commit": commit(Path(__file__).parent),
        "hardware": hardware,
        "processes": world,
        "command": " ".join(sys.argv),
    }


def cpu_name() -> str:
    """The processor as the system calls it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown CPU"


def device_name(device: torch.device) -> str:
    """A GPU as its maker calls it, else the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def commit(folder: Path) -> str:
    """The commit of the checkout that a folder belongs to, marked where files differ from it."""
    git = ["git", "-C", str(folder)]
    try:
        name = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
    return name + (" with uncommitted changes" if changed.strip() else "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
