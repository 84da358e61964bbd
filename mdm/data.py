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
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mdm.config import Model


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
    """One image, uint8 [3, H, H], and what it shows: a caption, its states float32 [L, D] (if asked for), a label."""

    key: str
    caption: str
    image: Tensor
    tokens: Tensor | None
    label: int | None

    @property
    def condition(self) -> Tensor | int:
        """What a model is conditioned on: the caption's states where there are any, else the label."""
        if self.tokens is not None:
            return self.tokens
        if self.label is None:
            raise ValueError(f"{self.key}: opened without text embeddings, and its metadata has no label")
        return self.label


class Shards:
    """Random access to a dataset folder (manifest.json, tars, indexes) and its text embeddings."""

    def __init__(self, folder: Path, text: str | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = _manifest(self.folder)
        self.text_folder = None if text is None else self.folder / f"text-{text}"
        if self.text_folder is not None:
            data_digest = _manifest(self.text_folder).get("data_digest")
            if data_digest != self.manifest["digest"]:
                raise ValueError(f"{self.text_folder} was made for other images: run the text embedding again")
        counts = [shard["samples"] for shard in self.manifest["shards"]]
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.files: dict[int, int] = {}  # opened lazily, so that worker processes open their own

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "files": {}}

    def __getitem__(self, index: int) -> Sample:
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        place = index - int(self.starts[shard])
        image, text, meta = (self._read(shard, *span) for span in self._spans(shard)[place])
        tokens = None if self.text_folder is None else self.tokens(shard, place)
        with Image.open(io.BytesIO(image)) as picture:
            pixels = torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1)
        record = json.loads(meta)
        return Sample(record["key"], text.decode(), pixels, tokens, record.get("label"))

    def tokens(self, shard: int, place: int) -> Tensor:
        file = self._embeddings(shard)
        start, end = file.get_slice("offsets")[place : place + 2].tolist()
        return file.get_slice("tokens")[start:end].float()

    def null_tokens(self) -> Tensor:
        """Encoder states [L, D] of the empty caption."""
        if self.text_folder is None:
            raise ValueError(f"{self.folder}: opened without text embeddings")
        with safe_open(self.text_folder / "null.safetensors", "pt") as file:
            return file.get_tensor("tokens").float()

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

    @lru_cache(maxsize=256)  # noqa: B019
    def _embeddings(self, shard: int) -> Any:
        assert self.text_folder is not None
        name = Path(self.manifest["shards"][shard]["file"]).with_suffix(".safetensors").name
        return safe_open(self.text_folder / name, "pt")


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "manifest.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder} is no finished dataset: manifest.json is missing") from None


def null_condition(model: Model, shards: Shards) -> Tensor | int | None:
    """What stands for no caption or no label: the empty caption's states [L, D], the class after the last, or None."""
    if model.text is not None:
        return shards.null_tokens()
    return model.labels.num_classes if model.labels is not None and model.labels.null else None


def stack_conditions(conditions: Sequence[Tensor | int]) -> dict[str, Tensor]:
    """Captions' states or labels of a batch -> the network's keyword arguments."""
    if isinstance(conditions[0], int):
        return {"labels": torch.tensor(conditions)}
    text, mask = pad_tokens(conditions)  # type: ignore[arg-type]
    return {"text": text, "text_mask": mask}


@dataclass(frozen=True)
class Batch:
    """Stacked samples: images uint8 [B, 3, H, H] and what the network is conditioned on (see stack_conditions)."""

    positions: list[int]
    images: Tensor
    condition: dict[str, Tensor]


Item = tuple[int, Tensor, Tensor | int]


class TrainingSet(Dataset[Item]):
    """position -> (position, image, condition), with flips and dropped conditions drawn from (seed, position)."""

    def __init__(
        self, shards: Shards, seed: int, null: Tensor | int | None = None, dropout: float = 0.0, flip: bool = False
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
        dropped = self.null is not None and draws[1] < self.dropout
        return position, image, self.null if dropped else sample.condition  # type: ignore[return-value]


def collate(items: Sequence[Item]) -> Batch:
    positions, images, conditions = zip(*items, strict=True)
    return Batch(list(positions), torch.stack(images), stack_conditions(conditions))


def pad_tokens(tokens: Sequence[Tensor], length: int = 0) -> tuple[Tensor, Tensor]:
    """Ragged caption states [L_i, D] -> [B, L, D] with zeros behind, mask [B, L]; L is the longest, or more."""
    text = torch.nn.utils.rnn.pad_sequence(list(tokens), batch_first=True)
    text = torch.nn.functional.pad(text, (0, 0, 0, max(0, length - text.shape[1])))
    lengths = torch.tensor([len(t) for t in tokens])
    return text, (torch.arange(text.shape[1]) < lengths[:, None]).float()


def batches(data: TrainingSet, groups: Iterable[list[int]], workers: int) -> Iterator[Batch]:
    """Batches for given groups of positions, in order, decoded ahead by worker processes (0: in this one)."""
    yield from DataLoader(data, batch_sampler=groups, collate_fn=collate, num_workers=workers)
