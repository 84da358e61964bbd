"""A data set out of its source: listed, packed, finished, by one process or by many parts, and never twice."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from joblib import cpu_count

from flows.cards import keep_card
from flows.home import datasets, hold, sources
from flows.removal import clear_set, hold_in_turn
from mdm.data.pixels import centre_crop, read_rgb
from preprocessing.catalogue import DataSet, Options, find
from preprocessing.download import Policy
from preprocessing.items import Source
from preprocessing.lists import SPLITS, write_lists
from preprocessing.making import Progress, Web, finish_set, is_whole, make_shards, unfinished
from preprocessing.manifest import make_folder, read_json, read_manifest, write_json
from preprocessing.openmoji import OpenMoji
from preprocessing.sets import (
    RECIPE,
    is_finished,
    made_set,
    mark_cleared,
    names_of,
    newest_set,
    recipe_folder,
    removals,
)
from preprocessing.shards import Pixels, Recipe

Say = Callable[[str], None]
PIXELS = Pixels(read_rgb, centre_crop)


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
    row = find(name, path)
    if row.wants and path is None:
        return None
    source = row.open(path, replace(options, work=sources() / name))
    return Opened(row, source, row.recipe(source, options), options)


def newest_made(name: str, options: Options) -> Path:
    """What a name with options means where its source is not at hand. Raises ValueError where no such set is made."""
    wanted = None if options == Options() else {"limit": options.limit, "held_out": options.held_out}
    return newest_set(datasets(), name, wanted)


def list_set(opened: Opened, say: Say) -> Path:
    """The folder of a set, finished or with its lists ready: what its source holds, item by item."""
    if (made := opened.made()) is not None:
        return made
    target = _unfinished(opened)
    with hold_in_turn(opened.folder, say):
        if (made := opened.made()) is not None:
            return made
        make_folder(target / "lists")
        write_json(target / RECIPE, _recipe_json(opened))
        write_lists(opened.source, target / "lists", opened.recipe.per_shard, opened.row.least_val)
    return target


def _unfinished(opened: Opened) -> Path:
    return opened.folder.with_name(opened.folder.name + ".part")


def _recipe_json(opened: Opened) -> dict[str, Any]:
    return {**asdict(opened.recipe), "options": {"limit": opened.options.limit, "held_out": opened.options.held_out}}


def count_items(folder: Path) -> int:
    """How many items a set's source listed."""
    plan = read_json(folder / "lists" / "plan.json")
    if plan is not None:
        return sum(plan["items"].values())
    return sum(read_manifest(folder / split)["samples"] for split in SPLITS)  # an earlier version kept no lists


def make_set(
    opened: Opened,
    progress: Progress,
    say: Say,
    part: tuple[int, int] = (1, 1),
    policy: Policy = Policy(),  # noqa: B008
) -> Path | None:
    """The set of a recipe, made unless it is there -> its folder; None: other parts are not made yet.

    It is made under another name and named last. Of several processes that want it, or one part of it, one makes it,
    the others wait. What is missing from a finished one is made again.
    """
    name, target = opened.row.name, list_set(opened, say)
    if is_finished(target) and not (target / "lists").exists():
        if not is_whole(target, opened.recipe):
            raise ValueError(f"{target} lacks shards, and an earlier version made it: copy them there, or move it away")
    else:
        with _turn(opened.folder, part, say):
            made = _make(opened, progress, say, part, policy)
        if made is None:
            return None
        target = made
    clear_set(target, removals(datasets(), name), say)  # also of what was removed while it was made
    keep_card(target, opened.row.about, say)
    return target


def _make(opened: Opened, progress: Progress, say: Say, part: tuple[int, int], policy: Policy) -> Path | None:
    target = opened.made() or _unfinished(opened)
    if is_finished(target) and is_whole(target, opened.recipe):
        progress(count_items(target))
        return target
    plan = read_json(target / "lists" / "plan.json") or {}
    with ExitStack() as stack:
        web = _web(opened, plan, policy, part, stack)
        make_shards(target, target / "lists", plan, opened.recipe, PIXELS, cpu_count(), progress, part, web)
    if unfinished(target, plan, opened.recipe):
        return None
    with nullcontext() if part == (1, 1) else hold_in_turn(opened.folder, say):
        return opened.made() if not target.exists() else _finish(opened, target, plan)


@contextmanager
def _turn(folder: Path, part: tuple[int, int], say: Say) -> Iterator[None]:
    """Hold what is to be made: the set, or one part of it."""
    if part == (1, 1):
        with hold_in_turn(folder, say):
            yield
    else:
        number, of = part
        with hold(folder.with_name(f"{folder.name}.{number}-of-{of}.lock"), f"part {number}/{of} of {folder.name}"):
            yield


def _web(opened: Opened, plan: dict[str, Any], policy: Policy, part: tuple[int, int], stack: ExitStack) -> Web | None:
    """How the URLs of a list are fetched; None where it has none."""
    if isinstance(opened.source, OpenMoji):
        address = stack.enter_context(opened.source.serve(opened.recipe.tiers[0].px))
        return Web(
            replace(policy, allow=(*policy.allow, address)), address=lambda key, _: f"http://{address}/{key}.png"
        )
    if not plan["urls"]:
        return None
    return Web(replace(policy, per_host=max(1, policy.per_host // part[1])), cpu_count())


def _finish(opened: Opened, target: Path, plan: dict[str, Any]) -> Path:
    """The manifests of a set whose shards are all there, and its name."""
    removed = removals(datasets(), opened.row.name)
    shutil.rmtree(target / "raw", ignore_errors=True)
    finish_set(target, plan, opened.recipe, opened.row.manifest_terms, removed)
    mark_cleared(target, removed)
    write_json(target / RECIPE, {**_recipe_json(opened), "finished_s": time.time()})
    return target if target == opened.folder else target.rename(opened.folder)
