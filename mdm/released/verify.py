"""Proof that our networks and process compute the released functions: golden tensors in, largest difference out.

A folder holds NAME.json + NAME.safetensors per network, and process.safetensors; the format is described beside the
golden files in tests/golden/README.md.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mdm.config import Threshold
from mdm.diffusion.process import noise_from_x, to_z, x_from_v
from mdm.diffusion.samplers import ddim_step, ddpm_step
from mdm.diffusion.sampling import threshold
from mdm.diffusion.schedules import Schedule, cosine_gammas, shift_gammas, time_grid
from mdm.network.nested import NestedUNet
from mdm.released.keys import convert_keys, model_from_options

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Comparison:
    """One output: its largest absolute difference to the golden tensor, and what was asked for."""

    file: str
    output: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.tolerance  # False for NaN


def verify_folder(
    folder: Path,
    tolerance: float = TOLERANCE,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Iterator[Comparison]:
    """Compare every golden file of a folder. Raises ValueError naming the file that cannot be read or built.

    Networks run on ``device``, under autocast where ``dtype`` is not float32; the process always in float32 on the CPU.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    files = sorted(folder.glob("*.safetensors"))
    alone = {f.stem for f in folder.glob("*.json")} - {f.stem for f in files}
    if alone:
        raise ValueError(f"{folder / min(alone)}.json has no {min(alone)}.safetensors beside it")
    if not files:
        raise ValueError(f"{folder}: no golden files (NAME.json with NAME.safetensors, process.safetensors)")
    for file in files:
        tensors = _load(file)
        try:
            is_process = file.stem == "process"
            pairs = _process(file, tensors) if is_process else _network(file, tensors, torch.device(device), dtype)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{file}: {what}") from error
        for output, ours, golden in pairs:
            if ours.shape != golden.shape:
                raise ValueError(f"{file}: {output} is {tuple(golden.shape)}, the model gives {tuple(ours.shape)}")
            difference = (ours.double() - golden.double()).abs().max().item() if ours.numel() else 0.0
            yield Comparison(file.name, output, difference, tolerance)


def _load(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: not a readable safetensors file ({error})") from error


@torch.no_grad()
def _network(
    file: Path, tensors: dict[str, Tensor], device: torch.device, dtype: torch.dtype
) -> list[tuple[str, Tensor, Tensor]]:
    try:
        spec = json.loads(file.with_suffix(".json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"its description {file.stem}.json is missing or not JSON ({error})") from error
    model = model_from_options(spec["config"], spec["resolutions"], spec.get("text_dim") or 0)
    network = NestedUNet(model).eval()
    weights = {key.removeprefix("weights/"): t.float() for key, t in tensors.items() if key.startswith("weights/")}
    network.load_state_dict(convert_keys(weights, model, network.state_dict()))
    network.to(device)
    inputs = {key.removeprefix("input/"): t.to(device) for key, t in tensors.items() if key.startswith("input/")}
    num_levels = len(model.levels)
    zs = [inputs.pop(f"x{i}").float() for i in reversed(range(num_levels))]
    t, text, mask = inputs.pop("timestep").float(), inputs.pop("text", None), inputs.pop("text_mask", None)
    if model.text is not None and (text is None or mask is None):
        raise ValueError("input/text and input/text_mask are needed by a model with text")
    micros = {name: value.float() for name, value in inputs.items()}
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        outputs = network(zs, t, text=None if text is None else text.float(), text_mask=mask, micros=micros)
    return [(f"pred{i}", v.float().cpu(), tensors[f"output/pred{i}"]) for i, v in enumerate(reversed(outputs))]


def _process(file: Path, tensors: dict[str, Tensor]) -> list[tuple[str, Tensor, Tensor]]:
    base = tensors.get("schedule/gammas")
    num_steps = len(base) - 1 if base is not None else 1000
    schedule = Schedule(cosine_gammas(num_steps))
    pairs = []
    for name, golden in tensors.items():
        ours = None
        if name == "schedule/gammas":
            ours = schedule.gammas
        elif match := re.fullmatch(r"schedule/gammas_shift([\d.]+)", name):
            ours = shift_gammas(schedule.gammas, float(match[1]))
        elif match := re.fullmatch(r"timesteps/(\d+)", name):
            ours = torch.tensor(time_grid(int(match[1]), num_steps))
        elif match := re.fullmatch(r"step/t(\d+)_s(\d+)_(none|clip|dynamic)_(ddpm|ddim([\d.]+))/(x0|x_s)", name):
            k, s, how, sampler, eta, which = match.groups()
            share = None if sampler == "ddpm" else float(eta)
            ours = _step(tensors, schedule, int(k), int(s), cast(Threshold, how), share, which)
        elif match := re.fullmatch(r"loss/shift([\d.]+)/(\w+)", name):
            ours = _loss(tensors, Schedule(shift_gammas(schedule.gammas, float(match[1]))))[match[2]]
        elif name not in (
            "step/x_t",
            "step/v",
            "step/noise",
            *(f"loss/{x}" for x in ("images", "eps", "timestep", "v")),
        ):
            raise ValueError(f"no rule for the tensor {name!r}")
        if ours is not None:
            pairs.append((name, ours, golden))
    return pairs


def _step(
    tensors: dict[str, Tensor], schedule: Schedule, k: int, s: int, how: Threshold, eta: float | None, which: str
) -> Tensor:
    z, v, noise = tensors["step/x_t"], tensors["step/v"], tensors["step/noise"]
    x = threshold(x_from_v(z, v, schedule.alphas[k], schedule.sigmas[k]), how)
    if which == "x0":
        return x
    return ddpm_step(z, x, schedule, k, s, noise) if eta is None else ddim_step(z, x, schedule, k, s, noise, eta)


def _loss(tensors: dict[str, Tensor], schedule: Schedule) -> dict[str, Tensor]:
    x, noise, v = tensors["loss/images"], tensors["loss/eps"], tensors["loss/v"]
    alpha, sigma = schedule.at(tensors["loss/timestep"].long() + 1, x)
    z = to_z(x, noise, alpha, sigma)
    implied = noise_from_x(z, x_from_v(z, v, alpha, sigma), alpha, sigma)
    return {"x_t": z, "eps_from_v": implied, "mse_per_sample": (implied - noise).square().mean(dim=(1, 2, 3))}
