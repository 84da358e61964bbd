"""What caption embeddings cost, measured on a sample, and which way is the cheapest.

They can be stored in half precision, stored in 8 bits, or made anew for every image that a training sees.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from preprocessing.embed import BATCH, Encode, read_captions
from preprocessing.manifest import read_manifest
from preprocessing.units import size, span

SAMPLE = 256  # captions that are timed
SAMPLE_SHARDS = 8  # shards, equally far apart, that they are taken from
SPARE = 0.1  # share of the free disk that is left for checkpoints and samples
OFFSET_BYTES, SCALE_BYTES = 8, 4  # per caption; per token in 8 bits


@dataclass(frozen=True)
class Cost:
    """Measured figures of one dataset and one encoder on one machine."""

    captions: int  # of all splits
    tokens: float  # mean per caption
    dim: int
    caption_s: float  # seconds of the encoder, on one device
    seen: int  # images that the training stages see
    free_bytes: int  # of the dataset's disk

    @property
    def half_bytes(self) -> float:
        return self.captions * (self.tokens * self.dim * 2 + OFFSET_BYTES)

    @property
    def eight_bit_bytes(self) -> float:
        return self.captions * (self.tokens * (self.dim + SCALE_BYTES) + OFFSET_BYTES)

    @property
    def once_s(self) -> float:
        """Encoding each caption once."""
        return self.captions * self.caption_s

    @property
    def online_s(self) -> float:
        """Encoding the caption of every image that is seen."""
        return self.seen * self.caption_s

    def lines(self) -> list[str]:
        """The figures, one line for each way."""
        return [
            f"{self.captions:,} captions of {self.tokens:.1f} tokens, {self.caption_s * 1e3:.3g} ms each; "
            f"{self.seen:,} images will be seen; {size(self.free_bytes)} of disk are free",
            f"cached:      {size(self.half_bytes):>10} on disk, {span(self.once_s):>10} of encoding, once",
            f"cached-8bit: {size(self.eight_bit_bytes):>10} on disk, {span(self.once_s):>10} of encoding, once",
            f"online:      {'nothing':>10} on disk, {span(self.online_s):>10} of encoding, during training",
        ]


def measure_cost(folders: list[Path], encode: Encode, seen: int) -> Cost:
    """Time ``encode`` on a sample of the captions of the first folder (the training split); count all of them."""
    manifests = [read_manifest(folder) for folder in folders]
    shards = manifests[0]["shards"]
    count = min(SAMPLE_SHARDS, len(shards))
    captions: list[str] = []
    for shard in (shards[i * len(shards) // count] for i in range(count)):
        captions += read_captions(folders[0] / shard["file"])[: SAMPLE // count]
    encode(captions[:BATCH])  # loading the encoder and warming it up is no cost per caption
    begun = time.perf_counter()
    states = [s for i in range(0, len(captions), BATCH) for s in encode(captions[i : i + BATCH])[0]]
    caption_s = (time.perf_counter() - begun) / len(captions)
    return Cost(
        captions=sum(manifest["samples"] for manifest in manifests),
        tokens=sum(len(s) for s in states) / len(states),
        dim=len(states[0][0]),
        caption_s=caption_s,
        seen=seen,
        free_bytes=shutil.disk_usage(folders[0]).free,
    )


def choose(cost: Cost) -> tuple[Literal["online", "cached"], str]:
    """The way that costs least and fits the disk, and the reason in a line.

    Storing costs every caption's encoding once, online costs it for every image seen. 8 bits are for whoever asks for
    them: what they change was measured with MiniLM alone.
    """
    usable = cost.free_bytes * (1 - SPARE)
    room = f"{size(usable)} of disk may be used"
    times = f"encoding takes {span(cost.once_s)} once, {span(cost.online_s)} online"
    if cost.once_s >= cost.online_s:
        return "online", f"online: {times}, as no more images are seen than there are captions"
    if cost.half_bytes <= usable:
        return "cached", f"cached: {times}; {size(cost.half_bytes)} in half precision fit, {room}"
    fewer = f"{size(cost.eight_bit_bytes)} in 8 bits would (embeddings=cached-8bit)"
    more = fewer if cost.eight_bit_bytes <= usable else f"nor do {size(cost.eight_bit_bytes)} in 8 bits"
    return "online", f"online: {times}; {size(cost.half_bytes)} in half precision do not fit, {more}; {room}"
