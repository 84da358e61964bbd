"""A data set out of its source: listed, packed, finished, by one process or by many parts, and never twice."""

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from imageio_ffmpeg import get_ffmpeg_version
from joblib import cpu_count

from flows.datasets.cards import keep_card
from flows.datasets.parts import Part, Say, at_work, hold_in_turn, in_turn, part_lock
from flows.datasets.removal import clear_set
from flows.home import datasets, sources
from mdm.data.pixels import FILTER, centre_crop, read_rgb
from preprocessing.catalogue import DataSet, Options, find
from preprocessing.fetch.download import Policy
from preprocessing.forget import forget
from preprocessing.items import Source
from preprocessing.manifest import make_folder, read_json, read_manifest, write_json
from preprocessing.pack import video
from preprocessing.pack.lists import PLAN, SPLITS, shard_numbers, shard_size, write_lists
from preprocessing.pack.making import Web, finish_set, is_whole, make_shards, missing_shards
from preprocessing.pack.shards import Pixels, Recipe, Shard
from preprocessing.pack.tally import Progress
from preprocessing.sets import (
    RECIPE,
    is_finished,
    made_set,
    mark_cleared,
    names_of,
    newest_set,
    recipe_folder,
    removals,
    unfinished_folder,
)
from preprocessing.sources.motion import Motion
from preprocessing.sources.openmoji import OpenMoji

PIXELS = Pixels(read_rgb, centre_crop)
NAMED = 8  # parts in one line


@dataclass(frozen=True)
class Opened:
    """A data set whose source is at hand."""

    row: DataSet
    source: Source
    recipe: Recipe
    options: Options

    @property
    def folder(self) -> Path:
        """Where the set of its recipe lies, or would."""
        return recipe_folder(datasets(), self.recipe)

    def made(self) -> Path | None:
        """The finished set, if it is there."""
        first = {}
        if isinstance(self.source, OpenMoji):  # alone it was made in the first format
            px, size = self.recipe.tiers[0].px, self.recipe.per_shard
            first = {name: self.source.first_inputs(name, px, size) for name in names_of(self.row.name)}
        return made_set(datasets(), self.recipe, first)


def open_source(name: str, options: Options = Options(), path: Path | None = None) -> Opened | None:  # noqa: B008
    """None where the set needs a source and none is at hand. Raises ValueError as the source does."""
    if path is None and (here := sources() / name).exists():
        path = here
    path = None if path is None else path.absolute()
    row = find(name, path)
    if row.wants and path is None:
        return None
    source = row.open(path, replace(options, work=sources() / name))
    return Opened(row, source, row.recipe(source, options), options)


def newest_made(name: str, options: Options) -> Path:
    """What a name with options means where its source is not at hand. Raises ValueError where no such set is made."""
    wanted = {field: getattr(options, field) for field in ("limit", "held_out", "drop_duplicates")}
    return newest_set(datasets(), name, None if options == Options() else wanted)


def list_set(opened: Opened, say: Say) -> Path:
    """The folder of a set, finished or with its lists ready: what its source holds, item by item."""
    if (made := opened.made()) is not None:
        return made
    with hold_in_turn(opened.folder, say):
        if (made := opened.made()) is not None:
            return made
        target = unfinished_folder(datasets(), opened.recipe)
        make_folder(target / "lists")
        write_json(target / RECIPE, _recipe_json(opened, target))
        if isinstance(opened.source, Motion):  # whose files are nobody's but ours
            opened.source.make()
        write_lists(opened.source, target / "lists", opened.recipe.per_shard, opened.row.least_val)
    return target


def _recipe_json(opened: Opened, target: Path) -> dict[str, Any]:
    """What recipe.json says; a set that is mended is as old as it was."""
    was = read_json(target / RECIPE) or {}
    options = {"limit": opened.options.limit, "held_out": opened.options.held_out}
    return {**was, **asdict(opened.recipe), "options": options}


def count_items(folder: Path, part: Part = (1, 1)) -> int:
    """How many items a set's source listed, of a part of its shards."""
    plan = read_json(folder / "lists" / PLAN)
    if plan is not None:
        return sum(shard_size(plan, *numbered) for numbered in shard_numbers(plan, part))
    return sum(read_manifest(folder / split)["samples"] for split in SPLITS)  # an earlier version kept no lists


def make_set(
    opened: Opened,
    progress: Progress,
    say: Say,
    part: Part = (1, 1),
    policy: Policy = Policy(),  # noqa: B008
) -> Path | None:
    """The set of a recipe, made unless it is there -> its folder; None: other parts are not made yet.

    It is made under another name and named last. Of several processes that want it, or one part of it, one makes it,
    the others wait. What is missing from a finished one is made again.
    """
    name, target = opened.row.name, list_set(opened, say)
    if is_finished(target) and is_whole(target, opened.recipe):
        if refused := sum(shard.refused(policy.allow) for shard in _shards(target, opened)):
            say(f"--allow names {refused:,} that were refused when {target.name} was made: to ask them, move it away")
        progress(count_items(target, part), "")
    elif is_finished(target) and not (target / "lists").exists():
        raise ValueError(
            f"{target} lacks shards, and the lists that they could be made from: copy the shards there, or move it away"
        )
    else:
        with ExitStack() as mine:
            mine.enter_context(in_turn(lambda: part_lock(opened.folder, "shards", part), say))
            made = _make(opened, progress, say, part, policy)
            if made is None:
                with hold_in_turn(opened.folder, say):
                    mine.close()  # of parts that end together, the last to come here finds no other at work
                    made = opened.made() or _name(opened, part, say)
        if made is None:
            return None
        target = made
    clear_set(target, removals(datasets(), name), say)  # also of what was removed while it was made
    keep_card(target, opened.row.about, say)
    return target


