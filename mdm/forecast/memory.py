"""How much memory a training step needs on one device: an estimate, measured on tensors that have no content.

The forward pass runs once on fake tensors (shape, type and layout, no memory), and what autograd keeps for the backward
pass is added up, every storage once. On a CPU in float32 the real growth of small models' steps was 1.01 … 1.04 of it.
In half precision norms still take and give float32, so it saves little unless torch.compile fuses them, which is not
reckoned with. Not in it: the allocator's fragmentation, workspaces of cuDNN, the CUDA context, a frozen text encoder.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from mdm.config import Model
from mdm.network.blocks import ResBlock
from mdm.network.costs import empty_condition, parameters, top_share
from mdm.network.mixed import level_sizes
from mdm.network.nested import NestedUNet
from mdm.stage import Compute, Precision, Stage
from mdm.training.ema import LENGTHS

FLOAT = 4  # bytes
BATCH_TENSORS = 4  # of every level, float32: image, noise, z_t, error


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the end of a forward pass, when most is held."""

    weights: int
    gradients: int
    moments: int  # Adam's two
    ema: int
    averages: int  # the two power-function averages, where snapshots are kept
    activations: int  # kept for the backward pass, with half-precision copies of the weights and the batch itself

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.ema + self.averages + self.activations


def step_memory(stage: Stage, processes: int, micro_batch: int, precision: Precision) -> Memory:
    """Memory of one of ``processes`` devices with ``micro_batch`` images at a time; ``precision`` not ``auto``.

    Under fsdp each holds its share of everything per parameter, and at worst all gathered weights besides.
    """
    whole = parameters(stage.model) * FLOAT
    share = math.ceil(whole / processes) if stage.compute.parallel == "fsdp" else whole
    # Of any m images in a row, so many at most carry the top level.
    top = max(1, math.ceil(micro_batch * top_share(stage.model, stage.training) - 1e-9))
    return Memory(
        weights=share + (whole if stage.compute.parallel == "fsdp" else 0),
        gradients=share,
        moments=2 * share,
        ema=share,
        averages=len(LENGTHS) * share if stage.cadence.average_every_nimg else 0,
        activations=activations(stage.model, micro_batch, top, stage.compute, precision),
    )


def activations(model: Model, count: int, top: int, compute: Compute, precision: Precision) -> int:
    """Bytes that one forward pass of ``count`` images, ``top`` of them with the top level, keeps for the backward pass.

    Of a residual block that is computed again only the input is kept; the inside of the largest such block comes back
    once at a time.
    """
    sizes = level_sizes(len(model.levels), count, top)
    layout = torch.contiguous_format if compute.channels_last is False else torch.channels_last
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision in ("bfloat16", "float16"))  # as wide as float16
    kept = _Kept()
    insides: list[_Kept] = []
    with FakeTensorMode():
        network = NestedUNet(model)
        kept.ignore(network.parameters())
        for px, level in zip(model.resolutions, network.levels, strict=True):
            if px in compute.recompute:
                for block in (m for m in level.modules() if isinstance(m, ResBlock)):
                    block.forward = _recomputed(block.forward, kept, insides)  # type: ignore[method-assign]
        zs = [torch.empty(n, 3, px, px) for n, px in zip(sizes, model.resolutions, strict=True)]
        zs = [z.to(memory_format=layout) for z in zs]
        with kept.watching(), half:
            outputs = network(zs, torch.empty(count), **empty_condition(model, count))
        batch = BATCH_TENSORS * sum(v.numel() for v in outputs) * FLOAT
        return kept.bytes + max((inside.bytes for inside in insides), default=0) + batch


class _Kept:
    """The storages that autograd keeps, each counted once."""

    def __init__(self) -> None:
        self.storages: dict[int, Any] = {}  # held, so that no address is used twice
        self.ignored: set[int] = set()

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.storages.values())

    def ignore(self, tensors: Iterator[Any]) -> None:
        """Parameters are counted elsewhere."""
        self.ignored |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.ignored:
            self.storages[storage._cdata] = storage
        return tensor

    def watching(self) -> contextlib.AbstractContextManager[Any]:
        return saved_tensors_hooks(self.add, lambda tensor: tensor)


def _recomputed(forward: Callable[..., Tensor], kept: _Kept, insides: list[_Kept]) -> Callable[..., Tensor]:
    """A block's forward pass as checkpointing runs it: its input is kept, what it keeps inside counts for itself."""

    def run(x: Tensor, emb: Tensor) -> Tensor:
        kept.add(x), kept.add(emb)
        inside = _Kept()
        inside.ignored = kept.ignored | set(kept.storages)
        insides.append(inside)
        with inside.watching():
            return forward(x, emb)

    return run
