"""A set's data card: what became of every item, how large the pictures are, what is there twice, on whose terms.

``card.json`` is for programs, ``card.html`` (page.py) for people. Both are made again when samples were removed.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from preprocessing.items import printable
from preprocessing.manifest import read_json, read_manifest, write_json
from preprocessing.pack.lists import PLAN, REMOVED, SPLITS, list_path
from preprocessing.pack.rows import OK, lost_rows, read_rows
from preprocessing.plan import STAGES_PX
from preprocessing.remove import removed_keys
from preprocessing.sets import CARD, DROPPED, RECIPE, folders_of
from preprocessing.units import size

FORMAT = 3
ABOUT = ("name", "summary", "licence", "credit", "terms", "published", "sheet")
HOW = ("finished_s", "source", "made_from", "made_with", "resized_by", "tiers")  # of recipe.json, as far as it is there
COLUMNS = ["key", "outcome", "detail", "bytes", "sha256", "width", "height", "caption_chars"]
SIDES_PX = (0, 16, 64, 128, 256, 512, 1024, 2048, 4096)  # where the histogram of short sides is cut
CHARS = (0, 1, 10, 20, 40, 80, 160, 320, 640)
DROPPED_AS = "dropped: an earlier one has its bytes"
EXAMPLES = 5  # items named for each class of outcome, and pictures that are there most often


def write_card(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """card.json of a finished set from its rows. Raises ValueError where some are lost.

    ``about``: the fields of ``ABOUT``. ``published``: how many items there are, say its authors; 0: nobody does.
    ``sheet``: its page shows samples.
    """
    plan, recipe = read_json(folder / "lists" / PLAN) or {}, read_json(folder / RECIPE) or {}
    rows = {split: _rows(folder, split) for split in SPLITS}
    for split, table in rows.items():
        if plan and len(table) != plan["items"][split]:
            raise lost_rows(folder / split / "*.rows.parquet", f"{len(table)} rows of {plan['items'][split]} items")
    whole = pa.concat_tables(rows.values())
    made = whole.filter(pc.equal(whole["outcome"], OK))
    short_side = pc.min_element_wise(made["width"], made["height"])
    tiers = {place: read_manifest(place) for place in folders_of(folder)}
    stages_px = {*STAGES_PX, *(manifest["resolution_px"] for manifest in tiers.values())} - {0}
    card = {
        "format": FORMAT,
        **about,
        "data": {str(place.relative_to(folder)): _state(manifest) for place, manifest in tiers.items()},
        "made": {field: recipe[field] for field in HOW if field in recipe},
        "listed": len(whole),
        "samples": {split: pc.sum(pc.equal(table["outcome"], OK)).as_py() or 0 for split, table in rows.items()},
        "outcomes": _outcomes(whole),
        "notes": plan.get("notes", []),
        "bytes_as_they_came": pc.sum(made["bytes"]).as_py() or 0,
        "short_side_px": _histogram(short_side, SIDES_PX),
        "enlarged": {str(px): pc.sum(pc.less(short_side, px)).as_py() or 0 for px in sorted(stages_px)},
        "caption_chars": _histogram(made["caption_chars"], CHARS),
        "equal_bytes": _equal(folder, rows),
    }
    write_json(folder / CARD, card)
    return card


def is_current(folder: Path) -> bool:
    """Whether a set has a card of today's form, made since samples were last removed."""
    card = read_json(folder / CARD) or {}
    now = {str(place.relative_to(folder)): _state(read_manifest(place)) for place in folders_of(folder)}
    return card.get("format") == FORMAT and card["data"] == now


def _state(manifest: dict[str, Any]) -> dict[str, Any]:
    stored = sum(shard["bytes"] for shard in manifest["shards"])
    known = {"digest": manifest["digest"], "revision": manifest.get("revision", 0)}
    return {**known, "px": manifest["resolution_px"], "shards": len(manifest["shards"]), "bytes": stored}


