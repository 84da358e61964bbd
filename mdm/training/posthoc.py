"""An EMA of another length, rebuilt after the training (post-hoc EMA: Karras et al. 2024, arXiv 2312.02696, Sec. 3).

While it trains, a run keeps two averages under power functions of time (``ema.PowerAverages``) and now and then writes
both down. Any average is a weighing of the weights' history, its profile; the snapshots' profiles are combined into
the wanted one as well as they can be, and the same combination of the snapshots is that average of the weights.

    RUN/averages/nimg-…/0.050.safetensors, 0.100.safetensors, config.json, manifest.json

Each folder is written whole or not at all (``run/folder.py``).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from mdm.config import Model
from mdm.files import whole_folder, write_json
from mdm.network.weights import save_tensors, save_weights
from mdm.run.folder import find_damage, folder_of, list_folders, write_folder
from mdm.structure import from_dict, to_dict
from mdm.training.ema import gamma_of

FOLDER = "averages"  # in the run folder

# A fit worse than this is refused. The error is the part of the profile's norm that the snapshots cannot make up. About
# as far off come the weights where they only tremble around zero; where they wander, a tenth of it (both measured, see
# the tests). The lengths 0.04 … 0.15 need eight evenly spread snapshots for this, 0.03 … 0.2 sixteen.
LARGEST_ERROR = 0.05


@dataclass(frozen=True)
class Profile:
    """How an average of length sigma_rel that ends at ``nimg`` images weighs the history: t^gamma, of integral 1."""

    nimg: int
    sigma_rel: float


@dataclass(frozen=True)
class Snapshot:
    """One average on disk."""

    profile: Profile
    path: Path  # its .safetensors


@dataclass(frozen=True)
class Fit:
    """The combination of snapshots that comes closest to a profile."""

    wanted: Profile
    snapshots: tuple[Snapshot, ...]
    weights: tuple[float, ...]  # of the snapshots; they sum to 1
    error: float  # norm of the difference of the profiles, relative to the wanted one's
    passed_over: tuple[str, ...] = ()  # a line for each snapshot that is damaged

    def check(self) -> None:
        """Refuse a poor fit, with the reason."""
        if self.error > LARGEST_ERROR:
            newest = max(s.profile.nimg for s in self.snapshots)
            raise ValueError(
                f"{len(self.snapshots)} snapshots, the newest at {newest} images, miss an average of length "
                f"{self.wanted.sigma_rel:g} at {self.wanted.nimg} images by {self.error:.0%}, more than the "
                f"{LARGEST_ERROR:.0%} admitted: take a moment of a snapshot (--at), a length nearer to the tracked "
                "ones, or more snapshots (cadence.average_every_nimg)"
            )


def write_snapshot(
    run: Path,
    nimg: int,
    model: Model,
    averages: Mapping[float, Mapping[str, Tensor]],
    attempt: int = 0,
    may_write: Callable[[], None] = lambda: None,
) -> Path:
    """Write the averages (sigma_rel -> parameter -> tensor) at ``nimg`` images as ``RUN/averages/nimg-…``.

    In float32: a short length is a difference of snapshots weighted by up to four, which magnifies half precision's
    rounding. One that is there already is replaced: a resumed run repeats itself. See ``write_folder``.
    """

    def fill(folder: Path) -> None:
        for sigma_rel, average in averages.items():
            save_tensors(folder / f"{sigma_rel:.3f}.safetensors", {name: t.float() for name, t in average.items()})
        write_json(folder / "config.json", to_dict(model))

    final = folder_of(run / FOLDER, nimg)
    lengths = {f"{sigma_rel:.3f}.safetensors": sigma_rel for sigma_rel in averages}
    write_folder(final, attempt, {"nimg": nimg, "lengths": lengths}, fill, may_write)
    return final


def list_snapshots(run: Path) -> tuple[list[Snapshot], list[str]]:
    """Every whole snapshot of a run, oldest first, and a line for each damaged one. Reads and verifies all files."""
    found, passed_over = [], []
    for folder in list_folders(run / FOLDER):
        problem = find_damage(folder)
        if problem is not None:
            passed_over.append(f"{folder.name} is damaged ({problem}): left out")
            continue
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, sigma_rel in manifest["lengths"].items():
            found.append(Snapshot(Profile(manifest["nimg"], sigma_rel), folder / name))
    return found, passed_over


def fit(snapshots: Sequence[Snapshot], wanted: Profile) -> Fit:
    """The least-squares combination of the profiles that ended by then (App. C), its weights held to the sum of 1.

    The paper leaves the sum free. Held, what all snapshots share comes out exact however poor the fit is: our choice.
    Raises ValueError where there is nothing to combine or the length is none.
    """
    gamma_of(wanted.sigma_rel)
    used = tuple(s for s in snapshots if s.profile.nimg <= wanted.nimg)
    if not used:
        there = ", ".join(str(n) for n in sorted({s.profile.nimg for s in snapshots})) or "none"
        raise ValueError(f"no snapshot at {wanted.nimg} images or before (there are: {there})")
    profiles = [s.profile for s in used]
    n = len(used)
    system = np.ones((n + 1, n + 1))  # normal equations, bordered by the condition on the sum
    system[:n, :n] = [[product(a, b) for b in profiles] for a in profiles]
    system[n, n] = 0
    right = np.array([*(product(a, wanted) for a in profiles), 1.0])
    weights = np.linalg.lstsq(system, right, rcond=None)[0][:n]
    norm = product(wanted, wanted)
    squared = weights @ system[:n, :n] @ weights - 2 * weights @ right[:n] + norm
    return Fit(wanted, used, tuple(map(float, weights)), float(np.sqrt(max(0.0, squared) / norm)))


def product(a: Profile, b: Profile) -> float:
    """The inner product of two profiles p(t) = (gamma + 1) t^gamma / nimg^(gamma + 1), 0 <= t <= nimg, in 1/image."""
    early, late = sorted((a, b), key=lambda profile: profile.nimg)
    g, h = gamma_of(early.sigma_rel), gamma_of(late.sigma_rel)
    return (g + 1) * (h + 1) / (g + h + 1) * (early.nimg / late.nimg) ** h / late.nimg


def best_fit(run: Path, sigma_rel: float, nimg: int | None = None) -> Fit:
    """How the average of length ``sigma_rel`` at ``nimg`` images (none: at the newest snapshot) would be made up.

    Raises ValueError where the run has no snapshots, or none by then.
    """
    snapshots, passed_over = list_snapshots(run)
    if not snapshots:
        raise ValueError(f"{run / FOLDER} holds no whole snapshot: train with cadence.average_every_nimg above 0")
    wanted = Profile(snapshots[-1].profile.nimg if nimg is None else nimg, sigma_rel)
    return replace(fit(snapshots, wanted), passed_over=tuple(passed_over))


def rebuild(run: Path, sigma_rel: float, nimg: int | None, out: Path) -> Fit:
    """Write that average as a weights folder (config.json + model.safetensors; average.json says how it was made).

    Raises ValueError where ``out`` exists, there are no snapshots by then, or too few for a good fit.
    """
    if out.exists():
        raise ValueError(f"{out} exists already: choose another folder, or remove it")
    found = best_fit(run, sigma_rel, nimg)
    found.check()
    total: dict[str, Tensor] = {}
    configs = {(s.path.parent / "config.json").read_text() for s in found.snapshots}
    if len(configs) != 1:
        raise ValueError(f"{run / FOLDER} holds snapshots of more than one model")
    for snapshot, weight in zip(found.snapshots, found.weights, strict=True):
        for name, tensor in load_file(snapshot.path).items():
            if name not in total:
                total[name] = torch.zeros_like(tensor, dtype=torch.float64)
            total[name] += weight * tensor.double()
    model = from_dict(Model, json.loads(configs.pop()))
    made_of = {f"{s.path.parent.name}/{s.path.name}": w for s, w in zip(found.snapshots, found.weights, strict=True)}
    wanted = {"sigma_rel": sigma_rel, "nimg": found.wanted.nimg, "error": found.error}
    with whole_folder(out) as made:
        save_weights(made, model, {name: tensor.float() for name, tensor in total.items()})
        write_json(made / "average.json", {**wanted, "snapshots": made_of})
    return found
