"""What is measured, from disk: real images with their captions, and the images that were drawn, by their keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.images.captions import Line, held_out_prompts, lines_of, read_lines, unique
from evaluation.images.image_folder import ImageFolder
from evaluation.measuring.heads import pool_tokens
from evaluation.results import NOISE, SAMPLES, UNTRAINED
from mdm.data.order import hash64
from mdm.data.ranges import average, to_uint8
from mdm.data.shards import Shards
from mdm.data.text import TextEncoder, caption_states

FOLDERS = {SAMPLES: "samples", UNTRAINED: "untrained"}  # below the image folder


@dataclass(frozen=True)
class Real:
    """Captioned images of a split, uint8 [N, 3, H, H], with text features [N, D]; [N, 0] without encoder."""

    images: NDArray[np.uint8]
    text: NDArray[np.float32]


def load_real(shards: Shards, encoder: TextEncoder | None, indices: Sequence[int]) -> Real:
    """These samples of a split, at the size that ``shards`` was opened for."""
    pooled = np.zeros((len(indices), 0), np.float32)
    if shards.states is not None or encoder is not None:
        tokens = [states.numpy() for states in caption_states(shards, indices, encoder)[0]]
        pooled = pool_tokens(np.concatenate(tokens), np.cumsum([0] + [len(t) for t in tokens]))
    return Real(load_pictures(shards, indices), pooled)


def load_pictures(shards: Shards, indices: Sequence[int]) -> NDArray[np.uint8]:
    """Their pictures alone, uint8 [N, 3, H, H]."""
    pictures = (shards[i].image for i in indices)
    return np.stack([average(picture, shards.px or picture.shape[-1]).numpy() for picture in pictures])


def places(held_out: Shards, lines: Sequence[Line]) -> list[int]:
    """The numbers in a split of the samples whose captions were asked for."""
    there = held_out.present()
    of_key = unique([held_out.key(i) for i in there], str(held_out.folder))
    return [there[of_key[line.key]] for line in lines]


def measured_lines(images: Path, held_out: Shards, num_samples: int, labelled: bool) -> list[Line]:
    """The samples that are measured: those of the first held-out captions that are still there.

    Raises ValueError naming a caption that has no image.
    """
    prompts = held_out_prompts(held_out, num_samples, labelled)
    lines = lines_of(images / "samples", prompts)
    lacking = {prompt.key for prompt in prompts} - {line.key for line in lines}
    if lacking:
        raise ValueError(
            f"{images / 'samples'}: no image of {min(lacking)} and {len(lacking) - 1} more held-out captions: the "
            "run's command (`mdm run`) draws them"
        )
    return lines


def load_drawn(images: Path, px: int, lines: list[Line], seed: int) -> dict[str, NDArray[np.uint8]]:
    """The images of these lines, uint8 [N, 3, px, px] each: samples, the untrained model's, and noise."""
    numbers = [line.index for line in lines]
    folders = {what: ImageFolder(images / folder) for what, folder in FOLDERS.items()}
    for folder in folders.values():
        folder.refuse_strays({line.index for line in read_lines(folder.folder)})
    drawn = {what: folder.load(numbers, px) for what, folder in folders.items()}
    return {**drawn, NOISE: noise_images(max(line.index for line in lines) + 1, px, seed)[[x.index for x in lines]]}


def sample_px(images: Path) -> int:
    """The samples' resolution: the highest that they were kept at."""
    return max(ImageFolder(images / "samples").resolutions)


def noise_images(count: int, px: int, seed: int) -> NDArray[np.uint8]:
    """Gaussian noise as images, uint8 [N, 3, H, H]: what a sampler starts from."""
    generator = torch.Generator().manual_seed(hash64(seed, "noise images"))
    return to_uint8(torch.randn(count, 3, px, px, generator=generator)).numpy()
