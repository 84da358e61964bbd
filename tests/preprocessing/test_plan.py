"""What is said of a set before it is made."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from drawn import recipe
from preprocessing.items import Item, Place
from preprocessing.plan import plan_lines


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
    *_, sizes = plan_lines(source, recipe(source), 1, "")
    assert sizes.startswith("short sides of 200 of them: ")
    assert 40 < int(sizes.split(": ")[1].split("%")[0]) < 60  # below 64 px
