"""Watching a training: the loss on fixed held-out images, noise and times, and a grid of samples."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mdm.config import LossSpace, Model, Sampling
from mdm.data import Shards, hash64, stack_conditions
from mdm.diffusion import Process
from mdm.draw import draw
from mdm.nested import NestedUNet
from mdm.text import TextEncoder, known_conditions

NUM_IMAGES = 64  # of the held-out loss
NUM_SAMPLES = 8  # of the grid


class HeldOut:
    """Fixed inputs, so that two evaluations differ by the weights alone."""

    def __init__(
        self,
        shards: Shards,
        encoder: TextEncoder | None,  # where no embeddings are stored; asked once, here
        model: Model,
        loss: LossSpace,
        sampling: Sampling,
        seed: int,
        device: torch.device,
    ) -> None:
        self.process, self.loss, self.sampling, self.device = Process.of(model), loss, sampling, device
        self.resolutions = model.resolutions
        count = min(NUM_IMAGES, len(shards))
        indices = [i * len(shards) // count for i in range(count)]
        samples = [shards[i] for i in indices]
        images = torch.stack([s.image for s in samples]).float() / 127.5 - 1
        self.xs = [x.to(device) for x in self.process.downsample(images)]
        generator = torch.Generator().manual_seed(hash64(seed, "held out"))
        self.noise = [n.to(device) for n in self.process.draw_noise(count, generator)]
        self.k = (
            torch.linspace(1, self.process.num_steps, count).round().long()[torch.randperm(count, generator=generator)]
        )
        self.k = self.k.to(device)
        conditions, self.null = known_conditions(shards, indices, model, encoder)
        self.condition = {name: value.to(device) for name, value in stack_conditions(conditions).items()}
        chosen = range(0, count, max(1, count // NUM_SAMPLES))
        self.prompts = [conditions[i] for i in chosen][:NUM_SAMPLES]
        self.captions = [samples[i].caption for i in chosen][:NUM_SAMPLES]
        self.seeds = [hash64(seed, "grid", i) for i in range(len(self.prompts))]

    @torch.no_grad()
    def losses(self, network: NestedUNet) -> dict[str, float]:
        """Mean loss per level."""
        per_sample = self.process.loss(
            lambda zs, t: network(zs, t, **self.condition), self.xs, self.noise, self.k, self.loss
        )
        return {f"val/loss_{px}": level.mean().item() for px, level in zip(self.resolutions, per_sample, strict=True)}

    def grid(self, network: NestedUNet, path: Path, on_step: Callable[[], None] | None = None) -> None:
        """Samples of fixed prompts and seeds; a row per level, every picture at the size of the highest one."""
        step = (lambda *_: on_step()) if on_step else None
        xs = draw(network, self.prompts, self.null, self.seeds, self.sampling, self.device, step)
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".tmp")
        Image.fromarray(tile(xs)).save(temporary, format="png")
        temporary.replace(path)


def to_uint8(x: Tensor) -> Tensor:
    """Pixels in [-1, 1] -> uint8, rounded."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def tile(xs: list[Tensor]):
    """Levels of [B, 3, H_r, H_r] -> one uint8 picture [R * H, B * H, 3], a row per level."""
    px = xs[-1].shape[-1]
    rows = [
        torch.cat(list(to_uint8(x).repeat_interleave(px // x.shape[-1], 2).repeat_interleave(px // x.shape[-1], 3)), 2)
        for x in xs
    ]
    return torch.cat(rows, 1).permute(1, 2, 0).numpy()
