"""The samples of a split by number: webdataset tars read through the index beside each, and caption states."""

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdm.config import Model
from mdm.data.embeddings import StoredStates, TextSource
from mdm.data.pixels import centre_crop, read_rgb
from mdm.data.tars import META, TEXT, DamagedShard, Tars, load_manifest, revision_of
from mdm.stage import Storage

SampleCondition = Tensor | str | int  # a caption's states [L, D], a caption still to be encoded, a label
FEW_BYTES = 2**26  # of decoded pictures, which are kept


@dataclass(frozen=True)
class Sample:
    """One captioned image, uint8 [3, H, H], or clip, uint8 [F, 3, H, H].

    condition: stored states [L, D], the caption (online), or a label.
    """

    key: str
    caption: str
    image: Tensor
    condition: SampleCondition | None


class Read(NamedTuple):
    """A sample as it was decoded: pixels uint8 [H, H, 3], or of a clip [F, H, H, 3], which may not be written to."""

    key: str
    caption: str
    pixels: NDArray[np.uint8]
    condition: SampleCondition | None


class Shards:
    """Random access to a dataset folder (manifest.json, tars, indexes) and its stored text embeddings, if any.

    ``px``: the pictures come from the smallest of the set's tiers that reaches this size, and are of a multiple of it;
    originals are cropped and resized to it. 0: from the set's first tier, as they are; ``originals``: as they came,
    of any size, from the tier that holds them.

    Samples are numbered 0 … len - 1 for good: one that was removed keeps its number, and asking for it is an error.
    Raises ValueError where the folder is not finished or its digest is not the ``pinned`` one.
    """

    def __init__(
        self,
        folder: Path,
        text: TextSource | None = None,
        storage: Storage | None = None,
        pinned: str = "",
        px: int = 0,
        originals: bool = False,
    ) -> None:
        self.folder, self.storage, self.px = Path(folder), storage or Storage(), px
        self.manifest = load_manifest(self.folder, pinned)
        self.tier = choose_tier(self.folder, self.manifest, px) if px or originals else self.folder
        tier = load_manifest(self.tier) if self.tier != self.folder else self.manifest
        self.stored_px: int = tier["resolution_px"]  # 0: of any size
        self.tars = Tars(self.tier, tier, self.storage)
        self.states: StoredStates | None = None
        self.online = text is not None and text.way == "online"
        if text is not None and not self.online:
            self.states = StoredStates(self.folder, self.manifest, text, self.storage.check == "digest")
        self.decoded: dict[int, NDArray[np.uint8]] = {}  # of a set whose pictures take no more than FEW_BYTES
        self.counts = [shard["samples"] for shard in self.manifest["shards"]]
        self.starts = list(accumulate(self.counts, initial=0))
        self.removed = {
            start + place
            for start, shard in zip(self.starts, self.manifest["shards"], strict=False)
            for place in shard.get("removed", ())
        }

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> Sample:
        """Raises DamagedShard where the sample cannot be read or decoded, ValueError where it was removed."""
        read = self.read(index)
        return Sample(read.key, read.caption, channels_first(torch.from_numpy(read.pixels.copy())), read.condition)

    def read(self, index: int) -> "Read":
        """The same as it was decoded. Raises the same."""
        shard, place = self._locate(index)
        *images, text, meta = self.tars.read(shard, place)
        record = self._record(shard, place, meta)
        pixels = self.decoded.get(index)
        if pixels is None:
            try:
                frames = [self._square(image) for image in images]
            except ValueError as error:
                raise self._wrong(shard, record["key"], f"its picture {error}") from None
            pixels = np.stack(frames) if "frames" in self.manifest else frames[0]
            if len(self) * pixels.nbytes <= FEW_BYTES:
                self.decoded[index] = pixels
        key, caption = record["key"], self._caption(shard, record["key"], text)
        if self.online:
            return Read(key, caption, pixels, caption)
        return Read(key, caption, pixels, record.get("label") if self.states is None else self.states(shard, place))

    def _square(self, image: bytes) -> NDArray[np.uint8]:
        """uint8 [H, H, 3]. Raises ValueError saying what is wrong with the bytes."""
        try:
            rgb = read_rgb(image)
        except ValueError as error:
            raise ValueError(f"cannot be used: {error}") from None
        if not self.stored_px:
            return np.array(centre_crop(rgb, self.px) if self.px else rgb)
        if rgb.shape != (self.stored_px, self.stored_px, 3):
            raise ValueError(
                f"is {rgb.shape[1]} x {rgb.shape[0]} px, the set's are {self.stored_px} x {self.stored_px}"
            )
        return rgb

    @property
    def revision(self) -> dict[str, Any]:
        """Which state of the data this is (``revision_of``)."""
        return revision_of(self.manifest)

    def present(self) -> Sequence[int]:
        """The numbers of the samples that were not removed."""
        return [i for i in range(len(self)) if i not in self.removed] if self.removed else range(len(self))

    def spread(self, count: int) -> list[int]:
        """``count`` of them (or all), equally far apart in the set as it was made.

        Those that were removed are left out, and nothing takes their places: the others stay the same.
        """
        count = min(count, len(self))
        numbers = (i * len(self) // count for i in range(count))
        return [number for number in numbers if number not in self.removed]

    def check(self) -> list[str]:
        """Look at every shard without reading it -> a line for each that is missing or of the wrong size.

        Raises DamagedShard for the first of them where the storage tolerates nothing.
        """
        lines = self.tars.check() + (self.states.check() if self.states is not None else [])
        if lines and not self.storage.tolerate:
            more = f" (and {len(lines) - 1} more files)" if len(lines) > 1 else ""
            raise DamagedShard(
                f"{lines[0]}{more}: delete what is damaged and make or copy it again (`mdm data`, `mdm embed`), "
                "or let other samples take its place (storage.tolerate)"
            )
        return lines

    def key(self, index: int) -> str:
        """By which a sample is known, whatever its number."""
        return self._metadata(index)["key"]

    def label(self, index: int) -> int:
        """The class of a sample. Raises ValueError where its metadata has none."""
        record = self._metadata(index)
        if not isinstance(record.get("label"), int):
            raise ValueError(f"{self.folder}: {record['key']} has no label in its metadata")
        return record["label"]

    def _metadata(self, index: int) -> dict[str, Any]:
        shard, place = self._locate(index)
        return self._record(shard, place, self.tars.read(shard, place, [META])[0])

    def caption(self, index: int) -> str:
        """Raises DamagedShard as well."""
        shard, place = self._locate(index)
        text, meta = self.tars.read(shard, place, [TEXT, META])
        return self._caption(shard, self._record(shard, place, meta)["key"], text)

    def readable(self, indices: Sequence[int]) -> tuple[dict[int, Sample], list[str]]:
        """The samples that can be read, and a line for each that cannot. Raises where the storage tolerates none."""
        found, lines = {}, []
        for index in indices:
            try:
                found[index] = self[index]
            except DamagedShard as error:
                if not self.storage.tolerate:
                    raise
                lines.append(f"left out: {error}")
        return found, lines

    def tokens(self, index: int) -> Tensor:
        """Stored encoder states [L, D] of a caption, in the precision that StoredStates has them in."""
        return self._stored()(*self._locate(index))

    def null_tokens(self) -> Tensor:
        """Stored encoder states [L, D] of the empty caption."""
        return self._stored().null()

    def _stored(self) -> StoredStates:
        if self.states is None:
            raise ValueError(f"{self.folder}: opened without text embeddings")
        return self.states

    def _locate(self, index: int) -> tuple[int, int]:
        if index in self.removed:
            raise ValueError(f"{self.folder}: sample {index} was removed")
        shard = bisect_right(self.starts, index) - 1
        return shard, index - self.starts[shard]

    def _record(self, shard: int, place: int, meta: bytes) -> dict[str, Any]:
        """A sample's metadata, with its key."""
        try:
            record = json.loads(meta)
            record["key"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            what = f"sample {place} of it has no metadata with a key ({type(error).__name__})"
            raise DamagedShard(f"{self.tars.path(shard)}: {what}: make it again") from None
        return record

    def _caption(self, shard: int, key: str, text: bytes) -> str:
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise self._wrong(shard, key, f"its caption is no UTF-8 (at byte {error.start})") from None

    def _wrong(self, shard: int, key: str, what: str) -> DamagedShard:
        """What stands in a shard, but cannot be trained on."""
        return DamagedShard(
            f"{self.tars.path(shard)}: sample {key!r}: {what}: make the shard again, or remove the sample "
            "(`mdm data PRESET --remove FILE`)"
        )


def choose_tier(folder: Path, manifest: dict[str, Any], px: int) -> Path:
    """The folder of the smallest of a split's tiers that reaches a size; 0: of the originals. Raises ValueError where
    there is none."""
    tiers = {folder: manifest["resolution_px"]}
    for name, pinned in manifest.get("tiers", {}).items():
        tiers[folder / name] = load_manifest(folder / name, pinned)["resolution_px"]
    originals = [path for path, size in tiers.items() if size == 0]
    sizes = sorted((size, path) for path, size in tiers.items() if px and size and size % px == 0)
    if not sizes and not originals:
        held = ", ".join(f"{size}" for size in sorted(tiers.values()))
        lacks = f"{px} px cannot be made of them" if px else "not the originals, which are asked for"
        raise ValueError(f"{folder} holds pictures of {held} px, {lacks}")
    return sizes[0][1] if sizes else originals[0]


def null_condition(model: Model, shards: Shards) -> SampleCondition | None:
    """What stands for no caption or label: the empty caption (or its states), the class after the last, or None."""
    if model.text is not None:
        return "" if shards.online else shards.null_tokens()
    return model.labels.null_class if model.labels is not None else None


def channels_first(pixels: Tensor) -> Tensor:
    return pixels.movedim(-1, -3)
