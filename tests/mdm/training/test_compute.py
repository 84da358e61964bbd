"""The switches of how a stage is computed: none changes what is computed beyond rounding, each does what it says."""

import functools
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch.autograd.graph import saved_tensors_hooks

from mdm.config import MODELS, Labels, Model, Sampling, Text
from mdm.data.batches import Batch
from mdm.diffusion.process import Process
from mdm.forecast.memory import BATCH_TENSORS, activations
from mdm.network.blocks import GroupNorm, LayerNorm, ResBlock
from mdm.network.costs import block_flops, empty_condition, hardware_flops_per_image, model_flops_per_image
from mdm.network.nested import NestedUNet
from mdm.run.job import Job
from mdm.stage import Compute, Training
from mdm.training.compute import Ranks, Spread, is_channels_last, pick_dtype
from mdm.training.ema import EMA
from mdm.training.gradients import Gradients, Split
from mdm.training.state import State
from small import TEXT_DIM, small_model

CPU = torch.device("cpu")
Sizes = tuple[int, ...]


def network_of(model: Model) -> NestedUNet:
    """Fresh weights, where a fresh network's zeros would hide most of it."""
    torch.manual_seed(0)
    network = NestedUNet(model)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return network


def losses(model: Model, network: nn.Module, sizes: Sizes, tokens: int = 3, seed: int = 0) -> list[Tensor]:
    """Per-sample losses of a synthetic batch, ``sizes`` samples per level."""
    generator, process = torch.Generator().manual_seed(seed), Process.of(model)
    condition = {name: value[: sizes[0]] for name, value in empty_condition(model, sizes[0], tokens).items()}
    if model.text:
        condition["text"] = torch.randn(sizes[0], tokens, model.text.dim, generator=generator)
    if model.levels[0].micro:
        condition["micros"] = {"scale": torch.full((sizes[0],), 5.0)}  # type: ignore[assignment]
    px = model.resolutions[-1]
    xs = process.downsample(torch.rand(sizes[0], 3, px, px, generator=generator) * 2 - 1)
    xs = [x[:size] for x, size in zip(xs, sizes, strict=True)]
    noise = [torch.randn(x.shape, generator=generator) for x in xs]
    k = process.times(torch.rand(sizes[0], generator=generator))
    return process.loss(lambda zs, t: network(zs, t, **condition), xs, noise, k, "v")


def backward(per_level: list[Tensor]) -> Tensor:
    total = torch.stack([level.mean() for level in per_level]).sum()
    total.backward()
    return total.detach()


# -- compilation -------------------------------------------------------------------------------------------------------

LABELS = replace(small_model(2), text=None, labels=Labels(num_classes=10))
RELEASED = replace(  # as the released 1024 model: micro-conditions, padding in sight, input divided by its deviation
    small_model(2),
    levels=tuple(replace(x, micro=(("scale", 8.0),), normalize_input=True) for x in small_model(2).levels),
    text=Text(dim=TEXT_DIM, masked=False),
)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """Counts the graphs that torch.compile makes; they are run as they are, nothing is generated from them."""
    torch._dynamo.reset()
    counters.clear()
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    return counter


@pytest.mark.parametrize(
    ("model", "recompute"),
    [
        *((small_model(count), ()) for count in (1, 2, 3)),
        (small_model(2), (8, 16)),
        (LABELS, ()),
        (RELEASED, ()),
    ],
    ids=["text-1", "text-2", "text-3", "recompute", "labels", "released"],
)
def test_compiles_without_graph_breaks(model: Model, recompute: tuple[int, ...], graphs: CompileCounter) -> None:
    network, mixed = network_of(model), (4, 4, 2)[-len(model.levels) :]
    plain = losses(model, network, mixed)
    spread = Spread(network, Compute(compile=True, channels_last=False, recompute=recompute), CPU)
    compiled = losses(model, spread.model, mixed)
    for ours, theirs in zip(compiled, plain, strict=True):
        torch.testing.assert_close(ours, theirs)
    backward(compiled)
    assert not counters["graph_break"]
    assert graphs.frame_count == 1


