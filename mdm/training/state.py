"""What a training changes, over all processes: network, averages, optimizer; whole copies of them out and in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from mdm.data.order import hash64
from mdm.network.nested import NestedUNet
from mdm.network.weights import load_weights
from mdm.run.job import Job
from mdm.training.compute import Spread
from mdm.training.ema import EMA, PowerAverages


class State:
    """This process's part of everything that a step changes and a checkpoint keeps."""

    def __init__(self, job: Job, device: torch.device, dtype: torch.dtype) -> None:
        training, compute = job.training, job.compute
        if compute.parallel == "fsdp" and dtype == torch.float16:
            raise ValueError("compute.precision float16 scales the loss, which needs compute.parallel ddp")
        self.model, self.training, self.fused, self.device = job.model, training, compute.fused_adam, device
        torch.manual_seed(hash64(job.seed, "init"))
        self.spread = Spread(NestedUNet(job.model).to(device), compute, device)
        self.ema = EMA(self.spread.local)
        self.averages = PowerAverages(self.spread.local) if job.cadence.average_every_nimg else None
        self.optimizer = torch.optim.Adam(
            self.spread.local.values(),
            lr=training.lr,
            betas=(training.beta1, training.beta2),
            eps=training.adam_eps,
            weight_decay=training.weight_decay,
            fused=compute.fused_adam,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def step(self, losses: Tensor, nimg: int) -> tuple[Tensor, Tensor]:
        """Clip, Adam, averages, for the step that begins at ``nimg`` images -> gradient norm; 1, or 0 where skipped.

        A step whose ``losses`` [R] or gradient are not finite changes nothing, on all ranks alike, and unread.
        """
        training, spread = self.training, self.spread
        for group in self.optimizer.param_groups:
            group["lr"] = training.lr_at(nimg)
        spread.collect_gradients()
        self.scaler.unscale_(self.optimizer)
        grad_norm = spread.gradient_norm()
        bad = (~(losses.sum().isfinite() & grad_norm.isfinite())).float()
        if dist.is_initialized():
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        nn.utils.clip_grads_with_norm_(spread.local.values(), training.grad_clip, grad_norm)
        if self.fused:
            self.optimizer.found_inf, self.optimizer.grad_scale = bad, None  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not bad.item():
            self.optimizer.step()
        self.scaler.update()
        spread.zero_grad()
        nimg += training.batch_size
        keep, weights = 1 - bad, list(spread.local.values())
        self.ema.update(weights, training.ema_decay_at(nimg), keep)
        if self.averages is not None:
            self.averages.update(weights, nimg, training.batch_size, keep)
        return grad_norm, keep

    def start_from(self, folder: Path) -> None:
        """Begin with another stage's weights, grown (``progressive.start_folder``)."""
        self._load_weights(folder / "raw", self.spread.local)
        self._load_weights(folder / "ema", self.ema.weights)
        if (folder / "optimizer.safetensors").exists():
            self._load_moments(load_file(folder / "optimizer.safetensors"))
        if self.averages is not None:
            self.averages = PowerAverages(self.spread.local)

    def load(self, checkpoint: Path, scaler: Mapping[str, Any]) -> None:
        """Go on from a checkpoint. Raises ValueError where it is of another model."""
        self._load_weights(checkpoint / "raw", self.spread.local)
        self._load_weights(checkpoint / "ema", self.ema.weights)
        self._load_moments(load_file(checkpoint / "state" / "optimizer.safetensors"))
        if self.averages is not None:
            saved = load_file(checkpoint / "state" / "averages.safetensors")
            for length, parts in self.averages.weights.items():
                self.spread.load({name: saved[f"{length:.3f}/{name}"] for name in parts}, parts)
        if self.scaler.is_enabled() and scaler:
            self.scaler.load_state_dict(dict(scaler))

    def whole(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Whole copies on the CPU, on rank 0: weights, EMA, the files of ``state/``. Every process must call it."""
        spread = self.spread
        moments: dict[str, Tensor] = {}
        for kind in ("step", "exp_avg", "exp_avg_sq"):
            held = {name: self.optimizer.state[p][kind] for name, p in spread.local.items() if self.optimizer.state[p]}
            moments |= {f"{kind}/{name}": tensor for name, tensor in spread.whole(held).items()}
        files = {"optimizer": moments}
        if self.averages is not None:
            averages = self.whole_averages().items()
            files["averages"] = {f"{length:.3f}/{name}": t for length, named in averages for name, t in named.items()}
        return spread.whole(spread.local), spread.whole(self.ema.weights), files

    def whole_averages(self) -> dict[float, dict[str, Tensor]]:
        """sigma_rel -> name -> whole average."""
        assert self.averages is not None
        return {length: self.spread.whole(parts) for length, parts in self.averages.weights.items()}

    def _load_weights(self, folder: Path, into: dict[str, Any]) -> None:
        model, weights = load_weights(folder)
        if model != self.model:
            raise ValueError(f"{folder} holds another model ({model.resolutions} px) than this job trains")
        self.spread.load(weights, into)

    def _load_moments(self, moments: dict[str, Tensor]) -> None:
        """Adam's state of the parameters that it is there for, laid out in memory as the fused optimizer assumes."""
        self.optimizer.state.clear()
        for key, whole in moments.items():
            kind, name = key.split("/")
            parameter = self.spread.local.get(name)
            if parameter is None:
                continue
            part = self.spread.part_of(name, whole).to(self.device)
            laid_out = part if part.shape != parameter.shape else torch.empty_like(parameter).detach().copy_(part)
            self.optimizer.state[parameter][kind] = laid_out
