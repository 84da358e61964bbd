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

from mdm.config import Model
from mdm.embeddings import StoredStates, TextSource

Condition = Tensor | str | int  # a caption's states [L, D], a caption still to be encoded, a label


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
    """One captioned image, uint8 [3, H, H]; condition: stored states [L, D], the caption (online), or a label."""

    key: str
    caption: str
    image: Tensor
    condition: Condition | None


class Shards:
    """Random access to a dataset folder (manifest.json, tars, indexes) and its stored text embeddings, if any."""

    def __init__(self, folder: Path, text: TextSource | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = _manifest(self.folder)
        self.states: StoredStates | None = None
        self.online = text is not None and text.way == "online"
        if text is not None and not self.online:
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
        record, caption = json.loads(meta), text.decode()
        condition = caption if self.online else record.get("label") if self.states is None else self.tokens(index)
        return Sample(record["key"], caption, pixels, condition)

    def label(self, index: int) -> int:
        """The class of a sample. Raises ValueError where its metadata has none."""
        shard, place = self._locate(index)
        record = json.loads(self._read(shard, *self._spans(shard)[place][2]))
        if not isinstance(record.get("label"), int):
            raise ValueError(f"{self.folder}: {record['key']} has no label in its metadata")
        return record["label"]

    def caption(self, index: int) -> str:
        shard, place = self._locate(index)
        return self._read(shard, *self._spans(shard)[place][1]).decode()

    def tokens(self, index: int) -> Tensor:
        """Stored encoder states [L, D] of a caption."""
        return self._stored()(*self._locate(index))

    def null_tokens(self) -> Tensor:
        """Stored encoder states [L, D] of the empty caption."""
        return self._stored().null()

    def _stored(self) -> StoredStates:
        if self.states is None:
            raise ValueError(f"{self.folder}: opened without text embeddings")
        return self.states

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


def null_condition(model: Model, shards: Shards) -> Condition | None:
    """What stands for no caption or label: the empty caption (or its states), the class after the last, or None."""
    if model.text is not None:
        return "" if shards.online else shards.null_tokens()
    return model.labels.null_class if model.labels is not None else None


def stack_conditions(conditions: Sequence[Tensor | int]) -> dict[str, Tensor]:
    """Captions' states or labels of a batch -> the network's keyword arguments."""
    if isinstance(conditions[0], int):
        return {"labels": torch.tensor(conditions)}
    text, mask = pad_tokens(conditions)  # type: ignore[arg-type]
    return {"text": text, "text_mask": mask}


@dataclass(frozen=True)
class Batch:
    """Stacked samples: images uint8 [B, 3, H, H] and what the network is conditioned on (see stack_conditions).

    Online: no condition as yet, but the captions to encode, "" where one was dropped.
    """

    positions: list[int]
    images: Tensor
    condition: dict[str, Tensor]
    captions: list[str]


Item = tuple[int, Tensor, Condition]


class TrainingSet(Dataset[Item]):
    """position -> (position, image, condition), with flips and dropped conditions drawn from (seed, position)."""

    def __init__(
        self, shards: Shards, seed: int, null: Condition | None = None, dropout: float = 0.0, flip: bool = False
    ) -> None:
        self.shards, self.seed, self.flip = shards, seed, flip
        self.null, self.dropout = null, dropout

    def index(self, position: int) -> int:
        """Which sample stands at a global position."""
        epoch, place = divmod(position, len(self.shards))
        return permute(place, len(self.shards), hash64(self.seed, "order", epoch))

    def __getitem__(self, position: int) -> Item:
        sample = self.shards[self.index(position)]
        draws = np.random.default_rng(hash64(self.seed, "augment", position)).random(2)
        image = sample.image.flip(2) if self.flip and draws[0] < 0.5 else sample.image
        condition = self.null if self.null is not None and draws[1] < self.dropout else sample.condition
        if condition is None:
            raise ValueError(f"{self.shards.folder}: {sample.key} has no label in its metadata")
        return position, image, condition


def collate(items: Sequence[Item]) -> Batch:
    positions, images, conditions = zip(*items, strict=True)
    if isinstance(conditions[0], str):
        return Batch(list(positions), torch.stack(images), {}, list(conditions))
    return Batch(list(positions), torch.stack(images), stack_conditions(conditions), [])


def pad_tokens(tokens: Sequence[Tensor], length: int = 0) -> tuple[Tensor, Tensor]:
    """Ragged caption states [L_i, D] -> [B, L, D] with zeros behind, mask [B, L]; L is the longest, or more."""
    text = torch.nn.utils.rnn.pad_sequence(list(tokens), batch_first=True)
    text = torch.nn.functional.pad(text, (0, 0, 0, max(0, length - text.shape[1])))
    lengths = torch.tensor([len(t) for t in tokens])
    return text, (torch.arange(text.shape[1]) < lengths[:, None]).float()


def batches(data: TrainingSet, groups: Iterable[list[int]], workers: int) -> Iterator[Batch]:
    """Batches for given groups of positions, in order, decoded ahead by worker processes (0: in this one)."""
    yield from DataLoader(data, batch_sampler=groups, collate_fn=collate, num_workers=workers)
