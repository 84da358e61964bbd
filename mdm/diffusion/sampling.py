"""Samplers on the multi-resolution state: pure functions of (denoiser, z, process, noise) (paper App. C, Fig. 11).

Lists run from the lowest resolution to the highest; tensors are [B, 3, H, H]. Index k counts noise levels (0 = clean).
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mdm.config import Sampling, Threshold
from mdm.diffusion.process import Denoiser, Process, noise_from_x, to_x
from mdm.diffusion.schedules import NUM_STEPS, Schedule, time_grid

Noise = Callable[[], list[Tensor]]
Condition = dict[str, Tensor]  # text [B, L, D] and text_mask [B, L], or labels [B]


class SeededNoise:
    """Gaussian noise per level in which every image has its own seed: it is the same in any batch, order or rank."""

    def __init__(self, seeds: Sequence[int], resolutions: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.resolutions = resolutions
        self.device = device
        # Drawn on the CPU, so that an image does not depend on the device either.
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self) -> list[Tensor]:
        """The next draw: one N(0, 1) tensor [B, 3, H, H] per level, independent across levels."""
        draws = [[torch.randn(3, px, px, generator=g) for px in self.resolutions] for g in self.generators]
        return [torch.stack(level).to(self.device) for level in zip(*draws, strict=True)]


def threshold(x: Tensor, how: Threshold, percentile: float = 0.995, ceiling: float = 100.0) -> Tensor:
    """Keep a predicted clean image in range: clip, or dynamic thresholding (Saharia et al. 2022, Sec. 2.3)."""
    if how == "none":
        return x
    if how == "clip":
        return x.clamp(-1, 1)
    flat = x.float().flatten(1)
    bound = torch.quantile(flat.abs(), percentile, dim=1, keepdim=True).clamp(1, ceiling)  # [B, 1]
    return (flat.clamp(-bound, bound) / bound).view_as(x).to(x.dtype)


def ddpm_step(z: Tensor, x: Tensor, schedule: Schedule, k: int, s: int, noise: Tensor | None) -> Tensor:
    """z_s from z_k and the predicted clean image: the posterior q(z_s | z_k, x) (Ho et al. 2020, Eq. 6-7)."""
    gamma_k, gamma_s = schedule.gammas[k], schedule.gammas[s]
    ratio = gamma_k / gamma_s
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


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    process: Process,
    sampling: Sampling,
    noise: Noise,
    on_step: Callable[[int, int, list[Tensor]], None] | None = None,
) -> list[Tensor]:
    """Draw images at all levels in parallel from pure noise -> x per level, in [-1, 1].

    ``denoiser(zs, t)`` returns what the network predicts, per level (guidance is its business, see ``guided``);
    ``on_step(i, total, xs)`` sees the predicted clean images of every step, as in Fig. 11, and may raise to stop. Every
    level takes the step with its own shifted schedule.
    """
    zs = noise()
    grid = time_grid(sampling.steps, process.num_steps, sampling.spacing)
    stochastic = sampling.sampler == "ddpm" or (sampling.sampler == "ddim" and sampling.eta > 0)
    before: list[Tensor] | None = None  # x of the step before, at index j
    j = grid[0]
    for i, (k, s) in enumerate(itertools.pairwise(grid)):
        t = torch.full((len(zs[0]),), k - 1, device=zs[0].device)
        outputs = denoiser(zs, t)
        fresh = noise() if stochastic and s > 0 else [None] * len(zs)
        xs = []
        for r, (z, output, schedule) in enumerate(zip(zs, outputs, process.schedules, strict=True)):
            alpha, sigma = schedule.alphas[k].to(z.device), schedule.sigmas[k].to(z.device)
            x = to_x(process.prediction, z, output, alpha, sigma)
            x = threshold(x, sampling.threshold, sampling.percentile, sampling.ceiling)
            xs.append(x)
            if sampling.sampler == "ddpm":
                zs[r] = ddpm_step(z, x, schedule, k, s, fresh[r])
            elif sampling.sampler == "ddim":
                zs[r] = ddim_step(z, x, schedule, k, s, fresh[r], sampling.eta)
            else:
                zs[r] = dpmpp_step(z, x, schedule, k, s, None if before is None else (before[r], j))
        before, j = xs, k
        if on_step is not None:
            on_step(i + 1, len(grid) - 1, xs)
    return [z.clamp(-1, 1) for z in zs]


def guided(
    model: Callable[..., list[Tensor]],
    condition: Condition,
    null: Condition | None,
    guidance_scales: Sequence[float],
    times: tuple[int, int] = (0, NUM_STEPS),
) -> Denoiser:
    """Classifier-free guidance, combined per level: v = v_null + w_r (v_cond - v_null) (Ho & Salimans 2022).

    condition, null: keyword arguments of the model. The null pass goes no higher than the highest level that is guided
    (w != 1), and is left out where none is, and at times outside the closed interval ``times``.
    """
    guided_levels = max((r + 1 for r, w in enumerate(guidance_scales) if w != 1), default=0)

    def denoiser(zs: list[Tensor], t: Tensor) -> list[Tensor]:
        outputs = model(zs, t, **condition)
        if guided_levels == 0 or null is None or not times[0] <= int(t[0]) <= times[1]:
            return outputs
        nulls = model(zs, t, **null, num_outputs=guided_levels)
        guided_ones = zip(outputs, nulls, guidance_scales, strict=False)
        mixed = [out_null + w * (out - out_null) for out, out_null, w in guided_ones]
        return mixed + outputs[guided_levels:]

    return denoiser