@pytest.mark.parametrize(
    ("compute", "device", "expected"),
    [
        (Compute(), "cpu", True),
        (Compute(), "cuda", False),
        (Compute(compile=True), "cuda", True),
        (Compute(channels_last=True), "cuda", True),
        (Compute(channels_last=False), "cpu", False),
    ],
)
def test_an_uncompiled_gpu_has_contiguous_tensors_unless_asked(compute: Compute, device: str, expected: bool) -> None:
    assert is_channels_last(compute, torch.device(device)) is expected


@pytest.mark.slow
def test_other_splits_and_captions_compile_again_a_few_times_only(graphs: CompileCounter) -> None:
    model = small_model(2)
    spread = Spread(network_of(model), Compute(compile=True, channels_last=False), CPU)
    made = []
    for top, tokens in [(4, 3), (2, 3), (3, 3), (4, 5), (2, 6), (3, 7), (4, 3)]:
        losses(model, spread.model, (4, top), tokens)
        made.append(graphs.frame_count)
    assert made[4:] == made[4:5] * 3  # a second value of each makes it free to vary
    assert made[4] <= 4
    assert not counters["graph_break"]


# -- recomputation -----------------------------------------------------------------------------------------------------


class Kept:
    """What autograd keeps for the backward pass, every storage once, parameters not."""

    def __init__(self, network: nn.Module) -> None:
        self.own = {p.untyped_storage().data_ptr() for p in network.parameters()}
        self.storages: dict[int, torch.UntypedStorage] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.storages[storage.data_ptr()] = storage
        return tensor

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.storages.values())


def test_recomputation_changes_no_bit_and_keeps_what_the_estimate_says() -> None:
    model, count = small_model(3), 4
    network, found = network_of(model), {}
    insides: list[int] = []

    def inside(block: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
        """What a residual block keeps besides its input, were it alone."""
        kept, given = Kept(block), {x.untyped_storage().data_ptr() for x in inputs}
        with saved_tensors_hooks(kept, lambda tensor: tensor):
            ResBlock.forward(block, *inputs)  # type: ignore[arg-type]
        insides.append(sum(s.nbytes() for address, s in kept.storages.items() if address not in given))

    for compute in (Compute(), Compute(recompute=(16, 32))):
        spread, kept = Spread(network, compute, CPU), Kept(network)
        spread.zero_grad()
        with saved_tensors_hooks(kept, lambda tensor: tensor):
            zs = [torch.randn(count, 3, px, px, generator=torch.Generator().manual_seed(px)) for px in (8, 16, 32)]
            zs = [z.to(memory_format=torch.channels_last) for z in zs]
            outputs = network(
                zs, torch.zeros(count), **{**empty_condition(model, count), "text": torch.ones(4, 32, 16)}
            )
        total = sum((v.square().mean() for v in outputs), torch.zeros(()))
        total.backward()
        gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
        found[compute.recompute] = (total, gradients, kept.bytes)
    hooks = [
        block.register_forward_pre_hook(inside)
        for level in list(network.levels)[1:]
        for block in level.modules()
        if isinstance(block, ResBlock)
    ]
    network(zs, torch.zeros(count), **empty_condition(model, count))
    for hook in hooks:
        hook.remove()
    (plain, gradients, much), (again, others, little) = found.values()
    assert torch.equal(plain, again)
    assert gradients.keys() == others.keys()
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)
    assert little < 0.5 * much
    batch = 4 * BATCH_TENSORS * sum(z.numel() for z in zs)
    estimate = activations(model, count, count, Compute(recompute=(16, 32)), "float32")
    assert insides
    assert abs(estimate - batch - max(insides) - little) < 0.01 * little


def test_recomputation_costs_the_residual_blocks_once_more() -> None:
    model, training = small_model(2), Training(nimg=8, batch_size=8)
    more = hardware_flops_per_image(model, training, Compute(recompute=(16,))) - model_flops_per_image(model, training)
    assert more == block_flops(model)[1]


