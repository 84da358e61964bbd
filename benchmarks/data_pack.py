"""What packing a picture costs: decoded, cropped to 256², encoded, and its own bytes kept without metadata.

    python -m benchmarks.data_pack [--rounds 5]

Pictures of 1280 x 768 with the spectrum of photographs, as JPEG of about 150 kB, in both of CC12M's tiers; by CPU time.
"""

import io
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.data_loader import photograph
from benchmarks.rows import Row, rounds_asked, show
from mdm.data.pixels import centre_crop, read_rgb
from preprocessing.items import Item, Place
from preprocessing.pack.lists import write_lists
from preprocessing.pack.shards import Pixels, Recipe, Shard, Tier, pack_shard

DIFFERENT = 12


def picture(random: np.random.Generator) -> bytes:
    rows = [np.concatenate([photograph(random) for _ in range(5)], axis=1) for _ in range(3)]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(buffer, "jpeg", quality=80)
    return buffer.getvalue()


@dataclass(frozen=True)
class Pictures:
    folder: Path

    def fingerprint(self) -> dict[str, Any]:
        return {}

    def items(self) -> Iterator[Item]:
        yield from (Item(path.stem, "a picture", place=Place(path)) for path in sorted(self.folder.glob("*.jpg")))

    def root(self) -> Path:
        return self.folder

    def notes(self) -> list[str]:
        return []


def measure(rounds: int) -> list[Row]:
    random, rates = np.random.default_rng(0), []
    recipe = Recipe(name="bench", source={}, tiers=(Tier(256, "jpg"), Tier(0)), per_shard=DIFFERENT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(DIFFERENT):
            (folder / f"{i}.jpg").write_bytes(picture(random))
        write_lists(Pictures(folder), folder, DIFFERENT, 0)
        shard = Shard(folder, recipe, "train", 0)
        for path in shard.paths.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        for turn in range(rounds + 1):  # the first warms up
            began = time.process_time()
            pack_shard(shard, folder, folder, Pixels(read_rgb, centre_crop))
            rates += [DIFFERENT / (time.process_time() - began)] if turn else []
    return [Row("packing", "1280 x 768 px, 256² crops and originals", rates, "pictures/s per core")]


if __name__ == "__main__":
    show(measure(rounds_asked(__doc__, 5)))
