"""What is drawn for a training sample, noise and time, as functions of (seed, position): of no batch, rank or restart.

``positions`` count images seen. ``places`` are a sample's place in its global batch, whose first position is ``first``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mdm.data.order import hash64, permute


def noise(seed: int, positions: Sequence[int], resolutions: Sequence[int], device: torch.device) -> list[Tensor]:
    """Independent N(0, 1) per level (App. C): list of [B, 3, H_r, H_r], made on the device."""
    generator = torch.Generator(device)
    levels = [torch.empty(len(positions), 3, px, px, device=device) for px in resolutions]
    for i, position in enumerate(positions):
        generator.manual_seed(hash64(seed, "noise", position))
        for level in levels:
            level[i].normal_(generator=generator)
    return levels


def uniforms(seed: int, first: int, batch_size: int, places: Sequence[int]) -> Tensor:
    """Numbers u [B] in 0..1, one per place, spread evenly over the global batch (Kingma et al. 2021, App. I.1).

    The loss varies less between batches so. Neighbouring places get distant numbers, as a rank and the samples that
    carry the top level are neighbours.
    """
    offset = hash64(seed, "time", first) / 2**63
    key = hash64(seed, "strata", first)
    strata = [permute(place, batch_size, key) for place in places]
    return torch.tensor([(offset + stratum / batch_size) % 1 for stratum in strata], dtype=torch.float64)
