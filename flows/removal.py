"""The one change of a finished data set: samples taken out for good, after everyone who uses it has left."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain, product
from pathlib import Path
from typing import Any

from flows.home import Trouble, datasets, hold, home
from flows.launch import JobDied
from flows.sets import sets_of_run
from mdm.data.leases import give_way, live, removal
from preprocessing.manifest import read_json, read_manifest
from preprocessing.remove import (
    Places,
    describe,
    find,
    finish,
    refuse_unknown,
    removed_keys,
    removed_places,
    take_out,
)
from preprocessing.sets import SPLITS, Removed, finished_sets, is_cleared, mark_cleared, removals, write_removals

WAIT_S = 900.0  # for a set's users to save and leave
LOOK_S = 1.0

Say = Callable[[str], None]


@contextmanager
def hold_in_turn(folder: Path, say: Say) -> Iterator[None]:
    """Hold a data set's lock, after whoever has it now."""
    with ExitStack() as stack:
        told = False
        while True:
            try:
                stack.enter_context(hold(folder.with_name(folder.name + ".lock"), f"dataset {folder.name}"))
                break
            except Trouble as busy:
                if not told:
                    say(f"{busy}; going on when it is free")
                told = True
                time.sleep(LOOK_S)
        yield


def between_removals(data: Path, work: Callable[[], Any], say: Say) -> Any:
    """Do the work of a job that reads a data set; where it ended because of a removal of samples, do it again after."""
    while True:
        give_way(data, say)
        before = _revisions(data)
        try:
            return work()
        except (JobDied, Trouble):
            if not live(data, "removal") and _revisions(data) == before:
                raise


def _revisions(data: Path) -> list[int]:
    return [read_manifest(data / split).get("revision", 0) for split in SPLITS]


def remove_samples(name: str, keys: set[str], dry_run: bool, say: Say) -> None:
    """Take samples out of every set of a name, and out of all later ones. Again: it finishes what was cut off.

    Raises ValueError naming keys that no set has (then nothing was removed), or who does not leave a set.
    """
    root = datasets()
    folders, listed = finished_sets(root, name), removals(root, name)
    if not folders:
        raise ValueError(f"there is no finished data set {name} in {root}")
    for folder in () if dry_run else folders:
        clear_set(folder, listed, say)  # what an earlier removal left to do
    found: set[str] = set()
    for folder, split in product(folders, SPLITS):
        there = find(folder / split, keys)
        found |= set(there)
        if dry_run:
            already = len(removed_keys(folder / split) & keys)
            say(f"{folder.name}/{split}: {_count(there)} would be removed, {already} are already")
        for key, known in describe(folder / split, there).items():
            before = listed.get(key, {})
            listed[key] = {what: sorted({*before.get(what, ()), *values}) for what, values in known.items()}
    refuse_unknown(root / name, keys - set(listed))
    if not dry_run and found:
        write_removals(root, name, listed)  # first: whatever is made from now on is made without them
    for folder in () if dry_run else folders:
        clear_set(folder, listed, say)
        for split in SPLITS:
            gone, revision = removed_keys(folder / split) & keys, read_manifest(folder / split).get("revision", 0)
            say(f"{folder.name}/{split}: {len(gone)} of {len(keys)} keys removed; revision {revision}")


def clear_set(folder: Path, removed: Removed, say: Say) -> None:
    """Take everything that was removed from a name out of one of its sets, when its users have left."""
    if is_cleared(folder, removed):
        return
    with removal(folder, "mdm data --remove", say, WAIT_S), hold_in_turn(folder, say):
        for split in SPLITS:
            finish(folder / split)
            take_out(folder / split, find(folder / split, set(removed) - removed_keys(folder / split)))
        mark_cleared(folder, removed)


def _count(found: Places) -> str:
    places = list(chain(*found.values()))
    return f"{len(places)} samples in {len({file for file, _ in places})} shards"


def kept_elsewhere(name: str, keys: set[str]) -> list[str]:
    """A line for whatever was made from samples before they were removed and still shows them, and what to do."""
    lines = []
    folders = finished_sets(datasets(), name)
    gone = {folder.name: removed_places(read_manifest(folder / "train")) for folder in folders}
    for run in sorted((home() / "runs").glob("*")):
        used = sets_of_run(run) & set(gone)
        kept = sorted({path.relative_to(run).parts[0] for path in _showing(run, keys, [gone[name] for name in used])})
        if not used or not kept:
            continue
        lines.append(f"{run}: {', '.join(kept)} still show them: delete these, `mdm run` makes anew what it needs")
        tracked = read_json(run / "mlflow.json") or {}
        if "id" in tracked:
            below = f"run {run.name} with the tag mdm.folder = {tracked['id']}, and of those below it"
            lines.append(f"MLflow: so may the artifacts of {below}: delete these that show them")
        for stage, number in tracked.get("runs", {}).items():  # the first format
            if (stage or "report") in kept:
                lines.append(f"{tracked['uri']}: so do the artifacts of run {number} ({run.name} {stage}): delete them")
    return lines


def _showing(run: Path, keys: set[str], gone: list[set[int]]) -> Iterator[Path]:
    """Files of a run, moved-aside folders included, that show samples with these keys, or training pictures of these
    numbers.
    """
    for path in run.glob("*/*/captions.jsonl"):
        drawn = [json.loads(line) for line in path.read_text().splitlines()]
        if any(sample["key"] in keys for sample in drawn):
            yield path
            yield from run.glob("*/samples/[0-9]*.png")  # the sheets that trainers draw of held-out captions
    for path in run.glob("*/results.json"):
        for sample in (read_json(path) or {"samples": []})["samples"]:
            near = sample.get("nearest_key") in keys or any(sample.get("nearest_index") in places for places in gone)
            if sample["key"] in keys or near:
                yield path
                yield from run.glob("report*/index.html")
                break
