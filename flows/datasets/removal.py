"""The one change of a finished data set: samples taken out for good, after everyone who uses it has left."""

import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from flows.datasets.parts import Say, hold_in_turn
from flows.datasets.sets import runs_here, sets_named, sets_of_run
from flows.home import Trouble, datasets, home, mlflow_uri, without_secrets
from flows.launch import JobDied
from mdm.data.leases import give_way, live, removal
from preprocessing.forget import forget
from preprocessing.manifest import read_json, read_manifest
from preprocessing.pack.lists import count_listed
from preprocessing.remove import (
    Places,
    Removed,
    describe,
    find,
    finish,
    refuse_unknown,
    removed_keys,
    removed_places,
    take_out,
)
from preprocessing.sets import (
    PAGE,
    SPLITS,
    finished_sets,
    folders_of,
    is_cleared,
    mark_cleared,
    names_of,
    removals,
    set_name,
    write_removals,
)

EVALUATIONS = "evaluations"  # in a run's folder: PROTOCOL/POINT
WAIT_S = 900.0  # for a set's users to save and leave


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
    name = set_name(root, name)  # a set's folder is no name: what goes must stay away from later sets
    folders, listed = sets_named(name), removals(root, name)
    for folder in () if dry_run else folders:
        clear_set(folder, listed, say)  # what an earlier removal left to do
    found: set[str] = set()
    parts = list(chain.from_iterable(map(folders_of, folders)))
    for part in parts:
        there = find(part, keys)
        found |= set(there)
        for key, known in describe(part, there).items():
            before = listed.get(key, {})
            listed[key] = {what: sorted({*before.get(what, ()), *values}) for what, values in known.items()}
    refuse_unknown(root / name, keys - set(listed))
    for part in parts if dry_run else ():
        there, already = find(part, keys, listed), len(removed_keys(part) & keys)
        if there or already:
            say(f"{part.relative_to(root)}: {_count(there)} would be removed, {already} are already")
    if not dry_run and found:
        write_removals(root, name, listed)  # first: whatever is made from now on is made without them
    for folder in () if dry_run else folders:
        clear_set(folder, listed, say)
        for part in folders_of(folder):
            gone, revision = removed_keys(part) & keys, read_manifest(part).get("revision", 0)
            if gone:
                say(f"{part.relative_to(root)}: {len(gone)} of {len(keys)} keys removed; revision {revision}")


def clear_set(folder: Path, removed: Removed, say: Say) -> None:
    """Take everything that was removed from a name out of one of its sets, when its users have left."""
    if is_cleared(folder, removed):
        return
    with removal(folder, "mdm data --remove", say, WAIT_S), hold_in_turn(folder, say):
        (folder / PAGE).unlink(missing_ok=True)  # it may show them; cards.py makes another
        for part in folders_of(folder):
            finish(part)
            take_out(part, find(part, (), removed))
        forget(folder)
        mark_cleared(folder, removed)


def _count(found: Places) -> str:
    places = list(chain(*found.values()))
    return f"{len(places)} samples in {len({file for file, _ in places})} shards"


def kept_elsewhere(name: str, keys: set[str]) -> Iterator[str]:
    """A line for whatever was made from samples before they were removed and still shows them, and what to do.

    What cannot be read is named as well: it may show them.
    """
    yield from _unfinished(name, keys)
    folders = finished_sets(datasets(), name)
    gone = {folder.name: removed_places(read_manifest(folder / "train")) for folder in folders}
    shown: set[str] = set()
    for _, run in runs_here():
        try:
            if used := sets_of_run(run) & set(gone):
                for line in _of_run(run, keys, [gone[name] for name in used]):
                    shown.add(run.name)
                    yield line
        except OSError as error:
            yield _unread(Path(error.filename or run), error)
    yield from _of_reports(shown)


def _unfinished(name: str, keys: set[str]) -> Iterator[str]:
    """A line for each set under way whose list names some of these: its shards and downloads may hold them."""
    named = (f"{known}-{12 * '[0-9a-f]'}.part" for known in names_of(name))
    for part in sorted(chain.from_iterable(map(datasets().glob, named))):
        try:
            if count := count_listed(part / "lists", keys):
                holds = "it holds them until it is finished or deleted"
                yield f"{part}: an unfinished set that lists {count:,} of them: {holds}"
        except (OSError, ValueError) as error:
            yield _unread(part, error)


