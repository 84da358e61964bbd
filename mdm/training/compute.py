"""How a stage is computed: device, number format, and one network over several processes (``Compute``'s switches).

FSDP2 is imported where it is used: it takes two seconds, which only those should wait who shard.

``Spread`` hides whether every process holds the whole network (DDP) or a part of it (FSDP2): optimizer, averages and
checkpoints work on this process's tensors, whole ones are put together on rank 0 where they are written.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mdm.config import Device
from mdm.network.nested import NestedUNet
from mdm.network.unet import ResolutionBlock
from mdm.stage import Compute, Precision

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPE_NAMES: dict[torch.dtype, Precision] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
RECOMPILE_LIMIT = 8  # shapes of a block that are compiled for, as torch's own limit is for one piece of code


def pick_device(device: Device, per_gpu: int = 1) -> torch.device:
    """``auto``: the process's GPU if there is one (CUDA's, or Apple's by MPS), else the CPU. ``per_gpu``: so many
    processes share each of CUDA's.

    Raises ValueError where a GPU is asked for and there is none.
    """
    if device == "auto":
        device = gpu_kind() or "cpu"
    if device != "cpu" and not _is_there(device):
        raise ValueError(f"job.device is {device}, but torch finds no GPU of that kind")
    if device != "cuda":
        return torch.device(device)
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) // per_gpu)
    return torch.device("cuda", torch.cuda.current_device())


def gpu_kind() -> Device | None:
    """The kind of GPU that this machine has."""
    kinds: tuple[Device, ...] = ("cuda", "mps")
    return next((kind for kind in kinds if _is_there(kind)), None)


def _is_there(kind: Device) -> bool:
    return torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()


def pick_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The format of convolutions and matrix products; norms, softmax, loss, weights and averages stay in float32.

    ``auto``: bfloat16 on a GPU that has it, else float16 (with a scaled loss); float32 on the CPU. Raises ValueError
    where bfloat16 is asked of a GPU that would only emulate it.
    """
    if device.type != "cuda":
        return torch.float32 if precision == "auto" else DTYPES[precision]
    usable = torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto":
        return torch.bfloat16 if usable else torch.float16
    if precision == "bfloat16" and not usable:
        name = torch.cuda.get_device_name(device)
        raise ValueError(f"compute.precision is bfloat16, which {name} does not have: choose float16, float32 or auto")
    return DTYPES[precision]


def is_channels_last(compute: Compute, device: torch.device) -> bool:
    """How weights and images lie. CUDA's group normalisation takes contiguous tensors alone, so that uncompiled every
    block copies twice: an H200 trained MDM-S64 15 % slower so (benchmarks/results/2026-11-26-gpu-check.md)."""
    if compute.channels_last is None:
        return device.type != "cuda" or compute.compile
    return compute.channels_last


def set_determinism(deterministic: bool) -> None:
    """Bit-equal runs on a GPU, or the fastest kernels."""
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def place_of_process() -> tuple[int, int]:
    """Rank, and number of processes: as torchrun says, or alone."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Ranks:
    """The processes of a job, and what they tell each other over the CPU, so that no flag ever waits for the GPU."""

    def __init__(self, device: torch.device, hang_s: int) -> None:
        self.rank, self.world = place_of_process()
        self._control: Any = None
        if self.world > 1:
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(seconds=2 * hang_s))  # the stacks come first: watch.py
            # An evaluation on rank 0 may take its time.
            self._control = dist.new_group(backend="gloo", timeout=timedelta(days=7))

    def highest(self, flag: int) -> int:
        """The same on all of them."""
        if self._control is None:
            return flag
        flags = torch.tensor(flag)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._control)
        return int(flags)

    def share(self, value: Any) -> Any:
        """Rank 0's."""
        values = [value]
        if self._control is not None:
            dist.broadcast_object_list(values, src=0, group=self._control)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Everybody's, by rank."""
        values = [value] * self.world
        if self._control is not None:
            dist.all_gather_object(values, value, group=self._control)
        return values

    def barrier(self) -> None:
        if self._control is not None:
            dist.barrier(self._control)


