"""What is said of a set before it is made."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from drawn import recipe
from preprocessing.items import Item, Place
from preprocessing.pack.shards import Tier
from preprocessing.plan import plan_lines
from preprocessing.sources.cc12m import Cc12m
from preprocessing.sources.openmoji import OpenMoji
from preprocessing.units import size, span


@dataclass
class SmallThenLarge:
    """2,000 pictures, of which the first half are smaller than a stage, and the others are not."""

    folder: Path

    def root(self) -> Path:
        return self.folder

    def fingerprint(self) -> dict[str, Any]:
        return {}

    def items(self) -> Iterator[Item]:
        for number in range(2000):
            yield Item(f"{number:05d}", "x", place=Place(self.folder / f"{number // 1000}.png"))

    def notes(self) -> list[str]:
        return []


def test_sizes_are_those_of_pictures_from_all_over_the_list(tmp_path: Path) -> None:
    for number, px in enumerate((8, 64)):
        Image.new("L", (px, px)).save(tmp_path / f"{number}.png")
    source = SmallThenLarge(tmp_path)
    *_, sizes = plan_lines(source, recipe(source), 1, 2, "")
    assert sizes.startswith("short sides of 200 of them: ")
    assert 40 < int(sizes.split(": ")[1].split("%")[0]) < 60  # below 64 px


def plan_of(source: Any, parts: int = 1, **changes: Any) -> str:
    return next(line for line in plan_lines(source, recipe(source, **changes), parts, 2, "") if "plan:" in line)


def test_every_figure_of_a_plan_is_in_a_unit_that_fits(tmp_path: Path) -> None:
    """A few drawings or pictures are not "0.0 GB" and "0.0 core-hours", and nothing that does not happen is counted."""
    Image.new("RGB", (1000, 2000)).save(tmp_path / "0.png")
    Image.new("RGB", (1000, 2000)).save(tmp_path / "1.png")
    (tmp_path / "list.tsv").write_text("".join(f"https://example.org/{i}.jpg\tx\n" for i in range(100_000)))
    kept, drawn = (Tier(256, "jpg"), Tier(0)), OpenMoji(limit=12, val_fraction=0.3)
    assert plan_of(drawn) == "plan: 12 samples, about 37.5 kB in 24 files; about 11 s on 2 cores"
    assert plan_of(SmallThenLarge(tmp_path), per_shard=1000, tiers=kept) == (
        "plan: 2,000 samples, about 89.8 MB in 24 files; about 21 s on 2 cores"
    )
    assert plan_of(Cc12m(tmp_path / "list.tsv"), 4, per_shard=1000, tiers=kept) == (
        "plan: 100,000 downloads, 62,000 samples (if 62% of the URLs are alive, as CC12M's were), about 14.20 GB in "
        "717 files; about 8.8 min on 2 cores, each of 4 parts 2.3 min"
    )


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 bytes"), (900, "900 bytes"), (1500, "1.5 kB"), (2.5e7, "25.0 MB"), (3.2e12, "3.20 TB")]
)
def test_bytes_for_a_person(count: float, said: str) -> None:
    assert size(count) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.001, "less than 0.1 s"), (3.21, "3.2 s"), (75, "75 s"), (600, "10.0 min"), (9000, "2.5 h"), (1e6, "11.6 days")],
)
def test_times_for_a_person(seconds: float, said: str) -> None:
    assert span(seconds) == said
