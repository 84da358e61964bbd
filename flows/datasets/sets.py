"""The data sets of this MDM_HOME: how large each is, who uses it, and which nobody does."""

import shutil
import stat
import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path

from flows.datasets.parts import locks_folder, part_lock, set_lock
from flows.home import Trouble, datasets, home
from mdm.data.leases import live, names
from mdm.data.tars import load_manifest
from preprocessing.catalogue import CATALOGUE, find
from preprocessing.items import printable
from preprocessing.manifest import read_json, read_manifest
from preprocessing.sets import CARD, RECIPE, SPLITS, current_name, finished_sets, is_finished, name_of, newest_set
from preprocessing.units import size

WIDTH = 110


@dataclass(frozen=True)
class Entry:
    """One folder below MDM_HOME/datasets."""

    folder: Path
    name: str  # of its data set
    samples: str  # train + val
    made_of: str  # the share of listed items that became samples
    revision: int
    digest: str  # of train
    size_bytes: int
    users: str  # living ones, and the runs and released files that name it
    ours: bool  # made here, so that it can be made again

    def line(self) -> str:
        state = f"digest {self.digest[:12]}  revision {self.revision}  " if self.digest else ""
        users = self.users or ("unused" if self.ours else "unused, put here by hand")
        return f"{self.folder.name:28} {self.samples:>12} {self.made_of:>5} {size(self.size_bytes):>11}  {state}{users}"


def list_sets() -> list[Entry]:
    """Every data set, and what is left of unfinished ones."""
    runs = {f"{kind} {run.name}": sets_of_run(run) for kind, run in runs_here()}
    folders = (path for path in datasets().glob("*") if path.is_dir() and not path.name.endswith(".locks"))
    return [_entry(folder, runs) for folder in sorted(folders)]


def runs_here() -> list[tuple[str, Path]]:
    """Kind and folder of every run, and of every file of the authors' that was measured."""
    folders = {"released": home() / "released", "run": home() / "runs"}
    return [(kind, run) for kind, folder in folders.items() for run in sorted(folder.glob("*"))]


def _finished_here() -> Iterator[Path]:
    """The finished sets that this user may read: in a shared MDM_HOME others may have theirs for themselves."""
    for folder in sorted(datasets().glob("*")):
        with suppress(PermissionError):
            if is_finished(folder):
                yield folder


def _size(path: Path) -> int:
    """Bytes of a file; 0 for a folder, and for what went while it was listed: who uses a set renews its lease."""
    try:
        status = path.stat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _entry(folder: Path, runs: dict[str, set[str]]) -> Entry:
    try:
        return _read_entry(folder, runs)
    except PermissionError:
        return Entry(folder, folder.name, "unreadable", "", 0, "", 0, "another user's", False)


def _read_entry(folder: Path, runs: dict[str, set[str]]) -> Entry:
    size_bytes = sum(map(_size, folder.rglob("*")))
    using = [name for name, sets in runs.items() if folder.name in sets]
    users = ", ".join([*filter(None, [names(live(folder, "use"))]), *using])
    recipe = read_json(folder / RECIPE) or {}
    name = recipe.get("name") or name_of(folder)
    if not is_finished(folder):
        ours = folder.name.endswith((".part", ".deleted"))
        return Entry(folder, name, "unfinished", _progress(folder), 0, "", size_bytes, users, ours)
    try:
        splits = [read_manifest(folder / split) for split in SPLITS]
    except ValueError:  # the readers say what is wrong
        return Entry(folder, name, "damaged", "", 0, "", size_bytes, users, False)
    counts = [m["samples"] - sum(len(shard.get("removed", ())) for shard in m["shards"]) for m in splits]
    samples = " + ".join(f"{count:,}" for count in counts)
    revision = max(manifest.get("revision", 0) for manifest in splits)
    listed = sum(((read_json(folder / "lists" / "plan.json") or {}).get("items") or {}).values())
    made_of = f"{sum(counts) / listed:.0%}" if listed else ""
    return Entry(folder, name, samples, made_of, revision, splits[0]["digest"], size_bytes, users, bool(recipe))


