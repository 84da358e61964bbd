"""Noise schedules: the cosine schedule and its shift per resolution (paper Sec. 3.1, App. A "cosine-shiftS").

Index k counts noise levels: k = 0 is clean, k = T is (almost) pure noise. The network is told time t = k - 1.
gamma = alpha², 1 - gamma = sigma², SNR = gamma / (1 - gamma), logsnr = log SNR.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mdm.config import Spacing

NUM_STEPS = 1000


def cosine_gammas(num_steps: int = NUM_STEPS) -> Tensor:
    """Cosine schedule of Nichol & Dhariwal (2021) with each beta capped at 0.999: gamma [num_steps + 1], float32.

    float32 is part of the definition: alpha and sigma follow from the rounded values, as in the released code, so
    that sigma at the smallest times (where 1 - gamma is 4e-5) agrees with it to the last digits.
    """

    def squared_cosine(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    log_gamma, gammas = 0.0, [1.0]
    for i in range(num_steps):
        beta = min(1 - squared_cosine((i + 1) / num_steps) / squared_cosine(i / num_steps), 0.999)
        log_gamma += math.log1p(-beta)
        gammas.append(math.exp(log_gamma))
    return torch.tensor(gammas, dtype=torch.float64).float()


def shift_gammas(gammas: Tensor, shift: float, power: float = 1.0) -> Tensor:
    """Divide the SNR by shift**power (f-DM, Gu et al. 2022; App. A). A larger image hides its content later."""
    if shift <= 0:
        raise ValueError(f"schedule shift must be positive, got {shift}")
    snr = gammas / (1 - gammas)
    return 1 / (1 + 1 / (snr / shift**power))


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise level of one resolution: gamma [T + 1] and what follows from it."""

    gammas: Tensor

    @classmethod
    def cosine(cls, shift: float = 1.0, power: float = 1.0, num_steps: int = NUM_STEPS) -> "Schedule":
        return cls(shift_gammas(cosine_gammas(num_steps), shift, power))

    @property
    def num_steps(self) -> int:
        return len(self.gammas) - 1

    @cached_property
    def alphas(self) -> Tensor:
        return self.gammas.sqrt()

    @cached_property
    def sigmas(self) -> Tensor:
        return (1 - self.gammas).sqrt()

    @cached_property
    def logsnrs(self) -> Tensor:
        """log(alpha² / sigma²) [T + 1]; infinite at k = 0."""
        return torch.log(self.gammas) - torch.log1p(-self.gammas)

    def at(self, k: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha, sigma at indices k [B], shaped [B, 1, 1, 1] to multiply images ``like`` [B, C, H, W]."""
        shape = (-1, *(1,) * (like.ndim - 1))
        k = k.to(self.gammas.device)
        return self.alphas[k].view(shape).to(like.device), self.sigmas[k].view(shape).to(like.device)


def time_grid(num_inference_steps: int, num_steps: int = NUM_STEPS, spacing: Spacing = "uniform") -> list[int]:
    """Indices k visited by a sampler, first to last, ending in 0: num_inference_steps + 1 of them.

    ``uniform`` is the released code's (App. C: 250), which starts one stride short of T. ``quadratic`` starts at T and
    puts steps where little noise is left (Song et al. 2021, App. D.2): there the shifted levels find their detail.
    """
    if not 1 <= num_inference_steps <= num_steps:
        raise ValueError(f"num_inference_steps must lie in 1..{num_steps}, got {num_inference_steps}")
    if spacing == "uniform":
        stride = (num_steps + 1) / (num_inference_steps + 1)
        return [round(i * stride) for i in range(num_inference_steps, -1, -1)]
    ideal = [num_steps * (i / num_inference_steps) ** 2 for i in range(num_inference_steps + 1)]
    return [max(i, round(k)) for i, k in enumerate(ideal)][::-1]  # at least one index apart
