"""Watching a training: the loss on fixed held-out images, noise and times, and a grid of samples."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from mdm.config import LossSpace, Model, Sampling, padded_length
from mdm.data.order import hash64
from mdm.data.ranges import from_uint8, tile
from mdm.data.shards import Shards
from mdm.data.text import TextEncoder, known_conditions
from mdm.diffusion.generate import generate
from mdm.diffusion.process import Process
from mdm.files import whole_file, write_json
from mdm.network.conditioning import stack_conditions
from mdm.network.nested import NestedUNet

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
        batch_size: int,
    ) -> None:
        self.batch_size = batch_size
        self.process, self.loss, self.sampling, self.device = Process.of(model), loss, sampling, device
        self.resolutions = model.resolutions
        readable, self.left_out = shards.readable(shards.spread(NUM_IMAGES))
        indices, samples = list(readable), list(readable.values())
        count = len(indices)
        if count == 0:
            raise ValueError(f"{shards.folder}: no held-out sample can be read: {self.left_out[0]}")
        images = from_uint8(torch.stack([s.image for s in samples]))
        self.xs = [x.to(device) for x in self.process.downsample(images)]
        generator = torch.Generator().manual_seed(hash64(seed, "held out"))
        # The times first: then all stages of a run measure a level with the same times and noise.
        times = torch.linspace(1, self.process.num_steps, count).round().long()
        self.k = times[torch.randperm(count, generator=generator)].to(device)
        self.noise = [n.to(device) for n in self.process.draw_noise(count, generator)]
        conditions, self.null = known_conditions(shards, indices, model, encoder)
        stacked = stack_conditions(conditions, padded_length(model.text))
        self.condition = {name: value.to(device) for name, value in stacked.items()}
        chosen = range(0, count, max(1, count // NUM_SAMPLES))
        self.prompts = [conditions[i] for i in chosen][:NUM_SAMPLES]
        self.captions = [samples[i].caption for i in chosen][:NUM_SAMPLES]
        self.seeds = [hash64(seed, "grid", i) for i in range(len(self.prompts))]

    @torch.no_grad()
    def losses(self, network: NestedUNet, on_step: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Mean loss per level, a batch at a time; ``on_step`` after each."""
        sums = torch.zeros(len(self.resolutions), device=self.device)
        for start in range(0, len(self.k), self.batch_size):
            part = slice(start, start + self.batch_size)
            condition = {name: value[part] for name, value in self.condition.items()}
            xs, noise = [x[part] for x in self.xs], [n[part] for n in self.noise]
            per_sample = self.process.loss(partial(network, **condition), xs, noise, self.k[part], self.loss)
            sums += torch.stack([level.sum() for level in per_sample])
            on_step()
        means = (sums / len(self.k)).tolist()
        return {f"val/loss_{px}": mean for px, mean in zip(self.resolutions, means, strict=True)}

    def grid(self, network: NestedUNet, path: Path, on_step: Callable[[], None] = lambda: None) -> None:
        """Samples of fixed prompts and seeds; a row per level, every picture at the size of the highest one.

        Their captions lie beside it, in captions.json.
        """
        xs = generate(network, self.prompts, self.null, self.seeds, self.sampling, self.device, lambda *_: on_step())
        path.parent.mkdir(exist_ok=True)
        write_json(path.with_name("captions.json"), self.captions)
        with whole_file(path) as file:
            Image.fromarray(tile(xs)).save(file, format="png")
