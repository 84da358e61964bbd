"""Drawing from the multi-resolution process: noise, thresholding, guidance, the loop over steps (App. C, Fig. 11).

Lists run from the lowest resolution to the highest; tensors are [B, 3, H, H]. Index k counts noise levels (0 = clean).
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mdm.config import Sampling, Threshold
from mdm.diffusion.philox import normal
from mdm.diffusion.process import Denoiser, Process, to_x
from mdm.diffusion.samplers import SAMPLERS, Noise, Step
from mdm.diffusion.schedules import NUM_STEPS, time_grid
from mdm.network.conditioning import Condition


class SeededNoise:
    """Gaussian noise per level in which every image has its own seed: it is the same in any batch, order or rank.

    It is made on the device that needs it, and is the same on every one (``philox.py``): one CPU thread takes 33 ms for
    an image of 1024² and a step.
    """

    def __init__(self, seeds: Sequence[int], resolutions: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.seeds = torch.tensor(seeds, dtype=torch.int64, device=device)
        self.resolutions, self.draws = resolutions, 0

    def __call__(self) -> list[Tensor]:
        """The next draw: one N(0, 1) tensor [B, 3, H, H] per level, independent across levels."""
        draw, self.draws = self.draws, self.draws + 1
        return [normal(self.seeds, draw, level, (3, px, px)) for level, px in enumerate(self.resolutions)]


def threshold(x: Tensor, how: Threshold, percentile: float = 0.995, ceiling: float = 100.0) -> Tensor:
    """Keep a predicted clean image in range: clip, or dynamic thresholding (Saharia et al. 2022, Sec. 2.3)."""
    if how == "none":
        return x
    if how == "clip":
        return x.clamp(-1, 1)
    flat = x.float().flatten(1)
    bound = torch.quantile(flat.abs(), percentile, dim=1, keepdim=True).clamp(1, ceiling)  # [B, 1]
    return (flat.clamp(-bound, bound) / bound).view_as(x).to(x.dtype)


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
    ``on_step(i, total, xs)`` sees the predicted clean images of every step, as in Fig. 11, and may raise to stop.
    """

    def predict(zs: list[Tensor], k: int) -> list[Tensor]:
        outputs = denoiser(zs, torch.full((len(zs[0]),), k - 1, device=zs[0].device))
        xs = []
        for z, output, schedule in zip(zs, outputs, process.schedules, strict=True):
            alpha, sigma = schedule.alphas[k].to(z.device), schedule.sigmas[k].to(z.device)
            x = to_x(process.prediction, z, output, alpha, sigma)
            xs.append(threshold(x, sampling.threshold, sampling.percentile, sampling.ceiling))
        return xs

    sampler = SAMPLERS[sampling.sampler]
    grid = time_grid(sampling.steps, process.num_steps, sampling.spacing or sampler.spacing)
    zs, before = noise(), None
    for i, (k, s) in enumerate(itertools.pairwise(grid)):
        zs, xs = sampler.step(Step(zs, k, s, predict, process.schedules, noise, sampling.eta, before))
        before = xs, k
        if on_step is not None:
            on_step(i + 1, len(grid) - 1, xs)
    return [z.clamp(-1, 1) for z in zs]


def guided(
    model: Callable[..., list[Tensor]],
    condition: Condition,
    null: Condition | None,
    guidance_scales: Sequence[float],
    times: tuple[int, int] = (0, NUM_STEPS),
    together: bool = False,
) -> Denoiser:
    """Classifier-free guidance, combined per level: null + w_r (conditional - null) (Ho & Salimans 2022).

    condition, null: keyword arguments of the model. The null pass goes no higher than the highest level that is guided
    (w != 1), and is left out where none is, and at times outside the closed interval ``times``. ``together``: both
    passes as one batch of twice the size where they go to the same level, which fills a GPU better.
    """
    guided_levels = max((r + 1 for r, w in enumerate(guidance_scales) if w != 1), default=0)

    def denoiser(zs: list[Tensor], t: Tensor) -> list[Tensor]:
        if guided_levels == 0 or null is None or not times[0] <= int(t[0]) <= times[1]:
            return model(zs, t, **condition)
        if together and guided_levels == len(zs):
            both = {name: torch.cat([value, null[name]]) for name, value in condition.items()}
            halves = [out.chunk(2) for out in model([torch.cat([z, z]) for z in zs], torch.cat([t, t]), **both)]
            outputs, nulls = [half[0] for half in halves], [half[1] for half in halves]
        else:
            outputs, nulls = model(zs, t, **condition), model(zs, t, **null, num_outputs=guided_levels)
        guided_ones = zip(outputs, nulls, guidance_scales, strict=False)
        mixed = [out_null + w * (out - out_null) for out, out_null, w in guided_ones]
        return mixed + outputs[guided_levels:]

    return denoiser