class Spread:
    """A network over all processes. ``local``: name -> this process's part of each parameter, which it optimizes."""

    def __init__(self, network: NestedUNet, compute: Compute, device: torch.device) -> None:
        world = dist.get_world_size() if dist.is_initialized() else 1
        self.network, self.sharded = network, compute.parallel == "fsdp" and world > 1
        if is_channels_last(compute, device) and not self.sharded:  # FSDP2 takes contiguous weights only
            network.to(memory_format=torch.channels_last)
        for unet in network.unets:
            for block in unet.resolution_blocks:
                block.recompute = unet.level.resolution in compute.recompute
        blocks = [block for unet in network.unets for block in unet.resolution_blocks]
        if compute.compile:
            _compile(network, blocks if self.sharded else [])
        self.model: nn.Module = network
        if self.sharded:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(device.type, (world,))
            for block in blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(network, mesh=mesh)
        self._parameters = dict(network.named_parameters())
        self.local: dict[str, nn.Parameter] = self._parameters
        if self.sharded:
            self.local = {name: nn.Parameter(_part(p)) for name, p in self._parameters.items()}
        elif world > 1:
            self.model = DistributedDataParallel(network, gradient_as_bucket_view=True)

    @contextlib.contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Around a micro-batch: gradients are summed over the processes after the last one only."""
        if self.sharded:
            self.network.set_requires_gradient_sync(last)  # type: ignore[operator]
            yield
        elif isinstance(self.model, DistributedDataParallel) and not last:
            with self.model.no_sync():
                yield
        else:
            yield

    def collect_gradients(self) -> None:
        """After the backward pass: ``local`` holds this process's part of the gradient."""
        if self.sharded:
            for name, parameter in self._parameters.items():
                self.local[name].grad = None if parameter.grad is None else _part(parameter.grad)

    def gradient_norm(self) -> Tensor:
        """Norm of the whole gradient, on the device."""
        norm = nn.utils.get_total_norm([p.grad for p in self.local.values() if p.grad is not None])
        if not self.sharded:
            return norm
        squared = norm.square()
        dist.all_reduce(squared)
        return squared.sqrt()

    def zero_grad(self) -> None:
        for parameter in [*self._parameters.values(), *self.local.values()]:
            parameter.grad = None

    @torch.no_grad()
    def load(self, whole: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
        """Copy whole tensors into this process's parts of them."""
        for name, part in into.items():
            part.copy_(self.part_of(name, whole[name]))

    def part_of(self, name: str, whole: Tensor) -> Tensor:
        """This process's part of a whole tensor that belongs to a parameter (one without dimensions is shared)."""
        like: Any = self._parameters[name]
        if not self.sharded or whole.shape != like.shape:
            return whole
        from torch.distributed.tensor import distribute_tensor

        whole = whole.to(like.device)
        return _part(distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None))

    def whole(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole copies on the CPU of tensors that are spread as the parameters are; every process must call it.

        Only rank 0 keeps them where they had to be put together. They share no memory with the parts.
        """
        keep = not self.sharded or dist.get_rank() == 0
        tensors = {}
        for name, part in parts.items():
            like: Any = self._parameters[name]
            if self.sharded and part.dim():
                from torch.distributed.tensor import DTensor

                spread = DTensor.from_local(
                    part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
                )
                part = spread.full_tensor()
            if keep:
                tensors[name] = part.detach().to("cpu", copy=True)
        return tensors


def _compile(network: NestedUNet, blocks: list[ResolutionBlock]) -> None:
    """The whole network as one graph; under FSDP2, which gathers weights between blocks, each of these for itself."""
    if not blocks:
        network.compile()
        return
    # All blocks share one piece of code, and torch gives up on code that it had to compile more than 8 times.
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILE_LIMIT * len(blocks))
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, dynamo.recompile_limit)
    for block in blocks:
        block.forward = torch.compile(block.forward)  # type: ignore[method-assign]


def _part(tensor: Any) -> Tensor:
    return tensor.to_local().detach()
