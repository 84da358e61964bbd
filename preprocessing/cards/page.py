"""A set's data card as a page, card.html: one file that loads and runs nothing, with a sheet of samples.

Captions, reasons and notes come from the web: the template escapes all text, and what it is given is printable.
"""

import base64
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from preprocessing.cards.card import card_facts
from preprocessing.items import printable
from preprocessing.manifest import read_manifest, write_file
from preprocessing.pack.rows import OK
from preprocessing.sets import PAGE

SHOWN = 24  # samples on the sheet
CAPTION_CHARS = 300  # of a caption, however long it is
MIME = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}


@dataclass(frozen=True)
class Shown:
    """A sample on the sheet."""

    caption: str
    uri: str  # its picture; of a clip, the frame in the middle
    px: int


def write_page(folder: Path, card: dict[str, Any]) -> Path:
    """card.html of a finished set. Raises ValueError where it cannot be written, OSError where a shard is lost."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    page = environment.get_template("card.html.j2").render(
        card=card,
        facts=card_facts(card),
        refused={name: line for name, line in card["outcomes"].items() if name != OK},
        histograms={
            "Short side of the originals, px": card["short_side_px"],
            "Length of the captions, characters": card["caption_chars"],
        },
        sheet=list(sheet(folder / "train")) if card["sheet"] else [],
    )
    write_file(folder / PAGE, page.encode())
    return folder / PAGE


def sheet(folder: Path) -> Iterator[Shown]:
    """Samples of a split, equally far apart in it, in its first tier, the smallest. None that was removed."""
    manifest = read_manifest(folder)
    total, start, wanted = manifest["samples"], 0, set()
    wanted = {i * total // SHOWN for i in range(SHOWN)}
    for shard in manifest["shards"]:
        places = [number - start for number in sorted(wanted) if start <= number < start + shard["samples"]]
        start += shard["samples"]
        if not places:
            continue
        spans = np.load((folder / shard["file"]).with_suffix(".idx.npy"))
        with (folder / shard["file"]).open("rb") as tar:
            for place in places:
                *pictures, text, meta = (os.pread(tar.fileno(), int(size), int(at)) for at, size in spans[place])
                if not meta:  # removed
                    continue
                picture = base64.b64encode(pictures[len(pictures) // 2]).decode()
                caption = printable(text.decode("utf-8", "replace"))
                cut = caption if len(caption) <= CAPTION_CHARS else caption[: CAPTION_CHARS - 1] + "…"
                yield Shown(cut, f"data:{MIME[manifest['image_ext']]};base64,{picture}", manifest["resolution_px"])
