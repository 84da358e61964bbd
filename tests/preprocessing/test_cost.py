"""The choice between storing embeddings and making them anew, and the figures that it is made from."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drawn import Inline, write_drawings
from preprocessing.cost import SAMPLE, Cost, choose, measure_cost
from preprocessing.embed import embed_captions
from preprocessing.manifest import read_manifest
from preprocessing.pack import making
from preprocessing.sources.openmoji import OpenMoji

# CC12M and FLAN-T5 XL as the paper's stages see them: 1 TB in half precision, half of it in 8 bits.
CC12M = Cost(captions=12_000_000, tokens=20, dim=2048, caption_s=1e-3, seen=1_536_000_000, free_bytes=4_000_000_000_000)


@pytest.mark.parametrize(
    ("change", "way", "reason"),
    [
        ({}, "cached", "983.14 GB in half precision fit, 3.60 TB of disk may be used"),
        ({"free_bytes": 1_100_000_000_000}, "cached", "983.14 GB in half precision fit"),
        # 90 % of the disk counts: the rest is for checkpoints.
        # 8 bits are for whoever asks for them: what they change is not measured on FLAN-T5.
        ({"free_bytes": 1_050_000_000_000}, "online", "492.58 GB in 8 bits would (embeddings=cached-8bit)"),
        ({"free_bytes": 548_000_000_000}, "online", "492.58 GB in 8 bits would"),
        ({"free_bytes": 546_000_000_000}, "online", "nor do 492.58 GB in 8 bits"),
        ({"seen": 12_000_000}, "online", "no more images are seen than there are captions"),
        ({"seen": 12_000_001}, "cached", "3.3 h once, 3.3 h online"),
        ({"free_bytes": 0, "seen": 12_000_001}, "online", "do not fit"),
    ],
)
def test_what_fits_the_disk_and_costs_less_is_chosen(change: dict[str, int], way: str, reason: str) -> None:
    chosen, line = choose(replace(CC12M, **change))
    assert chosen == way
    assert line.startswith(f"{way}: ")
    assert reason in line
    assert "\n" not in line


def test_the_figures_are_those_of_the_sets_that_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = OpenMoji(limit=60, val_fraction=0.1)
    folders = [tmp_path / split for split in ("train", "val")]
    monkeypatch.setattr(making, "ProcessPoolExecutor", Inline)
    write_drawings(tmp_path, source, per_shard=10)
    asked: list[str] = []

    def encode(captions: list[str]) -> tuple[list[np.ndarray], int]:
        asked.extend(captions)
        time.sleep(1e-3 * len(captions))
        return [np.ones((3, 32), np.float32)] * len(captions), 0

    cost = measure_cost(folders, encode, seen=1000)
    assert cost.captions == 60
    assert (cost.tokens, cost.dim, cost.seen) == (3, 32, 1000)
    assert 1e-3 <= cost.caption_s < 0.1
    assert len(set(asked)) <= min(SAMPLE, read_manifest(folders[0])["samples"])
    assert cost.once_s == pytest.approx(60 * cost.caption_s) and cost.online_s == pytest.approx(1000 * cost.caption_s)
    assert f"{cost.captions} captions of 3.0 tokens" in cost.lines()[0]
    for precision, expected in (("half", cost.half_bytes), ("8bit", cost.eight_bit_bytes)):
        manifests = [embed_captions(f, "ones", "v1", encode, 3, precision=precision) for f in folders]  # type: ignore[arg-type]
        suffix = "" if precision == "half" else "-8bit"
        real = sum(
            (f / f"text-ones{suffix}" / shard["file"]).stat().st_size
            for f, manifest in zip(folders, manifests, strict=True)
            for shard in manifest["shards"]
        )
        headers = 300 * sum(len(m["shards"]) for m in manifests)
        assert expected <= real <= expected + headers