def _rows(folder: Path, split: str) -> pa.Table:
    """What became of a split's items; of those that were dropped, or removed since, only that."""
    rows = read_rows(folder / split, COLUMNS).select(COLUMNS)
    outcome = rows["outcome"]
    made, dropped = pc.equal(outcome, OK), (read_json(folder / DROPPED) or {"keys": []})["keys"]
    for keys, what in ((dropped, DROPPED_AS), (removed_keys(folder / split) - set(dropped), REMOVED)):
        gone = pc.is_in(rows["key"], value_set=pa.array(sorted(keys), pa.string()))
        outcome = pc.if_else(pc.and_(gone, made), what, outcome)
    return rows.set_column(COLUMNS.index("outcome"), "outcome", outcome)


def _outcomes(rows: pa.Table) -> dict[str, Any]:
    """Class -> how many items, and a few of them by key."""
    counts = rows.group_by("outcome").aggregate([("key", "count")]).to_pylist()
    found = {}
    for line in sorted(counts, key=lambda line: -line["key_count"]):
        some = rows.filter(pc.equal(rows["outcome"], line["outcome"])).slice(0, EXAMPLES)
        named = [f"{row['key']}: {row['detail']}" if row["detail"] else row["key"] for row in some.to_pylist()]
        found[line["outcome"]] = {"items": line["key_count"], "some": [] if line["outcome"] in (OK, REMOVED) else named}
    return found


def _histogram(values: Any, cuts: tuple[int, ...]) -> dict[str, int]:
    counts = {}
    for low, high in zip(cuts, (*cuts[1:], None), strict=True):
        inside = pc.greater_equal(values, low)
        if high is not None:
            inside = pc.and_(inside, pc.less(values, high))
        name = f"{low} and more" if high is None else f"{low}" if low == high - 1 else f"{low} to {high - 1}"
        counts[name] = pc.sum(inside).as_py() or 0
    return counts


def _equal(folder: Path, rows: dict[Any, pa.Table]) -> dict[str, Any]:
    """Pictures of equal bytes: groups of them, samples in these beyond the first, and those that are in both splits;
    how many groups stand under several captions, as a placeholder for lost pictures does, and the largest groups.
    """
    made = {
        split: table.filter(pc.equal(table["outcome"], OK)).select(["key", "sha256"]) for split, table in rows.items()
    }
    every = pa.concat_tables(made.values())
    groups = every.group_by("sha256").aggregate([("key", "count")])
    several = groups.filter(pc.greater(groups["key_count"], 1))
    twice = every.filter(pc.is_in(every["sha256"], value_set=several["sha256"].combine_chunks()))
    captions = pa.concat_tables(_captions(folder, split, twice["key"]) for split in SPLITS)
    under = twice.join(captions, "key").group_by("sha256").aggregate([("key", "count"), ("caption", "count_distinct")])
    largest = under.sort_by([("key_count", "descending"), ("sha256", "ascending")]).slice(0, EXAMPLES).to_pylist()
    shared = pc.is_in(made["val"]["sha256"], value_set=made["train"]["sha256"].combine_chunks())
    return {
        "groups": len(several),
        "beyond_the_first": len(twice) - len(several),
        "in_both": pc.sum(shared).as_py() or 0,
        "under_several_captions": pc.sum(pc.greater(under["caption_count_distinct"], 1)).as_py() or 0,
        "most_often": [
            {"sha256": line["sha256"], "samples": line["key_count"], "captions": line["caption_count_distinct"]}
            for line in largest
        ],
    }


def _captions(folder: Path, split: Any, keys: pa.ChunkedArray) -> pa.Table:
    """Of the listed items with these keys."""
    wanted = pc.field("key").isin(keys.combine_chunks())
    return pq.read_table(list_path(folder / "lists", split), columns=["key", "caption"], filters=wanted)


def duplicates(folder: Path) -> set[str]:
    """The keys of samples whose bytes an earlier one has, train before val."""
    seen: set[str] = set()
    keys = set()
    for split in SPLITS:
        rows = read_rows(folder / split, ["key", "outcome", "sha256"])
        for row in rows.filter(pc.equal(rows["outcome"], OK)).to_pylist():
            if row["sha256"] is None:  # removed, and its shard made again since
                continue
            if row["sha256"] in seen:
                keys.add(row["key"])
            seen.add(row["sha256"])
    return keys


