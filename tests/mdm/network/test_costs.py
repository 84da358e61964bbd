"""What is counted without computing: FLOP per level, of mixed batches, of what is recomputed; peaks of GPUs."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mdm.config import MODELS
from mdm.network.costs import (
    block_flops,
    empty_condition,
    forward_flops,
    hardware_flops_per_image,
    model_flops_per_image,
    parameters,
    peak_flops,
    top_share,
)
from mdm.network.nested import NestedUNet
from mdm.stage import Compute, Training
from small import small_model


def test_the_paper_s_models_cost_what_their_rows_say() -> None:
    model = MODELS["MDM-S64S256S1024"]
    assert parameters(model) == 452_876_617
    assert [round(flops / 1e9) for flops in forward_flops(model)] == [362, 225, 430]
    assert [round(flops / 1e9) for flops in block_flops(model)] == [182, 174, 372]


def test_outer_levels_do_not_see_the_caption() -> None:
    short, long = (forward_flops(small_model(3), tokens) for tokens in (32, 64))
    assert (long[0] > short[0], long[1:]) == (True, short[1:])


def test_a_mixed_batch_costs_what_the_network_computes() -> None:
    """Of six samples two leave out the top level: counted on the batch itself, backward pass included."""
    model = small_model(3)
    training = Training(nimg=6, batch_size=6, low_only=1 / 3)
    assert top_share(model, training) == pytest.approx(4 / 6)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = NestedUNet(model)
        zs = [torch.empty(n, 3, px, px) for n, px in zip((6, 6, 4), model.resolutions, strict=True)]
        outputs = network(zs, torch.empty(6), **empty_condition(model, 6))
        forward = counter.get_total_flops()
        torch.stack([v.sum() for v in outputs]).sum().backward()
    assert sum(forward_flops(model)) * 4 + sum(forward_flops(model)[:-1]) * 2 == forward
    assert model_flops_per_image(model, training) == pytest.approx(3 * forward / 6)
    assert counter.get_total_flops() == pytest.approx(3 * forward, rel=0.04)  # no gradient of the images is needed


def test_one_level_is_never_left_out() -> None:
    training = Training(nimg=6, batch_size=6, low_only=0.5)
    assert model_flops_per_image(small_model(1), training) == 3 * forward_flops(small_model(1))[0]


def test_what_is_recomputed_counts_for_the_hardware_only() -> None:
    model, training = small_model(3), Training(nimg=4, batch_size=4, low_only=0.5)
    plain = hardware_flops_per_image(model, training, Compute())
    assert plain == model_flops_per_image(model, training)
    assert hardware_flops_per_image(model, training, Compute(recompute=(32,))) == plain + block_flops(model)[2] / 2
    assert hardware_flops_per_image(model, training, Compute(recompute=(8, 16))) == plain + sum(block_flops(model)[:2])


def test_labels_instead_of_text() -> None:
    model = MODELS["MDM-S64S256-imagenet-small"]
    assert sum(forward_flops(model)) > 0
    assert forward_flops(replace(model, levels=model.levels[:1])) == forward_flops(model)[:1]


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", "auto", 312),
        ("NVIDIA A100-SXM4-80GB", "float32", 19.5),
        ("A100", "bfloat16", 312),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H200", "auto", 989),
        ("NVIDIA GeForce RTX 4090", "float16", 165.2),
        ("NVIDIA L40S", "bfloat16", 362),
        ("NVIDIA L4", "bfloat16", 121),
        ("Tesla V100-SXM2-16GB", "float16", 125),
        ("Tesla V100-SXM2-16GB", "auto", 15.7),
    ],
)
def test_peaks_by_the_name_that_cuda_gives(name: str, precision: str, tera: float) -> None:
    assert peak_flops(name, precision) == pytest.approx(tera * 1e12)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["NVIDIA A10G", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "AMD Instinct MI300X", ""])
def test_a_gpu_that_is_not_listed_has_no_peak(name: str) -> None:
    assert peak_flops(name, "bfloat16") is None
    assert peak_flops("Tesla T4", "bfloat16") is None
