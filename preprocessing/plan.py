"""What a set will cost before it is made: downloads, time, storage, files; and how large its pictures are."""

import heapq
import io
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean

from PIL import Image

from preprocessing.items import Item, Source, Split
from preprocessing.pack.lists import SPLITS
from preprocessing.pack.shards import Recipe
from preprocessing.sources.listing import first, hashed, none_to_train_on, too_few
from preprocessing.units import size, span

TOLD = 3
SAMPLED = 200  # pictures that are looked at
STAGES_PX = (64, 256, 1024)  # of the paper
# Per second and core, as benchmarks/results/2026-11-26-data.md has them: of a server nearby, a megapixel, a clip; a
# drawing that is made, served, downloaded and packed.
DOWNLOADS_S, MEGAPIXELS_S, CLIPS_S, DRAWN_S = 800.0, 110.0, 3.6, 100.0
START_S, DOWNLOADER_S = 3.0, 8.0  # until the processes that pack are there; img2dataset
ALIVE = 0.62  # of CC12M's URLs, as its mirrors report
# Bytes: of a 256² crop, of a picture as it came, of a 256² clip, of CC12M's and WebVid's kind; caption and tar headers.
CROP_BYTES, ORIGINAL_BYTES, CLIP_BYTES, TEXT_BYTES = 33_000, 190_000, 266_000, 3_000


@dataclass(frozen=True)
class Seen:
    """A picture that was looked at."""

    width: int
    height: int
    stored_bytes: int


def plan_lines(source: Source, recipe: Recipe, parts: int, cores: int, proxy: str) -> Iterator[str]:
    """Counted by listing the source once; nothing is fetched or written. ``cores``: of this machine."""
    items, problems, told = dict.fromkeys(SPLITS, 0), 0, list[str]()  # why the first unusable ones are
    away, downloads = 0, 0  # not on this machine; of these, on the web

    def at_hand() -> Iterator[Item]:
        nonlocal away, downloads, problems
        for item in source.items():
            items[item.split] += not item.problem
            away += item.place is None and not item.problem
            downloads += item.place is None and item.url.lower().startswith(("http://", "https://"))
            problems += bool(item.problem)
            if item.problem and len(told) < TOLD:
                told.append(item.problem)
            if item.place is not None:
                yield item

    sampled = heapq.nsmallest(SAMPLED, at_hand(), key=lambda item: hashed(item.key))  # from all over the list
    usable = sum(items.values())
    if usable and usable <= recipe.least_val:
        raise too_few(str(source.root()), usable, recipe.least_val, told)
    if usable and items["val"] < recipe.least_val:  # as lists.py has it
        items = {"train": usable - recipe.least_val, "val": recipe.least_val}
    if usable and recipe.least_val and not items["train"]:
        raise none_to_train_on(str(source.root()), usable)
    unusable = f"; {problems:,} unusable" if problems else ""
    yield f"listed: {usable + problems:,} ({items['train']:,} to train on, {items['val']:,} held out{unusable})"
    yield from source.notes()
    if not usable:
        raise ValueError(f"none of {problems:,} listed items can be used: {first(told, repr_of=str)}")
    seen = [] if recipe.clips else list(_look(sampled))
    yield f"plan: {_cost(recipe, items, away, downloads, seen, parts, cores)}"
    if proxy:
        yield f"through the proxy {proxy}: it decides which addresses may be reached, not the shield"
    if seen:
        sides = [min(picture.width, picture.height) for picture in seen]
        below = ", ".join(f"{sum(s < px for s in sides) / len(sides):.0%} below {px}" for px in STAGES_PX)
        yield f"short sides of {len(sides)} of them: {below} px; smaller pictures are enlarged"


def _look(sampled: list[Item]) -> Iterator[Seen]:
    for item in sampled:
        assert item.place is not None
        try:
            data = item.place.read()
            with Image.open(io.BytesIO(data)) as picture:
                yield Seen(*picture.size, len(data))
        except Exception:  # counted when it is packed, by its reason
            continue


def _cost(
    recipe: Recipe, items: dict[Split, int], away: int, downloads: int, seen: list[Seen], parts: int, cores: int
) -> str:
    usable = sum(items.values())
    samples = usable - downloads * (1 - ALIVE)
    megapixels = mean(picture.width * picture.height for picture in seen) / 1e6 if seen else 1.0
    if recipe.clips:
        each_s = 1 / CLIPS_S
    elif away and not downloads:
        each_s = 1 / DRAWN_S
    else:
        each_s = megapixels / MEGAPIXELS_S + downloads / usable / DOWNLOADS_S
    original = mean(picture.stored_bytes for picture in seen) if seen else ORIGINAL_BYTES
    square = CLIP_BYTES if recipe.clips else CROP_BYTES  # of 256²
    each_bytes = sum(TEXT_BYTES + (square * (tier.px / 256) ** 2 if tier.px else original) for tier in recipe.tiers)
    shards = sum(-(-count // recipe.per_shard) for count in items.values())
    tiers = len(recipe.tiers)
    files = shards * (3 * tiers + 1) + 2 * tiers + 6
    start_s = START_S + DOWNLOADER_S * bool(away)
    alive = f" (if {ALIVE:.0%} of the URLs are alive, as CC12M's were)" if downloads else ""
    of_part = f", each of {parts:,} parts {span(start_s + usable * each_s / parts / cores)}" if parts > 1 else ""
    return (
        f"{f'{downloads:,} downloads, ' if downloads else ''}{samples:,.0f} samples{alive}, about "
        f"{size(samples * each_bytes)} in {files:,} files; about {span(start_s + usable * each_s / cores)} on "
        f"{cores} cores{of_part}"
    )