def _progress(folder: Path) -> str:
    """The share of an unfinished set's shards that are there; "" before its list is made."""
    plan = read_json(folder / "lists" / "plan.json") or {}
    total = sum(-(-count // plan["per_shard"]) for count in plan.get("items", {}).values())
    there = sum(1 for split in SPLITS for _ in (folder / split).glob("*.done.json"))
    return f"{there / total:.0%}" if total else ""


def under_way(folder: Path) -> str:
    """That a set was begun, where it was, as the end of a line."""
    part = folder.with_name(folder.name + ".part")
    return f", begun: {_progress(part) or '0%'} of its shards are there" if part.exists() else ""


def overview() -> Iterator[str]:
    """What can be made and of what, and below each name the sets that are here, in lines of ``WIDTH`` characters."""
    for line in _overview():
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        yield from textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _overview() -> Iterator[str]:
    here: dict[str, list[Entry]] = {}
    for entry in list_sets():
        here.setdefault(current_name(entry.name), []).append(entry)
    for name in [*CATALOGUE, *sorted(set(here) - set(CATALOGUE))]:
        row = find(name) if name in CATALOGUE else None
        yield f"{name}: {row.summary if row else _summary(here[name])}"
        yield from (f"  {entry.line()}" for entry in here.get(name, []))
        if name not in here and row is not None:
            yield f"  not here: `mdm data {name}{' --source PATH`: ' + row.wants if row.wants else '` makes it'}"
    yield "your own pictures: `mdm data NAME --source FOLDER`, then `mdm run tiny --set data.name=NAME`"


def _summary(entries: list[Entry]) -> str:
    """Of an own set: what its card says."""
    cards = [read_json(entry.folder / CARD) or {} for entry in entries if entry.digest]
    return printable(next((str(card["summary"]) for card in cards if "summary" in card), "your own"))


def did_you_mean(name: str, *others: str) -> str:
    """The data set (or the other name) that a name without one is nearly like, as the end of a line; "" for none."""
    here = {name_of(folder) for folder in _finished_here()}
    known = {other.lower(): other for other in sorted({*CATALOGUE, *here, *others} - {name})}
    close = get_close_matches(name.lower(), known, n=1, cutoff=0.75)
    return f"; did you mean {known[close[0]]}?" if close else ""


def sets_named(name: str) -> list[Path]:
    """The finished sets of a name, the oldest first. Raises ValueError where there is none."""
    if not (found := finished_sets(datasets(), name)):
        raise ValueError(f"there is no finished data set {name} in {datasets()}{did_you_mean(name)}")
    return found


def sets_of_run(run: Path) -> set[str]:
    """The names of the folders that a run's trainings and samples read, moved-aside ones included.

    A run that has not come so far means the newest set of its preset's name.
    """
    found = set(_named(run))
    if not found:
        data = (read_json(run / "config.json") or {}).get("data")
        with suppress(ValueError, KeyError, TypeError):  # no such set, or another program's file
            found = {newest_set(datasets(), data["name"]).name}  # type: ignore[index]
    return found


def _named(run: Path) -> Iterator[str]:
    training = {"train_data": "train_digest", "val_data": "val_digest"}
    places = ("", "*/", "evaluations/*/*/*/", "evaluations/*/*/*/parts/*/")
    for pattern, fields in (("job.json", training), ("generate.json", {"data": "data_digest"})):
        for path in chain.from_iterable(run.glob(f"{where}{pattern}") for where in places):
            job = read_json(path) or {}
            for split, pinned in ((job.get(field), job.get(digest, "")) for field, digest in fields.items()):
                if isinstance(split, str):
                    yield (split_folder(split, pinned) or Path(split)).parent.name


def split_folder(split: str, pinned: str) -> Path | None:
    """The folder of a split that a job names, wherever MDM_HOME lies now: what has the pinned digest, below datasets()
    under its name or another, or, unless other data has its name there, where it was. None where it is gone.
    """
    was, here = Path(split), _here(split)
    others = (folder / was.name for folder in _finished_here())
    elsewhere = () if (here / "manifest.json").exists() else (was,)  # in a copied home that is another home's
    for place in (here, *others, *elsewhere) if pinned else (was, here):  # in jobs of before only the place tells
        manifest = read_json(place / "manifest.json")
        if manifest is not None and pinned in ("", manifest.get("digest")):
            return place
    return None


def set_of_samples(data: str, pinned: str) -> Path:
    """The set of the split that samples were drawn of, also in an MDM_HOME that was moved.

    Raises ValueError where it is gone, or of another digest than the pinned one.
    """
    here = _here(data)
    folder = split_folder(data, pinned) or (here if here.exists() or not Path(data).exists() else Path(data))
    load_manifest(folder, pinned)
    return folder.parent


def told_outside(data: Path) -> Iterator[str]:
    """A line where a set is not of this MDM_HOME: a copied run reads it where the original did."""
    if data.parent != datasets():
        yield f"the data set is read outside MDM_HOME {home()}: {data}"


def _here(split: str) -> Path:
    return datasets() / Path(split).parent.name / Path(split).name


def prune(name: str | None, dry_run: bool, say: Callable[[str], None]) -> None:
    """Delete the sets that were made here, that no living user holds and nothing of ``runs_here`` names.

    Without a name only those that come with the packages, and what is left of deleted ones: any other took a source,
    or a weekend of downloads, and must be named. Links stay: what they lead to may be others', too. Raises ValueError
    for a name that no set here has.
    """
    freed = []
    named = [entry for entry in list_sets() if name in (None, current_name(entry.name))]
    if name is not None and not named:
        raise ValueError(f"there is no data set {name} in {datasets()}{did_you_mean(name)}")
    for entry in named:
        if name is not None and (entry.users or not entry.ours):
            say(
                f"{entry.folder.name} stays: "
                + (f"in use by {entry.users}" if entry.users else "it was put here by hand")
            )
        if entry.users or not entry.ours:
            continue
        if name is None and find(current_name(entry.name)).wants and not entry.folder.name.endswith(".deleted"):
            say(f"{entry.folder.name} stays: its source is not ours; `mdm data {entry.name} --prune` deletes it")
            continue
        if entry.folder.is_symlink():
            target = entry.folder.resolve()
            say(f"{entry.folder.name} stays: it is a link to {target}; where unused, remove both by hand")
            continue
        say(entry.line())
        try:
            if not dry_run:
                _remove(entry.folder)
            freed.append(entry.size_bytes)
        except (Trouble, OSError) as error:
            say(f"{entry.folder.name} stays: {error}")
    what = "would be deleted" if dry_run else "deleted"
    of = f", {size(sum(freed))}" if freed else ""
    say(f"{len(freed)} unused {'set' if len(freed) == 1 else 'sets'} {what}{of}")


def _remove(folder: Path) -> None:
    owner = folder.with_name(folder.name.removesuffix(".part"))
    with part_lock(owner, "shards", (1, 1)), set_lock(owner):
        gone = folder.with_name(folder.name.removesuffix(".deleted") + ".deleted")
        if users := live(folder, "use"):
            raise Trouble(f"{names(users)} began to use it")
        folder.rename(gone)  # so that a kill leaves no half set under its name
        shutil.rmtree(gone)
        shutil.rmtree(locks_folder(owner), ignore_errors=True)