def card_lines(folder: Path) -> Iterator[str]:
    """What a terminal shows of it; nothing where it has none."""
    card = read_json(folder / CARD)
    if card is None or card.get("format") != FORMAT:
        return
    yield _counts(card)
    for outcome, line in card["outcomes"].items():
        if outcome != OK:
            some = f" ({'; '.join(map(printable, line['some']))})" if line["some"] else ""
            yield f"  {line['items']:,} {printable(outcome)}{some}"
    yield from (f"  {printable(note)}" for note in card["notes"])
    yield from (f"  {line}" for line in (enlarged(card), equal(card)) if line)


def card_facts(card: dict[str, Any]) -> dict[str, str]:
    """What a page and Prefect's UI show of it in a table. Text from anyone is printable, not yet escaped."""
    stored = (
        f"{size(state['bytes'])} {place} in {state['shards']:,} shard{'s' * (state['shards'] != 1)}"
        for place, state in _data(card)
    )
    facts = {
        "Samples": _counts(card),
        "Stored": "; ".join(stored),
        "As it came": size(card["bytes_as_they_came"]),
        "Smaller than a stage": enlarged(card) or "none",
        "Equal pictures": equal(card) or "none",
        "Notes": "; ".join(card["notes"]),
        **_how(card["made"]),
        "Licence": card["licence"],
        "What it covers": card["terms"],
        "Credit": card["credit"],
        "Digests": "; ".join(
            f"{place} {state['digest'][:12]}, revision {state['revision']}" for place, state in _data(card)
        ),
    }
    return {what: printable(text) for what, text in facts.items() if text}


def _how(made: dict[str, Any]) -> dict[str, str]:
    """When a set was made, from what and by what; a set of an earlier version knows less of it."""
    when = (
        datetime.fromtimestamp(made["finished_s"], UTC).strftime("%Y-%m-%d %H:%M UTC") if "finished_s" in made else ""
    )
    source = made.get("source") or {}
    kind = source.get("kind", source.get("source", ""))
    tiers = [
        f"squares of {tier['px']} px ({tier['image_ext']})"
        if tier["px"]
        else "originals as they came, without metadata"
        for tier in made.get("tiers", ())
    ]
    return {
        "Made": when,
        "Made from": ", ".join(filter(None, (kind, made.get("made_from", "")))),
        "Tiers": "; ".join(tiers),
        "Resized by": made.get("resized_by", ""),
        "Made with": ", ".join(f"{name} {version}" for name, version in made.get("made_with", {}).items()),
    }


def _data(card: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return list(card["data"].items())


def _counts(card: dict[str, Any]) -> str:
    samples = card["samples"]
    share = sum(samples.values()) / card["listed"] if card["listed"] else 0
    line = f"{samples['train']:,} to train on, {samples['val']:,} held out: {share:.1%} of {card['listed']:,} listed"
    return line + (f" ({card['published']:,} as published)" if card["published"] else "")


def enlarged(card: dict[str, Any]) -> str:
    """How many pictures are smaller than a stage of the paper, or a tier, needs."""
    total = sum(card["samples"].values())
    parts = [f"{count:,} ({count / total:.0%}) below {px} px" for px, count in card["enlarged"].items() if count]
    return f"{', '.join(parts)}: enlarged where a stage is larger" if parts else ""


def equal(card: dict[str, Any]) -> str:
    """How many pictures are there twice, and what that may mean."""
    found = card["equal_bytes"]
    if not found["groups"]:
        return ""
    line = f"equal bytes: {found['beyond_the_first']:,} beyond the first"
    if found["under_several_captions"]:
        most = max(line["samples"] for line in found["most_often"])
        line += f", {found['under_several_captions']:,} under several captions (the commonest {most:,} times)"
    return f"{line}; {found['in_both']:,} of those held out are trained on, too"
