"""Samplers: exact on Gaussian data, of the order they claim; seeds, thresholds, guidance."""

import itertools
import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from mdm.config import SamplerName, Sampling
from mdm.diffusion.generate import generate
from mdm.diffusion.process import Process, downsample
from mdm.diffusion.samplers import SAMPLERS, Sampler, Step, ddim
from mdm.diffusion.sampling import SeededNoise, guided, sample, threshold
from mdm.diffusion.schedules import Schedule
from mdm.network.nested import NestedUNet
from small import TEXT_DIM, small_model

PX = (2, 4)  # two levels, one channel of which is 2 x 2 and 4 x 4 pixels
SIZES = [px * px for px in PX]
PROCESS = Process(PX, tuple(Schedule(Schedule.cosine(shift).gammas.double()) for shift in (1.0, 2.0)))


class Gaussian:
    """Images N(mean, covariance) over 4 x 4 pixels, each channel alike, and E[D x | all z] in closed form."""

    def __init__(self) -> None:
        pixels = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double()
        self.mean = torch.linspace(-0.3, 0.3, 16, dtype=torch.float64)
        self.covariance = 0.25**2 * torch.exp(-torch.cdist(pixels, pixels) / 2)
        basis = torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4)
        self.pool = torch.cat([level.flatten(1).T for level in downsample(basis, PX)])  # [20, 16]: x -> all levels

    def denoise(self, zs: list[Tensor], t: Tensor) -> list[Tensor]:
        """The exact v of every level."""
        k = int(t[0]) + 1
        alpha, sigma = (
            torch.cat([getattr(s, name)[k].expand(n) for s, n in zip(PROCESS.schedules, SIZES, strict=True)])
            for name in ("alphas", "sigmas")
        )
        seen = alpha[:, None] * self.pool
        gain = self.covariance @ seen.T @ torch.linalg.inv(seen @ self.covariance @ seen.T + torch.diag(sigma**2))
        z = torch.cat([z.flatten(2) for z in zs], 2)
        x = (self.mean + (z - seen @ self.mean) @ gain.T) @ self.pool.T
        v = (alpha * z - x) / sigma
        return [level.unflatten(2, (px, px)) for level, px in zip(v.split(SIZES, 2), PX, strict=True)]


def double_noise(count: int):
    generator = torch.Generator().manual_seed(0)
    return lambda: [level.double() for level in PROCESS.draw_noise(count, generator)]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(steps=250, threshold="none", spacing="quadratic"),
        Sampling(sampler="ddim", steps=250, threshold="none"),
        Sampling(sampler="ddim", eta=0.5, steps=250, threshold="none", spacing="quadratic"),
        Sampling(sampler="dpmpp", steps=40, threshold="none", spacing="quadratic"),
    ],
    ids=["ddpm", "ddim", "ddim eta 0.5", "dpmpp"],
)
def test_samples_of_gaussian_data_have_its_mean_and_covariance_at_and_across_all_levels(sampling: Sampling) -> None:
    data, count = Gaussian(), 1024
    xs = sample(data.denoise, PROCESS, sampling, double_noise(count))
    x = torch.cat([level.flatten(2) for level in xs], 2).transpose(0, 1).flatten(0, 1).T  # [20, 3 * count]
    expected = data.pool @ data.covariance @ data.pool.T
    standard_error = 0.25 / math.sqrt(3 * count)
    assert (x.mean(1) - data.pool @ data.mean).abs().max() < 5 * standard_error
    assert (x.cov() - expected).abs().max() < 6 * 0.25 * standard_error
    assert (downsample(xs[1], PX)[0] - xs[0]).abs().mean() < 0.01  # the levels show one image


def heun(step: Step) -> tuple[list[Tensor], list[Tensor]]:
    """Heun's method on dz̄/dσ̄ = noise, with z̄ = z / alpha and σ̄ = sigma / alpha: two predictions a step."""
    xs = step.predict(step.zs, step.k)
    euler, _ = ddim(replace(step, predict=lambda zs, k: xs))
    if step.s == 0:
        return euler, xs
    ends = []
    for z, x, z_s, x_s, schedule in zip(step.zs, xs, euler, step.predict(euler, step.s), step.schedules, strict=True):
        (a, b), (c, d) = ((schedule.alphas[i], schedule.sigmas[i]) for i in (step.k, step.s))
        slope = ((z - a * x) / b + (z_s - c * x_s) / d) / 2
        ends.append(c * (z / a + (d / c - b / a) * slope))
    return ends, xs


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp", 2), ("heun", 2)])
def test_ode_samplers_converge_at_their_order(sampler: str, order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "heun", Sampler(heun, "quadratic"))  # type: ignore[misc]  # a function and a row
    data, start = Gaussian(), double_noise(8)()

    def run(name: str, steps: int) -> list[Tensor]:
        settings = Sampling(sampler=name, steps=steps, threshold="none", spacing="quadratic")  # type: ignore[arg-type]
        return sample(data.denoise, PROCESS, settings, lambda: list(start))

    limit = run("dpmpp", 1000)
    errors = [
        [(a - b).square().mean().sqrt().item() for a, b in zip(run(sampler, steps), limit, strict=True)]
        for steps in (32, 64, 128)
    ]
    for coarse, finer in itertools.pairwise(errors):
        for before, after in zip(coarse, finer, strict=True):
            assert math.log2(before / after) > order - 0.1
    assert all(error < {"ddim": 5e-3, "dpmpp": 1e-4, "heun": 1e-2}[sampler] for error in errors[-1])


