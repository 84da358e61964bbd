"""What a set will cost before it is made: downloads, hours, storage, files; and how large its pictures are."""

import heapq
import io
from collections.abc import Iterator

from PIL import Image

from preprocessing.items import Item, Source
from preprocessing.pack.lists import SPLITS
from preprocessing.pack.shards import Recipe
from preprocessing.sources.listing import hashed

TOLD = 3
SAMPLED = 200  # pictures whose sizes are looked at
STAGES_PX = (64, 256, 1024)  # of the paper
# Per second and core, as benchmarks/results/2026-11-26-data.md has them: of a server nearby, a megapixel, a clip.
DOWNLOADS_S, PACKED_S, CLIPS_S = 800.0, 110.0, 3.6
ALIVE = 0.62  # of CC12M's URLs, as its mirrors report
# Bytes: of a 256² crop, of a picture as it came, of a clip, of CC12M's and WebVid's kind.
CROP_BYTES, ORIGINAL_BYTES, CLIP_BYTES = 33_000, 190_000, 266_000


def plan_lines(source: Source, recipe: Recipe, parts: int, proxy: str) -> Iterator[str]:
    """Counted by listing the source once; nothing is fetched or written."""
    items, urls, problems = dict.fromkeys(SPLITS, 0), 0, 0
    told: list[str] = []  # why the first unusable ones are

    def at_hand() -> Iterator[Item]:
        nonlocal urls, problems
        for item in source.items():
            items[item.split] += not item.problem
            urls += bool(item.url) and item.place is None
            problems += bool(item.problem)
            if item.problem and len(told) < TOLD:
                told.append(item.problem)
            if item.place is not None:
                yield item

    sampled = heapq.nsmallest(SAMPLED, at_hand(), key=lambda item: hashed(item.key))  # from all over the list
    usable = sum(items.values())
    total = usable + problems
    if usable and usable <= recipe.least_val:
        raise ValueError(
            f"{usable} usable items are listed, at least {recipe.least_val + 1} are needed: {recipe.least_val} are "
            f"held out{'; not usable: ' * bool(told)}{', '.join(told)}"
        )
    if usable and items["val"] < recipe.least_val:  # as lists.py has it
        items = {"train": usable - recipe.least_val, "val": recipe.least_val}
    shards = sum(-(-count // recipe.per_shard) for count in items.values())
    yield f"listed: {total:,} ({items['train']:,} to train on, {items['val']:,} held out; {problems:,} unusable)"
    yield from source.notes()
    if not usable:
        raise ValueError(f"none of {total:,} listed items can be used: what is wrong with them stands above")
    kept = (total - problems) * (ALIVE if urls else 1)
    of_kept = f"{kept:,.0f} samples" + (f" (if {ALIVE:.0%} of the URLs are alive, as CC12M's were)" if urls else "")
    rate = CLIPS_S if recipe.clips else 1 / (1 / PACKED_S + (1 / DOWNLOADS_S if urls else 0))
    hours = total / rate / 3600
    each = sum(CLIP_BYTES if recipe.clips else CROP_BYTES if tier.px else ORIGINAL_BYTES for tier in recipe.tiers)
    files = shards * (3 * len(recipe.tiers) + 1)
    yield (
        f"plan: {urls:,} downloads, {of_kept}, about {kept * each / 1e9:,.1f} GB in {files:,} files; "
        f"{hours:,.1f} core-hours ({hours / parts / 24:,.2f} days on one core of each of {parts} part(s))"
    )
    if proxy:
        yield f"through the proxy {proxy}: it decides which addresses may be reached, not the shield"
    if sampled and not recipe.clips:
        yield from _sizes(sampled)


def _sizes(sampled: list[Item]) -> Iterator[str]:
    sides = []
    for item in sampled:
        assert item.place is not None
        try:
            with Image.open(io.BytesIO(item.place.read())) as picture:
                sides.append(min(picture.size))
        except Exception:  # counted when it is packed, by its reason
            continue
    if sides:
        below = ", ".join(f"{sum(s < px for s in sides) / len(sides):.0%} below {px}" for px in STAGES_PX)
        yield f"short sides of {len(sides)} of them: {below} px; smaller pictures are enlarged"
