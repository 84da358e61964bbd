"""Schedules and the process."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from mdm.diffusion.process import Process, downsample
from mdm.diffusion.schedules import Schedule, shift_gammas, time_grid
from mdm.training.noise import uniforms
from small import small_model


def test_cosine_schedule_has_the_released_values() -> None:
    schedule = Schedule.cosine()
    assert schedule.gammas[1].item() == pytest.approx(0.9999587, abs=1e-7)
    assert schedule.gammas[500].item() == pytest.approx(0.493844, abs=1e-6)
    assert schedule.logsnrs[1000].item() == pytest.approx(-19.84, abs=0.01)
    assert Schedule.cosine(shift=4, power=2).logsnrs[500].item() == pytest.approx(-2.80, abs=0.01)


@pytest.mark.parametrize("shift", [2, 4, 16])
def test_shift_lowers_logsnr_by_its_logarithm(shift: float) -> None:
    base, shifted = Schedule.cosine(), Schedule.cosine(shift)
    difference = base.logsnrs[10:] - shifted.logsnrs[10:]
    assert torch.allclose(difference, torch.full_like(difference, math.log(shift)), atol=2e-2)
    with pytest.raises(ValueError, match="positive"):
        shift_gammas(base.gammas, 0)


def test_times_are_spread_over_the_batch() -> None:
    process = Process.of(small_model(1))
    for first in range(0, 200, 10):
        k = process.times(uniforms(0, first, 10, range(10)))
        u = (k - 0.5) / 1000
        assert k.min() >= 1
        assert k.max() <= 1000
        assert sorted((u * 10).long().tolist()) == pytest.approx(list(range(10)), abs=1)


def test_time_grid() -> None:
    assert time_grid(250)[:3] == [997, 993, 989]
    assert time_grid(250)[-1] == 0
    assert len(time_grid(24)) == 25
    with pytest.raises(ValueError, match="num_inference_steps"):
        time_grid(0)


@pytest.mark.parametrize("steps", [1, 2, 24, 250, 999, 1000])
def test_quadratic_spacing_starts_at_pure_noise_and_never_stands_still(steps: int) -> None:
    grid = time_grid(steps, spacing="quadratic")
    assert (grid[0], grid[-1], len(grid)) == (1000, 0, steps + 1)
    assert all(k > s for k, s in itertools.pairwise(grid))
    gaps = [k - s for k, s in itertools.pairwise(grid)]
    assert gaps[0] >= gaps[-1]


def test_downsample_pools_from_level_to_level() -> None:
    images = torch.rand(2, 3, 32, 32)
    low, mid, top = downsample(images, (8, 16, 32))
    assert top is images or torch.equal(top, images)
    assert torch.allclose(low, images.unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(-1, -2)), atol=1e-6)
    assert torch.allclose(mid.mean(), images.mean(), atol=1e-6)
    with pytest.raises(ValueError, match="cannot be brought down"):
        downsample(images, (12,))


def test_bilinear_is_average_pooling_by_halves_and_reads_only_the_centre_beyond() -> None:
    images = torch.rand(2, 3, 32, 32)
    assert torch.allclose(downsample(images, (16,), "bilinear")[0], downsample(images, (16,))[0], atol=1e-6)
    quarter = downsample(images, (8,), "bilinear")[0]
    centre = images.unfold(2, 4, 4).unfold(3, 4, 4)[..., 1:3, 1:3].mean(dim=(-1, -2))
    assert torch.allclose(quarter, centre, atol=1e-6)
    smooth = downsample(images, (8,), "bilinear-antialias")[0]
    assert smooth.std() < downsample(images, (8,))[0].std() < quarter.std()


def test_loss_is_zero_for_the_exact_denoiser_and_released_form_is_alpha_squared_v() -> None:
    process = Process.of(small_model(2))
    xs = downsample(torch.rand(4, 3, 16, 16) * 2 - 1, process.resolutions)
    noise = process.draw_noise(4, torch.Generator().manual_seed(0))
    k = torch.tensor([1, 300, 700, 999])

    def exact(zs, t):
        pairs = zip(zs, xs, noise, process.schedules, strict=True)
        return [s.at(t + 1, z)[0] * n - s.at(t + 1, z)[1] * x for z, x, n, s in pairs]

    assert all(level.max() < 1e-5 for level in process.loss(exact, xs, noise, k, "v"))
    for other, targets in ((replace(process, prediction="x"), xs), (replace(process, prediction="noise"), noise)):
        for space in ("v", "noise", "x"):
            late = k.clamp(max=900)  # at the last times alpha is 5e-5, and x no longer follows from the noise
            losses = other.loss(lambda *_, known=targets: known, xs, noise, late, space)
            assert all(level.max() < 1e-5 for level in losses), (other.prediction, space)
    zero = {
        space: process.loss(lambda zs, t: [z * 0 for z in zs], xs, noise, k, space) for space in ("v", "noise", "x")
    }
    for r, schedule in enumerate(process.schedules):
        gamma = schedule.gammas[k]
        assert torch.allclose(zero["noise"][r], gamma * zero["v"][r], rtol=1e-3, atol=1e-5)
        assert torch.allclose(zero["x"][r], (1 - gamma) * zero["v"][r], rtol=1e-3, atol=1e-5)
