"""The global batch, cut into the micro-batches of all processes, and the gradients of one of these."""

import torch
from torch import Tensor

from mdm.config import padded_length
from mdm.data.batches import Batch
from mdm.data.order import hash64
from mdm.data.ranges import from_uint8
from mdm.data.text import TextEncoder
from mdm.diffusion.process import Process
from mdm.network.conditioning import padded
from mdm.network.mixed import carried_by, carriers_first, level_sizes
from mdm.run.job import Job
from mdm.training.compute import is_channels_last
from mdm.training.noise import noise, uniforms
from mdm.training.state import State


class Split:
    """``places`` of the global batch that each micro-batch of this process takes, those with the top level first.

    Which samples carry the ``top`` level (Sec. 4.1) depends on the place alone, so any number of processes trains on
    the same. Raises ValueError naming the field where the batch does not divide.
    """

    def __init__(self, job: Job, rank: int, world: int) -> None:
        training, compute = job.training, job.compute
        per_process = training.batch_size // world
        if per_process * world != training.batch_size:
            raise ValueError(f"training.batch_size {training.batch_size} does not divide by {world} processes")
        self.micro = min(per_process, compute.max_batch_per_process)
        if per_process % self.micro:
            raise ValueError(
                f"{per_process} images per process do not split into micro-batches of {self.micro}: change "
                "compute.max_batch_per_process"
            )
        mixed = len(job.model.levels) > 1
        self.top = {p for p in range(training.batch_size) if not mixed or training.carries_top(p)}
        starts = range(rank * per_process, (rank + 1) * per_process, self.micro)
        self.places = [carriers_first(range(s, s + self.micro), self.top) for s in starts]
        if not all(self.top.intersection(part) for part in self.places):
            raise ValueError(
                f"training.low_only {training.low_only:g} leaves a micro-batch of {self.micro} without the top level"
            )


class Gradients:
    """Loss and gradients of one micro-batch after the other."""

    def __init__(
        self, job: Job, split: Split, world: int, state: State, encoder: TextEncoder | None, dtype: torch.dtype
    ) -> None:
        self.job, self.split, self.world, self.state, self.encoder = job, split, world, state, encoder
        self.dtype, self.process = dtype, Process.of(job.model)

    @property
    def captions_cut(self) -> int | None:
        """By the online encoder since the start, if there is one."""
        return None if self.encoder is None else self.encoder.cut

    def __call__(self, batch: Batch, places: list[int], last: bool) -> Tensor:
        """Add the gradients -> the share of the global batch's loss (Eq. 3) per level [R], detached.

        ``last`` of the step: then the gradients are summed over the processes.
        """
        job, training, device = self.job, self.job.training, self.state.device
        top = self.split.top
        tops = sum(place in top for place in places)
        sizes = level_sizes(len(job.model.levels), len(places), tops)
        counts = level_sizes(len(job.model.levels), training.batch_size, len(top))
        pixels, condition = batch.on(device)
        images = from_uint8(pixels)
        if is_channels_last(job.compute, device):
            images = images.to(memory_format=torch.channels_last)
        xs = [x[:size] for x, size in zip(self.process.downsample(images), sizes, strict=True)]
        drawn = noise(job.seed, batch.positions, self.process.resolutions, device)
        first = batch.positions[0] - places[0]
        u = uniforms(job.seed, first, training.batch_size, places)  # float64, which Apple's GPUs do not have
        k = self.process.times(u).to(device, non_blocking=True)
        if self.encoder is not None:
            made = self.encoder.condition(list(batch.captions))
            condition = {name: value.to(device, non_blocking=True) for name, value in made.items()}
        condition = padded(condition, padded_length(job.model.text))
        if any(level.dropout for level in job.model.levels):
            torch.manual_seed(hash64(job.seed, "dropout", batch.positions[0]))
        with self.state.spread.accumulating(last):
            with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
                per_sample = self.process.loss(
                    lambda zs, t: self.state.spread.model(zs, t, **condition),
                    xs,
                    [carried_by(x, n) for x, n in zip(xs, drawn, strict=True)],
                    k,
                    training.loss,
                )
            shares = [level.sum() / count for level, count in zip(per_sample, counts, strict=True)]
            weights = training.level_weights or (1.0,) * len(shares)
            total = torch.stack([w * share for w, share in zip(weights, shares, strict=True)]).sum()
            self.state.scaler.scale(total * self.world).backward()  # the processes' gradients are averaged
        return torch.stack(shares).detach()
