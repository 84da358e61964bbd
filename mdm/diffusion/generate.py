"""A network, captions and seeds -> images: guidance, sampler and noise put together."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mdm.config import Sampling, padded_length
from mdm.diffusion.process import Process
from mdm.diffusion.sampling import SeededNoise, guided, sample
from mdm.network.conditioning import stack_conditions
from mdm.network.nested import NestedUNet


def generate(
    network: NestedUNet,
    conditions: Sequence[Tensor | int],
    null: Tensor | int | None,
    seeds: Sequence[int],
    sampling: Sampling,
    device: torch.device,
    on_step: Callable[[int, int, list[Tensor]], None] | None = None,
) -> list[Tensor]:
    """Images of given caption states [L_i, D] or labels, and seeds, at all levels: list of [B, 3, H_r, H_r] in [-1, 1].

    On a GPU both passes of guidance are one batch.

    Raises ValueError for guidance where the model has no null condition.
    """
    network.config.check_sampling(sampling)
    process = Process.of(network.config)
    count = len(conditions)
    length = padded_length(network.config.text)
    both = stack_conditions([*conditions, *([] if null is None else [null])], length)
    condition = {name: value[:count].to(device) for name, value in both.items()}
    nothing = None
    if null is not None:
        nothing = {name: value[count:].to(device).expand(count, *value.shape[1:]) for name, value in both.items()}

    def predict(*arguments: Any, **named: Any) -> list[Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=sampling.precision == "bfloat16"):
            return [output.float() for output in network(*arguments, **named)]

    low, high = (round(bound * process.num_steps) for bound in sampling.guidance_interval)
    scales = sampling.guidance_scales(len(process.resolutions))
    denoiser = guided(predict, condition, nothing, scales, (low, high), together=device.type == "cuda")
    return sample(denoiser, process, sampling, SeededNoise(seeds, process.resolutions, device), on_step)