def _make(opened: Opened, progress: Progress, say: Say, part: Part, policy: Policy) -> Path | None:
    """The shards of a part -> the set's folder, where it has its name already."""
    made = opened.made()
    if made is not None and is_whole(made, opened.recipe):
        progress(count_items(made, part), "")
        return made
    target = made or unfinished_folder(datasets(), opened.recipe)
    plan = read_json(target / "lists" / PLAN)
    if plan is None:
        raise ValueError(
            f"{target / 'lists' / PLAN} is missing or torn, and the set lacks shards: restore it, or move {target} "
            "away to have the set made anew"
        )
    if made is not None:  # nobody may change a finished set while what it lacks is made again
        with hold_in_turn(opened.folder, say):
            _make_part(opened, target, plan, progress, part, policy)
            return _finish(opened, target, plan, part, say)
    for shard in _shards(target, opened):
        if shard.number % part[1] == part[0] - 1 and shard.refused(policy.allow):
            shard.forget()  # made under other rules
    _make_part(opened, target, plan, progress, part, policy)
    return None


def _name(opened: Opened, part: Part, say: Say) -> Path | None:
    """The set with its name, if it is whole, and nobody is at work on it: its folder must not go from under them."""
    if others := at_work(opened.folder, "shards"):
        say(f"this part is made; {', '.join(others)} at work: whoever ends last finishes the set")
        return None
    target = unfinished_folder(datasets(), opened.recipe)
    plan = read_json(target / "lists" / PLAN)
    return None if plan is None else _finish(opened, target, plan, part, say)


def _make_part(
    opened: Opened, target: Path, plan: dict[str, Any], progress: Progress, part: Part, policy: Policy
) -> None:
    with ExitStack() as stack:
        web = _web(opened, plan, policy, part, stack)
        make_shards(
            target,
            target / "lists",
            opened.source.root(),
            plan,
            opened.recipe,
            PIXELS,
            cpu_count(),
            progress,
            part,
            web,
        )


def _shards(folder: Path, opened: Opened) -> Iterator[Shard]:
    """All shards of a set that has its lists; those of an earlier version have none."""
    plan = read_json(folder / "lists" / PLAN)
    numbers = () if plan is None else shard_numbers(plan)
    return (Shard(folder, opened.recipe, split, number) for split, number in numbers)


def _web(opened: Opened, plan: dict[str, Any], policy: Policy, part: Part, stack: ExitStack) -> Web | None:
    """How the URLs of a list are fetched; None where it has none."""
    if isinstance(opened.source, OpenMoji):
        address = stack.enter_context(opened.source.serve(opened.recipe.tiers[0].px))
        return Web(
            replace(policy, allow=(*policy.allow, address)), address=lambda key, _: f"http://{address}/{key}.png"
        )
    if not plan["urls"]:
        return None
    return Web(replace(policy, per_host=max(1, policy.per_host // part[1])), cpu_count())


def _finish(opened: Opened, target: Path, plan: dict[str, Any], part: Part, say: Say) -> Path | None:
    """The manifests of a set, and its name, if its shards are all there."""
    if missing := missing_shards(target, plan, opened.recipe):
        say(f"this part is made; {_of_others(missing, part[1])}: whoever makes the last of them finishes the set")
        return None
    removed = removals(datasets(), opened.row.name)
    shutil.rmtree(target / "raw", ignore_errors=True)
    finish_set(target, plan, opened.recipe, opened.row.manifest_terms, removed)
    forget(target)
    mark_cleared(target, removed)
    write_json(target / RECIPE, {"finished_s": time.time(), **_how(opened, plan), **_recipe_json(opened, target)})
    return target if target == opened.folder else target.rename(opened.folder)


def _how(opened: Opened, plan: dict[str, Any]) -> dict[str, Any]:
    """What a set was made from and by, for its card."""
    libraries = ["numpy", "Pillow", "webdataset", "pyarrow"]
    if plan["urls"]:
        libraries.append("img2dataset")
    versions = {name: version(name) for name in libraries}
    if opened.row.clips:
        versions["ffmpeg"] = get_ffmpeg_version()
    source = opened.source
    return {
        "made_from": source.version if isinstance(source, OpenMoji | Motion) else str(source.root()),
        "made_with": versions,
        "resized_by": f"ffmpeg's {video.FILTER} filter, antialiased" if opened.row.clips else FILTER,
    }


def _of_others(missing: list[Shard], parts: int) -> str:
    """How many shards other parts still have to make, of which parts."""
    counts = sorted(Counter(shard.number % parts + 1 for shard in missing).items())
    said = ", ".join(f"{count:,} of part {number}/{parts}" for number, count in counts[:NAMED])
    more = f", … of {len(counts) - NAMED:,} more parts" if len(counts) > NAMED else ""
    return f"{len(missing):,} shards are missing ({said}{more})"