# -- number formats ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_loss_weights_and_averages_stay_in_float32(dtype: torch.dtype) -> None:
    model = small_model(2)
    network = network_of(model)
    norms: set[torch.dtype] = set()
    convolutions: set[torch.dtype] = set()
    for module in network.modules():
        assert type(module) not in (nn.GroupNorm, nn.LayerNorm)
        if isinstance(module, GroupNorm | LayerNorm):
            module.register_forward_hook(lambda module, inputs, output: norms.add(output.dtype))
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: convolutions.add(output.dtype))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    exact = [level.detach() for level in losses(model, network, (4, 3))]
    assert norms == convolutions == {torch.float32}
    convolutions.clear()
    with torch.autocast("cpu", dtype):
        per_level = losses(model, network, (4, 3))
    assert (norms, convolutions) == ({torch.float32}, {dtype})
    for level, wanted in zip(per_level, exact, strict=True):
        assert level.dtype == torch.float32
        torch.testing.assert_close(level, wanted, rtol=0.05, atol=0.0)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    average = EMA(before)
    scaler.scale(torch.stack([level.mean() for level in per_level]).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    average.update(list(network.parameters()), 0.5)
    assert any(not torch.equal(p, before[name]) for name, p in network.named_parameters())
    assert {p.dtype for p in network.parameters()} == {w.dtype for w in average.weights.values()} == {torch.float32}


@pytest.mark.parametrize("usable", [True, False])
def test_the_number_format_is_picked_or_refused(usable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return usable or including_emulation  # older GPUs emulate bfloat16, slowly

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    gpu = torch.device("cuda", 0)
    assert pick_dtype("auto", CPU) == torch.float32
    assert pick_dtype("bfloat16", CPU) == torch.bfloat16
    assert pick_dtype("auto", gpu) == (torch.bfloat16 if usable else torch.float16)
    assert pick_dtype("float16", gpu) == torch.float16
    assert pick_dtype("float32", gpu) == torch.float32
    if usable:
        assert pick_dtype("bfloat16", gpu) == torch.bfloat16
    else:
        with pytest.raises(ValueError, match="bfloat16, which Tesla V100 does not have: choose float16"):
            pick_dtype("bfloat16", gpu)


# -- several processes -------------------------------------------------------------------------------------------------

ODD = replace(small_model(2), emb_channels=40)  # conv_out's 3 channels do not divide by 2 either


def train_a_step(spread: Spread, mine: slice) -> tuple[torch.optim.Adam, Tensor]:
    """Two micro-batches of four images, of which this process takes ``mine``; clipped, then Adam."""
    optimizer = torch.optim.Adam(spread.local.values(), 1e-2, eps=1e-3, fused=True)
    for micro in range(2):
        generator = torch.Generator().manual_seed(micro)
        zs = [torch.randn(4, 3, px, px, generator=generator)[mine] for px in ODD.resolutions]
        text = torch.randn(4, 5, TEXT_DIM, generator=generator)[mine]
        t = torch.tensor([3.0, 200.0, 500.0, 900.0])[mine]
        with spread.accumulating(last=micro == 1):
            outputs = spread.model(zs, t, text=text, text_mask=torch.ones(len(text), 5))
            total = torch.stack([v.square().mean() for v in outputs]).sum()
            (total / 2).backward()
    spread.collect_gradients()
    norm = spread.gradient_norm()
    optimizer.step()
    return optimizer, norm


def one_of_two(rank: int, port: int, parallel: str, folder: Path) -> None:
    """What each of two processes runs; an assertion that fails here fails the test."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    Ranks(CPU, 60)
    wanted = torch.load(folder / "alone.pt")
    spread = Spread(network_of(ODD), Compute(parallel=parallel), CPU)  # type: ignore[arg-type]
    assert spread.sharded == (parallel == "fsdp")

    fresh = {name: p.detach() for name, p in network_of(ODD).named_parameters()}
    whole = spread.whole(spread.local)
    assert (rank == 1 and spread.sharded) or all(torch.equal(whole[name], p) for name, p in fresh.items())
    odd = {name for name, p in fresh.items() if p.shape[0] % 2}
    assert odd
    for name, part in spread.local.items():
        assert torch.equal(spread.part_of(name, fresh[name]), part.detach())
        assert not spread.sharded or name not in odd or len(part) == (len(fresh[name]) + 1 - rank) // 2
    spread.load({name: p + 1 for name, p in fresh.items()}, spread.local)
    shifted = spread.whole(spread.local)
    assert all(torch.equal(shifted[name], fresh[name] + 1) for name in shifted)
    spread.load(fresh, spread.local)

    optimizer, norm = train_a_step(spread, slice(2 * rank, 2 * rank + 2))
    torch.testing.assert_close(norm, wanted["norm"])
    after = spread.whole(spread.local)
    assert after or rank == 1
    for name, weight in after.items():
        torch.testing.assert_close(weight, wanted["weights"][name], rtol=1e-4, atol=1e-5)

    moments = {name: optimizer.state[p]["exp_avg"] for name, p in spread.local.items()}
    for name, moment in spread.whole(moments).items():
        torch.testing.assert_close(moment, wanted["moments"][name], rtol=1e-4, atol=1e-6)
    steps = {name: optimizer.state[p]["step"] for name, p in spread.local.items()}
    assert all(step == 1 and step.dim() == 0 for step in spread.whole(steps).values())
    held = [p.detach().clone() for p in spread.local.values()] + [m.clone() for m in moments.values()]
    optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(held, [*spread.local.values(), *moments.values()], strict=True))
    spread.zero_grad()
    assert all(p.grad is None for p in [*spread.local.values(), *spread.network.parameters()])

    if spread.sharded:  # compiled block by block
        torch.compile = functools.partial(torch.compile, backend="eager")
        spread = Spread(network_of(ODD), Compute(parallel="fsdp", compile=True), CPU)
        _, norm = train_a_step(spread, slice(2 * rank, 2 * rank + 2))
        torch.testing.assert_close(norm, wanted["norm"])
        blocks = [block for unet in spread.network.unets for block in unet.resolution_blocks]
        assert not counters["graph_break"]
        assert counters["stats"]["unique_graphs"] == len(blocks)  # every one of them, none left out
    dist.destroy_process_group()


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_take_the_step_of_one(parallel: str, tmp_path: Path) -> None:
    alone = Spread(network_of(ODD), Compute(), CPU)
    optimizer, norm = train_a_step(alone, slice(0, 4))
    moments = {name: optimizer.state[p]["exp_avg"] for name, p in alone.local.items()}
    weights = {name: p.detach() for name, p in alone.local.items()}
    torch.save({"norm": norm, "weights": weights, "moments": moments}, tmp_path / "alone.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two, (port, parallel, tmp_path), nprocs=2)


def test_where_padding_is_in_sight_a_loss_does_not_depend_on_the_split_of_the_batch() -> None:
    """The released models see their padding, so a caption must not be padded by whoever stands beside it."""
    model = MODELS["64x64-small"]
    captions = [torch.randn(count, 384, generator=torch.Generator().manual_seed(count)) for count in (3, 20)]
    images = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    losses = []
    for micro in (2, 1):
        job = Job(
            model=model,
            training=Training(nimg=2, batch_size=2),
            compute=Compute(max_batch_per_process=micro),
            sampling=Sampling(),
            train_data="",
            val_data="",
            text=None,
            device="cpu",
        )
        state, split = State(job, torch.device("cpu"), torch.float32), Split(job, 0, 1)
        with torch.no_grad():
            for i, parameter in enumerate(state.spread.network.parameters()):  # as made, any caption gives 0
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(i))
        gradients = Gradients(job, split, 1, state, None, torch.float32)
        total = torch.zeros(1)
        for places in split.places:
            states = [captions[place] for place in places]
            batch = Batch(places, images[places], [], torch.cat(states), tuple(map(len, states)))
            total += gradients(batch, places, last=places is split.places[-1])
        losses.append(total.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
