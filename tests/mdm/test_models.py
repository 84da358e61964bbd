"""The named models: sizes, shifts, that each trains and samples, growth by two levels at once."""

import math
import re

import pytest
import torch

from mdm.config import MODELS, Model, Sampling, Text, padded_length
from mdm.diffusion.generate import generate
from mdm.diffusion.process import Process
from mdm.network.conditioning import stack_conditions
from mdm.network.nested import NestedUNet
from mdm.training.progressive import grow
from small import attentive

PARAMETERS = {  # of the paper's models as the released code builds them, and of the released checkpoints
    "MDM-S64": 435_891_203,
    "MDM-S64S256": 449_833_286,
    "MDM-S64S128S256": 453_483_977,
    "MDM-S64S256S1024": 452_876_617,
    "MDM-S64S128S256S512S1024": 458_135_791,
    "MDM-S64-imagenet": 361_306_115 + 1000 * 1024,
    "64x64": 461_359_107,
    "256x256": 476_613_958,
    "1024x1024": 480_970_057,
}
FULL_WIDTH = [name for name in MODELS if not name.endswith("-small")]
SMALL = [name for name in MODELS if name not in FULL_WIDTH]


def conditions(model: Model, count: int) -> list[torch.Tensor | int]:
    if model.labels:
        return list(range(count))
    assert model.text is not None
    return [torch.randn(3 + i, model.text.dim) for i in range(count)]


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_come_out(name: str) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in NestedUNet(MODELS[name]).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", FULL_WIDTH)
def test_full_width_runs_on_the_meta_device(name: str) -> None:
    model = MODELS[name]
    with torch.device("meta"):
        network = NestedUNet(model)
        condition = {key: value.to("meta") for key, value in stack_conditions(conditions(model, 1)).items()}
        outputs = network([torch.empty(1, 3, px, px) for px in model.resolutions], torch.empty(1), **condition)
    assert [v.shape[-1] for v in outputs] == list(model.resolutions)


@pytest.mark.parametrize("name", SMALL)
def test_every_configuration_trains_a_step_and_samples_at_reduced_width(name: str) -> None:
    model = MODELS[name]
    torch.manual_seed(0)
    network, process = NestedUNet(model), Process.of(model)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    condition = stack_conditions(conditions(model, 2))
    generator = torch.Generator().manual_seed(0)
    xs = process.downsample(torch.rand(2, 3, model.resolutions[-1], model.resolutions[-1]) * 2 - 1)
    noise, k = process.draw_noise(2, generator), process.times(torch.rand(2, generator=generator))

    def loss() -> torch.Tensor:
        levels = process.loss(lambda zs, t: network(zs, t, **condition), xs, noise, k, "v")
        return torch.stack([level.mean() for level in levels]).sum()

    before = loss()
    before.backward()
    optimizer.step()
    with torch.no_grad():
        assert loss() < before
    pictures = generate(network, conditions(model, 1), None, [0], Sampling(steps=2), torch.device("cpu"))
    assert [x.shape for x in pictures] == [(1, 3, px, px) for px in model.resolutions]
    assert all(x.isfinite().all() for x in pictures)


def test_shifts_follow_from_the_pixels() -> None:
    """S = sqrt(N_r / N_1), frames counted: every cosine-shiftS that App. A prints, video rows too."""
    for name in FULL_WIDTH:
        inner, *outer = MODELS[name].levels
        assert inner.shift == 1
        for level in outer:
            assert level.shift == math.sqrt(level.resolution**2 / inner.resolution**2), name
    video = {(16, 64): 4, (16, 256): 16}  # (frames, px) of MDM-S64T16 and MDM-S64T16S256 -> S
    for (frames, px), shift in video.items():
        assert shift == math.sqrt(frames * px**2 / 64**2)


@torch.no_grad()
def test_two_levels_at_once_leave_the_innermost_output_bit_identical() -> None:
    torch.manual_seed(0)
    inner = NestedUNet(MODELS["MDM-S64-small"]).eval()
    for parameter in inner.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model = MODELS["MDM-S64S128S256-small"]
    grown = NestedUNet(model).eval()
    grown.load_state_dict(grow(inner.config, inner.state_dict(), model, seed=0))
    zs = [torch.randn(2, 3, px, px) for px in model.resolutions]
    condition, t = stack_conditions(conditions(model, 2)), torch.tensor([3, 800])
    low, *new = grown(zs, t, **condition)
    assert torch.equal(low, inner(zs[:1], t, **condition)[0])
    assert low.abs().max() > 0
    assert all(v.abs().max() == 0 for v in new)


def test_guidance_needs_a_null_class() -> None:
    plain, dropout = MODELS["MDM-S64-imagenet-small"], MODELS["MDM-S64-imagenet-dropout-small"]
    guided = Sampling(steps=1, guidance=(1.5,))
    with pytest.raises(ValueError, match=re.escape("no null class")):
        generate(NestedUNet(plain), [0], None, [0], guided, torch.device("cpu"))
    null = dropout.labels.num_classes if dropout.labels else 0
    pictures = generate(NestedUNet(dropout), [0], null, [0], guided, torch.device("cpu"))
    assert pictures[0].shape == (1, 3, 16, 16)


@torch.no_grad()
def test_an_image_does_not_depend_on_the_captions_drawn_beside_it() -> None:
    """Least of all where padding is in sight: the released checkpoints'."""
    for name in ("64x64-small", "MDM-S64-small"):
        network = attentive(MODELS[name]).eval()
        short, longer, null = (torch.randn(count, 384) for count in (3, 20, 1))
        sampling = Sampling(steps=2, guidance=(2.0,), threshold="clip")
        drawn = [
            generate(network, captions, null, list(range(len(captions))), sampling, torch.device("cpu"))[0][0]
            for captions in ([short], [short, longer], [short, short])
        ]
        other = generate(network, [longer], null, [0], sampling, torch.device("cpu"))[0][0]
        assert (drawn[0] - other).abs().max() > 0.01  # the caption counts
        for beside_others in drawn[1:]:
            torch.testing.assert_close(beside_others, drawn[0], rtol=0, atol=1e-4)


def test_padding_in_sight_needs_an_encoder_that_says_how_much() -> None:
    assert [padded_length(MODELS[name].text) for name in ("64x64", "64x64-small", "MDM-S64")] == [128, 32, 0]
    with pytest.raises(ValueError, match="no encoder of width 7 says how far captions are padded"):
        padded_length(Text(dim=7, masked=False))
