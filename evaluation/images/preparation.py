"""Pictures on their way to the networks, one at a time: drawn ones, the reference's as a protocol prepares them, noise.

Each source says by ``identity`` what decides its pictures, and gives those of any numbers, uint8 [1, 3, H, H]. Its
fields are JSON values, so that other processes open the same (extract.py).
"""

import functools
import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from evaluation.images.captions import Line, Prompt, lines_of, read_lines, unique
from evaluation.images.image_folder import ImageFolder
from evaluation.protocols import Preparation
from mdm.data.order import hash64
from mdm.data.ranges import average, to_uint8
from mdm.data.shards import Shards
from mdm.structure import digest

ADM_PX = 256


def adm_centre_crop(rgb: NDArray[np.uint8], px: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] -> [px, px, 3] as ADM prepares pictures (Dhariwal & Nichol 2021, their ``center_crop_arr``):
    halved by Pillow's box filter while the shorter side has twice px or more, then bicubic, then the middle."""
    picture = Image.fromarray(rgb)
    while min(picture.size) >= 2 * px:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = px / min(picture.size)
    size = round(picture.width * scale), round(picture.height * scale)
    resized = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
    top, left = (resized.shape[0] - px) // 2, (resized.shape[1] - px) // 2
    return resized[top : top + px, left : left + px]


class Pictures(Protocol):
    """What features are made of."""

    @property
    def identity(self) -> dict[str, Any]:
        """JSON values: two sources of equal ones give the same pictures."""

    @property
    def data_folders(self) -> Collection[Path]:
        """Data sets that are read for them."""

    def __len__(self) -> int: ...

    def batches(self, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        """Those of numbers from ``start`` up to ``stop``, one by one."""


@dataclass(frozen=True)
class Drawn:
    """The images of a folder that generate.py drew, at one of their resolutions, in the order of their numbers."""

    images: str  # the folder
    px: int
    numbers: tuple[int, ...]
    content: str  # sha256 of all files

    @classmethod
    def open(cls, images: Path, preparation: Preparation, prompts: Sequence[Prompt] | None = None) -> "Drawn":
        """Those of ``prompts``, or all. ``as drawn``: their highest resolution; else the one that ADM's crops have.

        Reads every file once. Raises ValueError, one line, naming a file that is missing, cut off, of another size or
        no picture, or one that captions.jsonl does not know.
        """
        known = read_lines(images)
        lines = sorted(known, key=lambda line: line.index) if prompts is None else lines_of(images, prompts)
        if not lines:
            raise ValueError(f"{images}: no captions.jsonl that says which image is of which prompt")
        unique([line.key for line in lines], str(images / "captions.jsonl"))
        folder = ImageFolder(images)
        px = ADM_PX if preparation == "adm centre crop 256" else max(folder.resolutions, default=0)
        if px not in folder.resolutions:
            there = folder.resolutions or "none"
            raise ValueError(f"{images}: images of {px or 'any'} px are measured, there are {there}")
        if lacking := [line.index for line in lines if not folder.has(line.index, [px])]:
            more = f"is missing, one of {len(lacking)} that are, of {len(lines)}"
            raise ValueError(f"{folder.where(lacking[0], px)} {more}. The command that drew the others draws them")
        folder.refuse_strays({line.index for line in known})
        content = hashlib.sha256()
        for line in lines:
            content.update(hashlib.sha256(folder.read(line.index, px)).digest())
        return cls(str(images), px, tuple(line.index for line in lines), content.hexdigest())

    @functools.cached_property
    def lines(self) -> list[Line]:
        known = {line.index: line for line in read_lines(Path(self.images))}
        return [known[number] for number in self.numbers]

    @functools.cached_property
    def _folder(self) -> ImageFolder:
        return ImageFolder(Path(self.images))

    @property
    def identity(self) -> dict[str, Any]:
        return {"images": self.content}

    @property
    def data_folders(self) -> Collection[Path]:
        return ()

    def __len__(self) -> int:
        return len(self.numbers)

    def batches(self, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        return (self._folder.load([number], self.px) for number in self.numbers[start:stop])


@dataclass(frozen=True)
class Reference:
    """Real pictures of one split or several: all that were not removed, or those of ``keys``, in their order."""

    splits: tuple[str, ...]  # their folders
    preparation: Preparation
    px: int
    data: tuple[dict[str, Any], ...]  # each split's ``revision_of``
    keys: tuple[str, ...] = ()

    @classmethod
    def open(cls, splits: Sequence[Shards], preparation: Preparation, px: int, keys: Sequence[str] = ()) -> "Reference":
        """Raises ValueError for a split without one of the keys, or whose pictures cannot be prepared so: ADM's crops
        are made of originals."""
        folders, data = tuple(str(s.folder) for s in splits), tuple(s.revision for s in splits)
        reference = cls(folders, preparation, px, data, tuple(keys))
        len(reference)  # opens them
        return reference

    @functools.cached_property
    def _places(self) -> Sequence[tuple[Shards, int]]:
        """Raises ValueError as ``open``, and where a split has been exchanged since, or samples were removed."""
        adm = self.preparation == "adm centre crop 256"
        opened = [
            Shards(Path(folder), pinned=data["digest"], px=0 if adm else self.px, originals=adm)
            for folder, data in zip(self.splits, self.data, strict=True)
        ]
        for shards, data in zip(opened, self.data, strict=True):
            if shards.revision != data:
                raise ValueError(f"{shards.folder}: samples were removed meanwhile: the same command begins anew")
        places = [(shards, i) for shards in opened for i in shards.present()]
        if not self.keys:
            return places
        known = {shards.key(i): (shards, i) for shards, i in places}
        if lacking := set(self.keys) - known.keys():
            raise ValueError(f"{self.splits[0]}: no picture of {min(lacking)}, nor of {len(lacking) - 1} more keys")
        return [known[key] for key in self.keys]

    @property
    def identity(self) -> dict[str, Any]:
        pictures = digest(list(self.keys)) if self.keys else "all"
        return {"data": list(self.data), "pictures": pictures, "preparation": self.preparation, "px": self.px}

    @property
    def data_folders(self) -> Collection[Path]:
        return {Path(split).parent for split in self.splits}

    def __len__(self) -> int:
        return len(self._places)

    def batches(self, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        for shards, i in self._places[start:stop]:
            pixels = shards.read(i).pixels
            if self.preparation == "adm centre crop 256":
                yield adm_centre_crop(pixels, ADM_PX).transpose(2, 0, 1)[None]
            else:
                yield average(torch.from_numpy(pixels.transpose(2, 0, 1).copy()), self.px).numpy()[None]


@dataclass(frozen=True)
class Noise:
    """Gaussian noise as images: what a sampler starts from."""

    count: int
    px: int
    seed: int

    @property
    def identity(self) -> dict[str, Any]:
        return {"noise": [self.count, self.px, self.seed]}

    @property
    def data_folders(self) -> Collection[Path]:
        return ()

    def __len__(self) -> int:
        return self.count

    def batches(self, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        for i in range(start, stop):
            generator = torch.Generator().manual_seed(hash64(self.seed, "noise image", i))
            yield to_uint8(torch.randn(1, 3, self.px, self.px, generator=generator)).numpy()
