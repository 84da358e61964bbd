"""A network, captions and seeds -> images: guidance, sampler and noise put together."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mdm.config import Sampling
from mdm.data import pad_tokens
from mdm.diffusion import Process
from mdm.nested import NestedUNet
from mdm.sampling import SeededNoise, guided, sample


def draw(
    network: NestedUNet,
    tokens: Sequence[Tensor],
    null: Tensor,
    seeds: Sequence[int],
    sampling: Sampling,
    device: torch.device,
    on_step: Callable[[int, int, list[Tensor]], None] | None = None,
) -> list[Tensor]:
    """Images of given caption states [L_i, D] and seeds, at all levels: list of [B, 3, H_r, H_r] in [-1, 1]."""
    process = Process.of(network.config)
    count = len(tokens)
    text, mask = (t.to(device) for t in pad_tokens([*tokens, null]))
    denoiser = guided(
        network,
        (text[:count], mask[:count]),
        (text[count:].expand(count, *text.shape[1:]), mask[count:].expand(count, *mask.shape[1:])),
        sampling.guidance_scales(len(process.resolutions)),
        tuple(round(bound * process.num_steps) for bound in sampling.guidance_interval),  # type: ignore[arg-type]
    )
    return sample(denoiser, process, sampling, SeededNoise(seeds, process.resolutions, device), on_step)