def test_a_sampler_brings_its_spacing_unless_another_is_asked_for() -> None:
    assert set(SAMPLERS) == set(get_args(SamplerName))
    seen: dict[str, list[int]] = {}
    for name, spacing in itertools.product(SAMPLERS, (None, "uniform", "quadratic")):
        times: list[int] = []

        def denoiser(zs: list[Tensor], t: Tensor, times: list[int] = times) -> list[Tensor]:
            times.append(int(t[0]))
            return zs

        settings = Sampling(sampler=name, steps=5, spacing=spacing)  # type: ignore[arg-type]
        sample(denoiser, PROCESS, settings, double_noise(1))
        seen[f"{name} {spacing}"] = times
    assert seen["dpmpp None"] == seen["dpmpp quadratic"] == seen["ddpm quadratic"] != seen["dpmpp uniform"]
    assert seen["ddpm None"] == seen["ddpm uniform"] and seen["ddim None"] == seen["ddim uniform"]


def test_an_image_depends_on_its_seed_not_on_its_batch() -> None:
    process = Process.of(small_model(2))
    scale = torch.tensor(0.5)

    def denoiser(zs, t):
        return [z * scale for z in zs]

    sampling = Sampling(steps=5)
    together = sample(denoiser, process, sampling, SeededNoise([7, 8, 9], process.resolutions))
    alone = sample(denoiser, process, sampling, SeededNoise([8], process.resolutions))
    assert all(torch.equal(a[1:2], b) for a, b in zip(together, alone, strict=True))


def test_thresholds() -> None:
    x = torch.tensor([-3.0, 0.5, 2.0]).view(1, 3, 1, 1)
    assert torch.equal(threshold(x, "none"), x)
    assert threshold(x, "clip").abs().max() == 1
    assert torch.allclose(threshold(x, "dynamic", percentile=1.0), x / 3)


def test_guidance_is_per_level_and_the_null_pass_goes_no_higher_than_needed() -> None:
    calls = []

    def model(zs, t, text, num_outputs=None):
        calls.append(num_outputs)
        return [z * 0 + text.mean(dim=(1, 2)).view(-1, 1, 1, 1) for z in zs[:num_outputs]]

    text, null = {"text": torch.ones(2, 3, 4)}, {"text": torch.zeros(2, 3, 4)}
    zs, t = [torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 16, 16)], torch.zeros(2)
    for scales, passes in (
        ((3.0, 1.0), [None, 1]),
        ((1.0, 1.0), [None]),
        ((3.0, 2.0), [None, 2]),
        ((1.0, 2.0), [None, 2]),
    ):
        calls.clear()
        vs = guided(model, text, null, scales)(zs, t)
        assert [v.unique().item() for v in vs] == list(scales)
        assert calls == passes


def lively() -> NestedUNet:
    """A network whose answers are not 0."""
    network = NestedUNet(small_model(2)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network


def test_both_passes_of_guidance_as_one_batch_give_the_same() -> None:
    network, resolutions = lively(), small_model(2).resolutions
    states = torch.randn(3, 5, TEXT_DIM, generator=torch.Generator().manual_seed(0))
    condition, null = ({"text": text, "text_mask": torch.ones(3, 5)} for text in (states, states * 0))
    zs, t = SeededNoise([1, 2, 3], resolutions)(), torch.tensor([500, 500, 500])
    for scales in ((3.0, 2.0), (3.0, 1.0)):  # the second is guided at its lower level alone: two passes
        with torch.no_grad():
            apart = guided(network, condition, null, scales)(zs, t)
            together = guided(network, condition, null, scales, together=True)(zs, t)
            plain = network(zs, t, **condition)
        for a, b in zip(apart, together, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert (apart[0] - plain[0]).abs().max() > 0.01


def test_half_precision_is_the_network_s_alone_and_close() -> None:
    states = list(torch.randn(2, 5, TEXT_DIM, generator=torch.Generator().manual_seed(0)))
    network, null = lively(), torch.zeros(1, TEXT_DIM)
    full, half = (
        generate(network, states, null, [1, 2], Sampling(steps=4, precision=precision), torch.device("cpu"))
        for precision in ("float32", "bfloat16")
    )
    for a, b in zip(full, half, strict=True):
        assert b.dtype == torch.float32 and 0 < (a - b).abs().mean() < 0.02


def test_guidance_is_off_outside_its_interval() -> None:
    calls = []

    def model(zs, t, text, num_outputs=None):
        calls.append(int(t[0]))
        return [z * 0 for z in zs]

    state = {"text": torch.ones(1, 3, 4)}
    denoiser = guided(model, state, state, (2.0,), times=(200, 600))
    for t in (100, 200, 600, 700):
        denoiser([torch.zeros(1, 3, 8, 8)], torch.tensor([t]))
    assert calls == [100, 200, 200, 600, 600, 700]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp"])
def test_what_the_network_predicts_does_not_matter(sampler: str) -> None:
    data = Gaussian()
    settings = Sampling(sampler=sampler, steps=20, threshold="none", spacing="quadratic")  # type: ignore[arg-type]
    as_v = sample(data.denoise, PROCESS, settings, double_noise(4))

    def as_other(prediction: str) -> list[Tensor]:
        def denoise(zs: list[Tensor], t: Tensor) -> list[Tensor]:
            k = int(t[0]) + 1
            found = []
            for z, v, schedule in zip(zs, data.denoise(zs, t), PROCESS.schedules, strict=True):
                alpha, sigma = schedule.alphas[k], schedule.sigmas[k]
                found.append(alpha * z - sigma * v if prediction == "x" else sigma * z + alpha * v)
            return found

        return sample(denoise, replace(PROCESS, prediction=prediction), settings, double_noise(4))  # type: ignore[arg-type]

    for prediction in ("x", "noise"):
        for one, other in zip(as_v, as_other(prediction), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
