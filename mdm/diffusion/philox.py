"""Random numbers as a function of a key and a counter, the same on every device: Philox4x32-10 (Salmon et al. 2011).

No state and no order: any part of any draw can be made alone, where it is needed. Numbers of 32 bits are kept in int64,
whose products of two of them lose nothing that is asked for.
"""

import math

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key each round


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four words of a counter and two of a key, int64 tensors of one broadcast shape -> four random words of it."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> 32 & WORD) ^ c1 ^ k0,
            product1 & WORD,
            (product0 >> 32 & WORD) ^ c3 ^ k1,
            product0 & WORD,
        )
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return c0, c1, c2, c3


def normal(seeds: Tensor, draw: int, level: int, shape: tuple[int, ...]) -> Tensor:
    """N(0, 1) float32 [B, *shape] on the device of ``seeds``, int64 [B]: a row depends on its seed, draw and level.

    Box and Muller's transform of pairs of words. Devices agree but for the rounding of log, sine and cosine (1e-6).
    """
    count = math.prod(shape)
    quads = torch.arange((count + 3) // 4, device=seeds.device)
    zero = torch.zeros_like(quads)
    key = (seeds[:, None] & WORD, seeds[:, None] >> 32 & WORD)
    words = philox((quads, zero + draw, zero + level, zero), key)  # of [B, quads]
    radii = [torch.sqrt(-2 * torch.log((word.float() + 0.5) * 2**-32)) for word in words[:2]]
    angles = [word.float() * (2 * math.pi * 2**-32) for word in words[2:]]
    parts = [r * f(a) for r, a in zip(radii, angles, strict=True) for f in (torch.cos, torch.sin)]
    return torch.stack(parts, dim=2).flatten(1)[:, :count].reshape(len(seeds), *shape)
