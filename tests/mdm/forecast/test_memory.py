"""The memory estimate: the same as a real forward pass keeps; less with recomputation, sharding, half precision."""

from dataclasses import replace

import torch
from torch.autograd.graph import saved_tensors_hooks

from mdm.forecast.memory import BATCH_TENSORS, activations, step_memory
from mdm.network.costs import empty_condition, parameters
from mdm.network.nested import NestedUNet
from mdm.stage import Cadence, Compute, Stage, Training
from small import small_model

MODEL = small_model(3)


def test_fake_tensors_keep_what_real_ones_do() -> None:
    count, top = 4, 2
    network = NestedUNet(MODEL).to(memory_format=torch.channels_last)
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    zs = [torch.empty(n, 3, px, px) for n, px in zip((count, count, top), MODEL.resolutions, strict=True)]
    zs = [z.to(memory_format=torch.channels_last) for z in zs]
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        network(zs, torch.zeros(count), **empty_condition(MODEL, count))
    real = sum(storage.nbytes() for storage in kept.values())
    batch = 4 * BATCH_TENSORS * sum(z.numel() for z in zs)
    estimate = activations(MODEL, count, top, Compute(), "float32")
    assert abs(estimate - batch - real) < 0.01 * real


def test_activations_grow_with_the_batch_and_shrink_with_what_is_recomputed() -> None:
    def estimate(count: int = 8, top: int = 8, precision: str = "float32", **compute: object) -> int:
        return activations(MODEL, count, top, Compute(**compute), precision)  # type: ignore[arg-type]

    whole = estimate()
    assert 1.9 * whole < estimate(16, 16) < 2.1 * whole
    assert estimate(top=4) < 0.8 * whole
    assert estimate(recompute=(32,)) < 0.8 * whole
    assert estimate(recompute=(8, 16, 32)) < estimate(recompute=(32,))
    half = estimate(precision="bfloat16")
    assert half < 0.92 * whole  # not half: what norms take and give stays in float32
    assert half == estimate(precision="float16")


def test_what_is_kept_per_parameter_is_shared_under_fsdp() -> None:
    stage = Stage(model=MODEL, training=Training(nimg=64, batch_size=16, low_only=0.5))
    weights = 4 * parameters(MODEL)
    found = step_memory(stage, 4, 4, "float32")
    assert (found.weights, found.gradients, found.moments, found.ema, found.averages) == (
        weights,
        weights,
        2 * weights,
        weights,
        0,
    )
    assert found.total == 5 * weights + found.activations
    assert found.activations == activations(MODEL, 4, 2, Compute(), "float32")
    sharded = replace(stage, compute=Compute(parallel="fsdp"), cadence=Cadence(average_every_nimg=16))
    found = step_memory(sharded, 4, 4, "float32")
    assert found.averages == weights // 2
    assert found.total == 7 * weights // 4 + weights + found.activations
