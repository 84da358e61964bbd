"""Training data: position -> sample. webdataset tars read through the index beside each (no state, exact resume).

The global position counts images seen. Sample number ``position`` of a run is ``permutation(epoch)[position mod N]``
with a keyed permutation, so that order is a function of (seed, position) alone: of no worker, rank or restart.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mdm.embeddings import StoredStates, TextSource


def hash64(*parts: int | str) -> int:
    """A 63-bit integer from a tuple: the seed of everything random that belongs to it."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def permute(position: int, size: int, key: int) -> int:
    """Where a keyed bijection of 0 … size-1 sends a position (Feistel rounds, walked until the result fits)."""
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    while True:
        left, right = position >> half_bits, position & mask
        for turn in range(4):
            mixed = (right * 0x9E3779B97F4A7C15 + key + turn * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
            mixed = ((mixed ^ (mixed >> 31)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ ((mixed >> 29) & mask)
        position = left << half_bits | right
        if position < size:
            return position


@dataclass(frozen=True)
class Sample:
    """One captioned image: uint8 [3, H, H], the encoder's states float32 [L, D] ([0, 0] where none are stored)."""

    key: str
    caption: str
    image: Tensor
    tokens: Tensor


class Shards:
    """Random access to a dataset folder (manifest.json, tars, indexes) and its stored text embeddings, if any."""

    def __init__(self, folder: Path, text: TextSource | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = _manifest(self.folder)
        self.states: StoredStates | None = None
        if text is not None and text.way != "online":
            self.states = StoredStates(self.folder, self.manifest, text)
        counts = [shard["samples"] for shard in self.manifest["shards"]]
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.files: dict[int, int] = {}  # opened lazily, so that worker processes open their own

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "files": {}}

    def __getitem__(self, index: int) -> Sample:
        shard, place = self._locate(index)
        image, text, meta = (self._read(shard, *span) for span in self._spans(shard)[place])
        with Image.open(io.BytesIO(image)) as picture:
            pixels = torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1)
        return Sample(json.loads(meta)["key"], text.decode(), pixels, self.tokens(index))

    def caption(self, index: int) -> str:
        shard, place = self._locate(index)
        return self._read(shard, *self._spans(shard)[place][1]).decode()

    def tokens(self, index: int) -> Tensor:
        """Stored encoder states [L, D] of a caption; [0, 0] where none are stored."""
        return torch.empty(0, 0) if self.states is None else self.states(*self._locate(index))

    def null_tokens(self) -> Tensor:
        """Stored encoder states [L, D] of the empty caption; [0, 0] where none are stored."""
        return torch.empty(0, 0) if self.states is None else self.states.null()

    def _locate(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return shard, index - int(self.starts[shard])

    def _read(self, shard: int, offset: int, length: int) -> bytes:
        if shard not in self.files:
            path = self.folder / self.manifest["shards"][shard]["file"]
            self.files[shard] = os.open(path, os.O_RDONLY)
        data = os.pread(self.files[shard], length, offset)
        if len(data) != length:
            raise ValueError(f"{self.folder / self.manifest['shards'][shard]['file']} is truncated: make it again")
        return data

    @lru_cache(maxsize=256)  # noqa: B019 (one Shards lives as long as its process)
    def _spans(self, shard: int) -> np.ndarray:
        path = (self.folder / self.manifest["shards"][shard]["file"]).with_suffix(".idx.npy")
        return np.load(path)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "manifest.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder} is no finished dataset: manifest.json is missing") from None


@dataclass(frozen=True)
class Batch:
    """Stacked samples: images uint8 [B, 3, H, H], caption states [B, L, D] and mask [B, L] (online: L = 0, as yet)."""

    positions: list[int]
    images: Tensor
    text: Tensor
    text_mask: Tensor
    captions: list[str]  # "" where it was dropped


class TrainingSet(Dataset[tuple[int, Tensor, Tensor, str]]):
    """position -> (position, image, caption states, caption); flips and drops are drawn from (seed, position)."""

    def __init__(self, shards: Shards, seed: int, caption_dropout: float = 0.0, flip: bool = False) -> None:
        self.shards, self.seed, self.flip = shards, seed, flip
        self.caption_dropout = caption_dropout
        self.null = shards.null_tokens()

    def index(self, position: int) -> int:
        """Which sample stands at a global position."""
        epoch, place = divmod(position, len(self.shards))
        return permute(place, len(self.shards), hash64(self.seed, "order", epoch))

    def __getitem__(self, position: int) -> tuple[int, Tensor, Tensor, str]:
        sample = self.shards[self.index(position)]
        draws = np.random.default_rng(hash64(self.seed, "augment", position)).random(2)
        image = sample.image.flip(2) if self.flip and draws[0] < 0.5 else sample.image
        if draws[1] < self.caption_dropout:
            return position, image, self.null, ""
        return position, image, sample.tokens, sample.caption


def collate(samples: Sequence[tuple[int, Tensor, Tensor, str]]) -> Batch:
    positions, images, tokens, captions = zip(*samples, strict=True)
    text, mask = pad_tokens(tokens)
    return Batch(list(positions), torch.stack(images), text, mask, list(captions))


def pad_tokens(tokens: Sequence[Tensor], length: int = 0) -> tuple[Tensor, Tensor]:
    """Ragged caption states [L_i, D] -> [B, L, D] with zeros behind, mask [B, L]; L is the longest, or more."""
    text = torch.nn.utils.rnn.pad_sequence(list(tokens), batch_first=True)
    text = torch.nn.functional.pad(text, (0, 0, 0, max(0, length - text.shape[1])))
    lengths = torch.tensor([len(t) for t in tokens])
    return text, (torch.arange(text.shape[1]) < lengths[:, None]).float()


def batches(data: TrainingSet, groups: Iterable[list[int]], workers: int) -> Iterator[Batch]:
    """Batches for given groups of positions, in order, decoded ahead by worker processes (0: in this one)."""
    yield from DataLoader(data, batch_sampler=groups, collate_fn=collate, num_workers=workers)
