"""The diffusion process in the extended space z_t = [z_t^1 … z_t^R] and its loss (paper Sec. 3.1, 3.3).

Lists of tensors run from the lowest resolution (r = 1) to the highest (r = R).
Shapes: B samples, C = 3 channels, H x W pixels of that level. Pixels lie in [-1, 1].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mdm.config import Downsampling, LossSpace, Model, Prediction
from mdm.diffusion.schedules import Schedule
from mdm.network.mixed import carried_by

Denoiser = Callable[[list[Tensor], Tensor], list[Tensor]]  # (z_t, network time t [B]) -> what it predicts, per level


def downsample(images: Tensor, resolutions: Sequence[int], how: Downsampling = "average") -> list[Tensor]:
    """D^r of Eq. 2 of images [B, C, H, H] for every resolution (ascending, px).

    ``average`` pools from level to level, as the released code does; for halves that is the bilinear interpolation of
    Sec. 4.1. The bilinear ones take every level from the image itself: without antialias it reads only the four
    pixels around each new one's centre, with it all that the new one covers. Images may be larger than the highest
    resolution (a stage trained below the size the data set is stored at).
    """
    levels: list[Tensor] = []
    pooled = images
    for px in reversed(resolutions):
        if images.shape[-1] % px:
            raise ValueError(f"images of {images.shape[-1]} px cannot be brought down to {px} px")
        if how == "average":
            pooled = F.avg_pool2d(pooled, pooled.shape[-1] // px)
            levels.insert(0, pooled)
        else:
            levels.insert(0, F.interpolate(images, px, mode="bilinear", antialias=how == "bilinear-antialias"))
    return levels


def to_z(x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """z_t = alpha x + sigma noise (Eq. 2)."""
    return alpha * x + sigma * noise


def to_v(x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v = alpha noise - sigma x (Salimans & Ho 2022; App. C)."""
    return alpha * noise - sigma * x


def x_from_v(z: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The clean image that v implies: x = alpha z - sigma v."""
    return z * alpha - v * sigma


def noise_from_x(z: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise that a clean image implies."""
    return (z - x * alpha) / sigma


def to_x(prediction: Prediction, z: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The clean image that a network's output stands for."""
    if prediction == "v":
        return x_from_v(z, output, alpha, sigma)
    return output if prediction == "x" else (z - sigma * output) / alpha


@dataclass(frozen=True, eq=False)
class Process:
    """The joint process: one schedule per level, all driven by the same time."""

    resolutions: tuple[int, ...]
    schedules: tuple[Schedule, ...]
    prediction: Prediction = "v"
    downsampling: Downsampling = "average"

    @classmethod
    def of(cls, model: Model) -> "Process":
        return cls(
            model.resolutions,
            tuple(Schedule.cosine(level.shift, model.shift_power, model.num_steps) for level in model.levels),
            model.prediction,
            model.downsampling,
        )

    @property
    def num_steps(self) -> int:
        return self.schedules[0].num_steps

    def downsample(self, images: Tensor) -> list[Tensor]:
        """D^r of images [B, 3, H, H] for every level."""
        return downsample(images, self.resolutions, self.downsampling)

    def draw_noise(self, batch_size: int, generator: torch.Generator, channels: int = 3) -> list[Tensor]:
        """Independent N(0, 1) per level (App. C) on the generator's device."""
        device = generator.device
        return [
            torch.randn(batch_size, channels, px, px, generator=generator, device=device) for px in self.resolutions
        ]

    def times(self, u: Tensor) -> Tensor:
        """Indices k [B] in 1 … T from numbers u [B] in 0..1: uniform, as in Eq. 3."""
        return (u * self.num_steps).long().clamp(max=self.num_steps - 1) + 1

    def diffuse(self, xs: list[Tensor], noise: list[Tensor], k: Tensor) -> list[Tensor]:
        """z_t of every level (Eq. 2) at indices k [B]; not every sample need carry every level (mixed.py)."""
        return [
            to_z(x, n, *schedule.at(carried_by(x, k), x))
            for x, n, schedule in zip(xs, noise, self.schedules, strict=True)
        ]

    def loss(
        self, denoiser: Denoiser, xs: list[Tensor], noise: list[Tensor], k: Tensor, space: LossSpace
    ) -> list[Tensor]:
        """Per-sample loss [B_r] of every level: the summands of Eq. 3, mean squared error over C, H, W.

        The mean over pixels makes the paper's default weights omega^r / omega^R = N_R / N_r equal ones. ``space`` says
        where the error is taken: ``x`` is Eq. 3 with omega_t = 1; ``v`` has omega_t = 1 / sigma²; ``noise``, the
        released form, alpha² / sigma².
        """
        zs = self.diffuse(xs, noise, k)
        outputs = denoiser(zs, k - 1)
        losses = []
        for z, output, x, n, schedule in zip(zs, outputs, xs, noise, self.schedules, strict=True):
            alpha, sigma = schedule.at(carried_by(x, k), x)
            if space == self.prediction:  # without the detour over x, which loses digits where alpha or sigma is small
                error = output - {"v": to_v(x, n, alpha, sigma), "noise": n, "x": x}[space]
            else:
                error = to_x(self.prediction, z, output, alpha, sigma) - x
                if space == "noise":
                    error = error * (alpha / sigma)
                elif space == "v":
                    error = error / sigma
            losses.append(error.float().square().mean(dim=(1, 2, 3)))
        return losses
