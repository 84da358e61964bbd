"""RGB in and out of the range that the diffusion process works in, [-1, 1]."""

import numpy as np
import torch
from torch import Tensor

SCALE = 127.5  # half of uint8's range


def from_uint8(images: Tensor) -> Tensor:
    """uint8 pixels -> float32 in [-1, 1]."""
    return images.float() / SCALE - 1


def to_uint8(x: Tensor) -> Tensor:
    """Pixels in [-1, 1] -> uint8, rounded."""
    return ((x.clamp(-1, 1) + 1) * SCALE).round().to(torch.uint8).cpu()


def average(images: Tensor, px: int) -> Tensor:
    """uint8 [..., H, H] averaged to [..., px, px], as the levels of a training are (D^r, Sec. 3.2); H a multiple."""
    factor = images.shape[-1] // px
    if factor == 1:
        return images
    blocks = images.unflatten(-1, (px, factor)).unflatten(-3, (px, factor))  # [..., px, factor, px, factor]
    return blocks.float().mean(dim=(-3, -1)).round().to(torch.uint8)


def tile(xs: list[Tensor]) -> np.ndarray:
    """Levels of [B, 3, H_r, H_r] -> one uint8 picture [R * H, B * H, 3], a row per level."""
    px = xs[-1].shape[-1]
    rows = [
        torch.cat(list(to_uint8(x).repeat_interleave(px // x.shape[-1], 2).repeat_interleave(px // x.shape[-1], 3)), 2)
        for x in xs
    ]
    return torch.cat(rows, 1).permute(1, 2, 0).numpy()
