"""A set's data card: what became of every item, how large the pictures are, what is there twice, on whose terms."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from preprocessing.lists import PLAN, SPLITS
from preprocessing.manifest import read_json, write_json
from preprocessing.shards import OK, read_rows

CARD = "card.json"
SIDES_PX = (0, 16, 64, 128, 256, 512, 1024, 2048, 4096)  # where the histogram of short sides is cut
CHARS = (0, 1, 10, 20, 40, 80, 160, 320, 640)
DROPPED = "dropped: an earlier one has its bytes"
EXAMPLES = 5  # items named for each class of outcome


def write_card(folder: Path, about: dict[str, str], dropped: Collection[str] = ()) -> dict[str, Any]:
    """card.json of a set from its rows; ``about``: summary, licence, credit, terms; ``dropped``: keys of samples that
    were taken out because an earlier one has their bytes.
    """
    rows = {split: _without(read_rows(folder / split), dropped) for split in SPLITS}
    whole = pa.concat_tables(rows.values())
    made = whole.filter(pc.equal(whole["outcome"], OK))
    plan = read_json(folder / "lists" / PLAN) or {}
    card = {
        **about,
        "listed": len(whole),
        "samples": {split: len(table.filter(pc.equal(table["outcome"], OK))) for split, table in rows.items()},
        "outcomes": _outcomes(whole),
        "notes": plan.get("notes", []),
        "bytes_as_they_came": pc.sum(made["bytes"]).as_py() or 0,
        "short_side_px": _histogram(pc.min_element_wise(made["width"], made["height"]), SIDES_PX),
        "caption_chars": _histogram(made["caption_chars"], CHARS),
        "equal_bytes": _equal(rows),
    }
    write_json(folder / CARD, card)
    return card


def _without(rows: pa.Table, dropped: Collection[str]) -> pa.Table:
    """The rows, with an outcome of their own for those that were dropped."""
    gone = pc.is_in(rows["key"], value_set=pa.array(dropped, pa.string()))
    place = rows.schema.get_field_index("outcome")
    return rows.set_column(place, "outcome", pc.if_else(gone, DROPPED, rows["outcome"]))


def _outcomes(rows: pa.Table) -> dict[str, Any]:
    """Class -> how many items, and a few of them by key."""
    counts = rows.group_by("outcome").aggregate([("key", "count")]).to_pylist()
    found = {}
    for line in sorted(counts, key=lambda line: -line["key_count"]):
        some = rows.filter(pc.equal(rows["outcome"], line["outcome"])).slice(0, EXAMPLES)
        named = [f"{row['key']}: {row['detail']}" if row["detail"] else row["key"] for row in some.to_pylist()]
        found[line["outcome"]] = {"items": line["key_count"], "some": [] if line["outcome"] == OK else named}
    return found


def _histogram(values: Any, cuts: tuple[int, ...]) -> dict[str, int]:
    counts = {}
    for low, high in zip(cuts, (*cuts[1:], None), strict=True):
        inside = pc.greater_equal(values, low)
        if high is not None:
            inside = pc.and_(inside, pc.less(values, high))
        counts[f"{low}" if high is None else f"{low}-{high - 1}"] = pc.sum(inside).as_py() or 0
    return counts


def _equal(rows: dict[Any, pa.Table]) -> dict[str, int]:
    """Pictures of equal bytes: groups of them, samples in these beyond the first, and those that are in both splits."""
    made = {split: table.filter(pc.equal(table["outcome"], OK))["sha256"] for split, table in rows.items()}
    every = pa.table({"sha256": pa.chunked_array([c for column in made.values() for c in column.chunks], pa.string())})
    groups = every.group_by("sha256").aggregate([("sha256", "count")])["sha256_count"]
    several = groups.filter(pc.greater(groups, 1))
    shared = pc.sum(pc.is_in(made["val"], value_set=made["train"].combine_chunks())).as_py() or 0
    beyond = (pc.sum(several).as_py() or 0) - len(several)
    return {"groups": len(several), "beyond_the_first": beyond, "in_both": shared}


def duplicates(folder: Path) -> set[str]:
    """The keys of samples whose bytes an earlier one has, train before val."""
    seen: set[str] = set()
    keys = set()
    for split in SPLITS:
        rows = read_rows(folder / split, ["key", "outcome", "sha256"])
        for row in rows.filter(pc.equal(rows["outcome"], OK)).to_pylist():
            if row["sha256"] in seen:
                keys.add(row["key"])
            seen.add(row["sha256"])
    return keys


def card_lines(folder: Path) -> Iterator[str]:
    """What a terminal shows of it."""
    card = read_json(folder / CARD)
    if card is None:
        return
    samples = card["samples"]
    share = sum(samples.values()) / card["listed"] if card["listed"] else 0
    yield f"{samples['train']:,} to train on, {samples['val']:,} held out: {share:.1%} of {card['listed']:,} listed"
    for outcome, line in card["outcomes"].items():
        if outcome != OK:
            yield f"  {line['items']:,} {printable(outcome)} ({'; '.join(map(printable, line['some']))})"
    yield from (f"  {printable(note)}" for note in card["notes"])
    equal = card["equal_bytes"]
    if equal["groups"]:
        twice = f"{equal['beyond_the_first']:,} pictures have another one's bytes"
        yield f"  {twice}; {equal['in_both']:,} of those held out are trained on, too"


def printable(text: str) -> str:
    """Text from anyone, for a terminal: no control characters, none that turn the direction of writing."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
