"""Seconds of the embedded data set by the road of every set from the web, and of its drawing and packing alone.

python -m benchmarks.data_openmoji [--rounds 1]
"""

import os
import tempfile
import time
from pathlib import Path

from benchmarks.rows import Row, rounds_asked, show
from flows.datasets.making import PIXELS, make_set, open_source
from preprocessing.catalogue import Options
from preprocessing.pack.images import encode_png, rasterise_svg
from preprocessing.pack.shards import TarFile

MORE_S = 30.0
OPTIONS = Options()


def by_the_road() -> tuple[int, float]:
    opened = open_source("openmoji", OPTIONS)
    assert opened is not None
    began = time.perf_counter()
    assert make_set(opened, lambda *_: None, print) is not None
    return opened.recipe.tiers[0].px, time.perf_counter() - began


def alone(px: int, folder: Path) -> float:
    """Drawn, decoded, cropped, encoded and written into a tar, in this process."""
    opened = open_source("openmoji", OPTIONS)
    assert opened is not None
    began = time.perf_counter()
    paths = {drawing.key: drawing.path for drawing in opened.source.drawings}  # type: ignore[attr-defined]
    with TarFile(folder / "00000.tar") as tar:
        for item in opened.source.items():
            rgb = PIXELS.centre_crop(PIXELS.read_rgb(encode_png(rasterise_svg(paths[item.key], px))), px)
            tar.add(item.key, {"png": encode_png(rgb), "txt": item.caption.encode(), "json": b"{}"})
        tar.finish()
    return time.perf_counter() - began


def measure(rounds: int) -> list[Row]:
    road, packing = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            os.environ["MDM_HOME"] = name
            px, seconds = by_the_road()
            road.append(seconds)
            packing.append(alone(px, Path(name)))
    more = [all_of_it - packed for all_of_it, packed in zip(road, packing, strict=True)]
    return [
        Row("the embedded data set", "drawn, served, downloaded, packed", road, "s"),
        Row("", "drawn and packed alone, one process", packing, "s"),
        Row("", "more", more, "s", most=MORE_S),
    ]


if __name__ == "__main__":
    show(measure(rounds_asked(__doc__, 1)))