def _unread(path: Path, error: Exception) -> str:
    return f"{path} cannot be read ({type(error).__name__}: {error}): it may show them; look, and delete it if it does"


def _of_run(run: Path, keys: set[str], gone: list[set[int]]) -> Iterator[str]:
    showing, unread = _showing(run, keys, gone)
    yield from unread
    if not showing:
        return
    kept = ", ".join(sorted(showing))
    yield f"{run}: {kept} still show them: delete these, `mdm run` and `mdm evaluate` make anew what they need"
    tracked = {run, *((run / part).parent for part in showing if part.startswith(EVALUATIONS))}
    for folder in sorted(folder for folder in tracked if (folder / "mlflow.json").exists()):  # others never were
        yield from _of_mlflow(run, folder, showing)


def _of_mlflow(run: Path, folder: Path, showing: set[str]) -> Iterator[str]:
    """``folder``: the run's, or that of an evaluation of it, of which MLflow has a run for each checkpoint."""
    tracked = read_json(folder / "mlflow.json") or {}
    if isinstance(tracked.get("runs"), dict):  # as an earlier version wrote it
        for stage, number in tracked["runs"].items():
            if (stage or "report") in showing:
                yield f"{tracked.get('uri')}: so do the artifacts of run {number} ({run.name} {stage}): delete them"
        return
    named = f"mdm.run` = '{run.name}" if folder == run else f"mdm.run` LIKE '{run.name} %"
    tag = f"mdm.folder` = '{tracked['id']}" if "id" in tracked else named
    yield (  # MLflow is not asked: it may be away, and takes seconds to import
        f"MLflow ({without_secrets(mlflow_uri())}, or where {run.name} was tracked) may keep them as artifacts, "
        f"too: search its runs for tags.`{tag}', and delete the artifacts of what is found and of the runs nested "
        "below it"
    )


def _of_reports(shown: set[str]) -> Iterator[str]:
    """A line for each page on which several runs stand, some of which show them."""
    for records in sorted((home() / "reports").glob("*/*.json")):
        try:
            if shown & {run["run"] for run in json.loads(records.read_text())["runs"]}:
                yield f"{records.parent}: the page may still show them: delete it, `mdm report` makes it again"
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield _unread(records, error)


def _showing(run: Path, keys: set[str], gone: list[set[int]]) -> tuple[set[str], list[str]]:
    """The parts of a run, moved-aside folders included, that show samples with these keys, or training pictures of
    these numbers; and a line for each file that cannot be read. An evaluation's parts are its points.
    """
    showing: set[str] = set()
    unread: list[str] = []
    for pattern, shows, made in (
        ("captions.jsonl", _names, ("*/samples/[0-9]*.png", "report*/index.html")),  # the former by trainers
        ("cosines.jsonl", _names, ("report*/index.html",)),
        ("results.json", _measures, ("report*/index.html",)),
    ):
        for path in run.rglob(pattern):
            try:
                if shows(path, keys, gone):
                    showing |= {_part(run, file) for file in (path, *chain.from_iterable(map(run.glob, made)))}
            except (OSError, ValueError, KeyError, TypeError) as error:
                unread.append(_unread(path, error))
    return showing, unread


def _part(run: Path, file: Path) -> str:
    parts = file.relative_to(run).parts
    return "/".join(parts[: 3 if parts[0] == EVALUATIONS else 1])


def _names(lines: Path, keys: set[str], gone: list[set[int]]) -> bool:
    return any(json.loads(line)["key"] in keys for line in lines.read_text().splitlines())


def _measures(results: Path, keys: set[str], gone: list[set[int]]) -> bool:
    found = json.loads(results.read_text())
    if isinstance(found, list) or "displays" in found:  # an evaluation's numbers, which name no sample
        return False
    return any(
        sample["key"] in keys
        or sample.get("nearest_key") in keys
        or any(sample.get("nearest_index") in places for places in gone)
        for sample in found["samples"]
    )
