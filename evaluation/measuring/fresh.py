"""The fast path: images that are drawn when their features are asked for, and never become files."""

import functools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.generate import ImageJob, Painter, batches
from evaluation.images import preparation
from evaluation.images.captions import Line, Prompt, lines_of
from mdm.data.ranges import to_uint8
from mdm.files import load_as, sha256
from mdm.structure import digest, to_dict


@dataclass(frozen=True)
class Fresh:
    """What generate.py would draw as the first set of a job, at one resolution, in the order of its numbers.

    The batches are generate.py's own and PNG loses nothing, so the features are those of its files, to the bit.
    """

    folder: str  # of generate.json
    px: int
    numbers: tuple[int, ...]
    inputs: str  # digest of what decides the images

    @classmethod
    def open(cls, folder: Path, asked: preparation.Preparation, prompts: Sequence[Prompt]) -> "Fresh":
        """Of a folder that ``prepare`` made. Raises ValueError where the model has no images of the size that is
        measured."""
        job = load_as(ImageJob, folder / "generate.json")
        images, resolutions = job.sets[0], job.model.resolutions
        px = preparation.ADM_PX if asked == "adm centre crop 256" else resolutions[-1]
        if px not in resolutions:
            raise ValueError(f"{images.weights}: images of {px} px are measured, the model has {[*resolutions]}")
        lines = lines_of(folder / images.name, prompts)
        encoder = None if job.text is None else job.text.encoder_digest
        weights = sha256(Path(images.weights) / "model.safetensors")
        decides = [weights, to_dict(images.sampling), encoder, job.negative_prompt, to_dict(lines)]
        return cls(str(folder), px, tuple(line.index for line in lines), digest(decides))

    @functools.cached_property
    def _job(self) -> ImageJob:
        return load_as(ImageJob, Path(self.folder) / "generate.json")

    @functools.cached_property
    def _batches(self) -> list[list[Line]]:
        images = self._job.sets[0]
        return batches(Path(self.folder) / images.name, images.sampling.batch_size)

    @property
    def lines(self) -> list[Line]:
        known = {line.index: line for batch in self._batches for line in batch}
        return [known[number] for number in self.numbers]

    @functools.cached_property
    def _painter(self) -> Painter:
        return Painter(self._job, self.lines)

    @property
    def identity(self) -> dict[str, Any]:
        return {"drawn by": self.inputs}

    @property
    def data_folders(self) -> Collection[Path]:
        return {Path(self._job.data).parent} if self._job.data else ()

    def __len__(self) -> int:
        return len(self.numbers)

    def batches(self, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        """Raises ValueError where samples were removed meanwhile, or are about to be."""
        wanted = set(self.numbers[start:stop])
        for batch in self._batches:
            if not wanted & {line.index for line in batch}:
                continue
            lines = self._painter.known(batch)
            if lacking := wanted & ({line.index for line in batch} - {line.index for line in lines}):
                what = f"the sample of image {min(lacking)} was removed meanwhile"
                raise ValueError(f"{self._job.data}: {what}: the same command begins anew")
            (drawn,) = (x for x in self._painter.draw(self._job.sets[0], lines) if x.shape[-1] == self.px)
            for line, image in zip(lines, to_uint8(drawn).numpy(), strict=True):
                if line.index in wanted:
                    yield image[None]
