"""Samplers: how z of every level gets from index k to the index s < k, as pure functions (paper App. C).

A sampler is a function and a row of ``SAMPLERS`` (its name stands in ``config.SamplerName``). A step may predict as
often as it likes, so two-call methods fit. Lists run from the lowest resolution to the highest; tensors are
[B, 3, H, H]; every level goes with its own shifted schedule. Index k counts noise levels (0 = clean).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mdm.config import SamplerName, Spacing
from mdm.diffusion.process import noise_from_x
from mdm.diffusion.schedules import Schedule

Noise = Callable[[], list[Tensor]]  # the next draw of N(0, 1), a tensor per level
Predict = Callable[[list[Tensor], int], list[Tensor]]  # z of every level and their index -> clean images, thresholded


@dataclass(frozen=True)
class Step:
    """What a step is made from."""

    zs: list[Tensor]
    k: int
    s: int
    predict: Predict
    schedules: Sequence[Schedule]
    noise: Noise
    eta: float = 0.0
    before: tuple[list[Tensor], int] | None = None  # clean images predicted one step earlier, and that step's index


def ddpm(step: Step) -> tuple[list[Tensor], list[Tensor]]:
    """Ancestral sampling (Ho et al. 2020) -> z at s, the clean images predicted at k."""
    xs = step.predict(step.zs, step.k)
    fresh = step.noise() if step.s > 0 else [None] * len(xs)
    levels = zip(step.zs, xs, step.schedules, fresh, strict=True)
    return [ddpm_step(z, x, schedule, step.k, step.s, n) for z, x, schedule, n in levels], xs


def ddim(step: Step) -> tuple[list[Tensor], list[Tensor]]:
    """Along the implied noise, a share eta of it fresh (Song et al. 2021) -> the same."""
    xs = step.predict(step.zs, step.k)
    fresh = step.noise() if step.eta > 0 and step.s > 0 else [None] * len(xs)
    levels = zip(step.zs, xs, step.schedules, fresh, strict=True)
    return [ddim_step(z, x, schedule, step.k, step.s, n, step.eta) for z, x, schedule, n in levels], xs


def dpmpp(step: Step) -> tuple[list[Tensor], list[Tensor]]:
    """DPM-Solver++(2M) (Lu et al. 2022) -> the same."""
    xs = step.predict(step.zs, step.k)
    earlier = [None] * len(xs) if step.before is None else [(x, step.before[1]) for x in step.before[0]]
    levels = zip(step.zs, xs, step.schedules, earlier, strict=True)
    return [dpmpp_step(z, x, schedule, step.k, step.s, before) for z, x, schedule, before in levels], xs


@dataclass(frozen=True)
class Sampler:
    """A row: the step, and the spacing of steps over time that it needs where none is asked for."""

    step: Callable[[Step], tuple[list[Tensor], list[Tensor]]]
    spacing: Spacing


SAMPLERS: dict[SamplerName, Sampler] = {
    "ddpm": Sampler(ddpm, "uniform"),  # App. C
    "ddim": Sampler(ddim, "uniform"),
    "dpmpp": Sampler(dpmpp, "quadratic"),  # its second order needs steps where little noise is left
}


# -- one level ---------------------------------------------------------------------------------------------------------


def ddpm_step(z: Tensor, x: Tensor, schedule: Schedule, k: int, s: int, noise: Tensor | None) -> Tensor:
    """z_s from z_k and the predicted clean image: the posterior q(z_s | z_k, x) (Ho et al. 2020, Eq. 6-7)."""
    gamma_k, gamma_s = schedule.gammas[k], schedule.gammas[s]
    ratio = gamma_k / gamma_s  # alpha²_{t|s} (paper Sec. 2)
    mean = x * (1 - ratio) * gamma_s.sqrt() / (1 - gamma_k) + z * ratio.sqrt() * (1 - gamma_s) / (1 - gamma_k)
    if noise is None or s == 0:
        return mean
    return mean + ((1 - ratio) * (1 - gamma_s) / (1 - gamma_k)).sqrt() * noise


def ddim_step(z: Tensor, x: Tensor, schedule: Schedule, k: int, s: int, noise: Tensor | None, eta: float) -> Tensor:
    """z_s along the implied noise, a share eta of it fresh (Song et al. 2021, Eq. 12, 16)."""
    gamma_k, gamma_s = schedule.gammas[k], schedule.gammas[s]
    implied = noise_from_x(z, x, gamma_k.sqrt(), (1 - gamma_k).sqrt())
    variance = eta**2 * (1 - gamma_k / gamma_s) * (1 - gamma_s) / (1 - gamma_k)
    z_s = x * gamma_s.sqrt() + implied * (1 - gamma_s - variance).sqrt()
    return z_s if noise is None or s == 0 or eta == 0 else z_s + variance.sqrt() * noise


def dpmpp_step(z: Tensor, x: Tensor, schedule: Schedule, k: int, s: int, before: tuple[Tensor, int] | None) -> Tensor:
    """z_s by the second-order multistep solver DPM-Solver++(2M) (Lu et al. 2022, Alg. 2); its lambda is logsnr / 2.

    before: the clean image predicted one step earlier, and the index of that step. Without it, and into k = 0 where
    lambda is infinite, the step is of first order, which is DDIM's.
    """
    if s == 0:
        return x
    half_logsnrs = schedule.logsnrs / 2
    h = half_logsnrs[s] - half_logsnrs[k]
    if before is not None:
        x_before, j = before
        r = (half_logsnrs[k] - half_logsnrs[j]) / h
        x = x + (x - x_before) / (2 * r)
    return schedule.sigmas[s] / schedule.sigmas[k] * z - schedule.alphas[s] * torch.expm1(-h) * x
