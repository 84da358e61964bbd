"""The folder of all data sets: which sets there are, what each was made from, and what was removed from its name.

A set is ``NAME-<12 hex digits of its recipe's digest>/{train,val}``; while it is made, the folder ends in ``.part``. A
finished set is never made into another: other settings or another source are another folder. A folder put in place by
hand is a set of NAME if it is called NAME, or NAME-anything and its manifests say that name.

``NAME.removed.json`` beside the sets has whatever was removed from any set of that name, {"format": 2, "removed": {key:
{"sha256": of the bytes as they came, "url": where from, as far as the samples' .json said it}}}: every later set is
made without it (preprocessing/remove.py:removal_rule says what that is). In format 1 the sha256 was of the stored
pictures.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from preprocessing.manifest import digest, read_json, samples_left, write_json
from preprocessing.pack.lists import PLAN, SPLITS
from preprocessing.pack.rows import OK, read_rows
from preprocessing.pack.shards import Recipe
from preprocessing.remove import IDENTITY, LIST, Removed, removal_rule
from preprocessing.sources.listing import share_for

RECIPE, CLEARED, CARD, PAGE = "recipe.json", "cleared.json", "card.json", "card.html"
DROPPED = "dropped.json"  # keys of duplicates that were left out: no removals, another set may have them
FORMERLY = {"openmoji": ("openmoji-people-64",)}  # names that data sets had in earlier versions


def recipe_folder(root: Path, recipe: Recipe) -> Path:
    """Where the set of a recipe lies, or would."""
    return root / f"{recipe.name}-{recipe.digest[:12]}"


def made_set(root: Path, recipe: Recipe, first_inputs: dict[str, list[str]]) -> Path | None:
    """The finished set of a recipe. ``first_inputs``: name -> what the manifests of both splits of a set of the first
    format would say that it was made from; such a set is as good.
    """
    folder = recipe_folder(root, recipe)
    if is_finished(folder):
        return folder
    for name, inputs in first_inputs.items():
        for old in finished_sets(root, name):
            if [(read_json(old / split / "manifest.json") or {}).get("inputs") for split in SPLITS] == inputs:
                return old
    return None


def is_finished(folder: Path) -> bool:
    """Whether both splits have their manifests; one that is torn is as good as lost."""
    making_or_unmaking = folder.name.endswith((".part", ".deleted"))
    return not making_or_unmaking and all(read_json(folder / split / "manifest.json") for split in SPLITS)


def unfinished_folder(root: Path, recipe: Recipe) -> Path:
    """Where the set of a recipe is made: NAME.part, or its own folder where a finished set lost a manifest. Raises
    ValueError where such a folder does not hold what the manifest could be made from.
    """
    folder = recipe_folder(root, recipe)
    if not folder.exists():
        return folder.with_name(folder.name + ".part")
    said = read_json(folder / RECIPE) or {}
    wanted = json.loads(json.dumps(asdict(recipe)))  # as it was written
    if not is_finished(folder) and ({**said, **wanted} != said or read_json(folder / "lists" / PLAN) is None):
        raise ValueError(
            f"{folder} has lost a manifest, and {RECIPE} or lists/{PLAN}, which it could be made from: restore them, "
            "or move it away to have the set made anew"
        )
    return folder


def finished_sets(root: Path, name: str) -> list[Path]:
    """The finished sets of a name, the oldest first."""
    names = names_of(name)
    named = [path for path in root.glob("*") if path.name in names or any(_says(path, name) for name in names)]
    return sorted(filter(is_finished, named), key=_finished_at)


def emptied(folder: Path) -> str:
    """Why a finished set is of no use: a removal left nothing of a split; "" where it is."""
    for split in SPLITS:
        manifest = read_json(folder / split / "manifest.json")
        if manifest is not None and not samples_left(manifest):
            advice = f"list others for `mdm data {name_of(folder)}` (--limit, --held-out, --source)"
            return f"{folder / split} has no sample that was not removed: {advice}"
    return ""


def too_few_held_out(folder: Path, least: int) -> str:
    """Why a finished set cannot be measured: fewer samples than that are left of what it holds out; "" where it can."""
    manifests = {split: read_json(folder / split / "manifest.json") for split in SPLITS}
    there = {split: samples_left(manifest) for split, manifest in manifests.items() if manifest is not None}
    if there.get("val", least) >= least:  # one that is lost is said where it is read
        return ""
    said, name = f"{folder.name} holds out {there['val']} samples, at least {least} are measured", name_of(folder)
    if (lacking := least + 1 - sum(there.values())) > 0:
        return (
            f"{said}: add at least {lacking} more pictures that can be read, and run `mdm data {name} --source …` again"
        )
    keys = [key for split in SPLITS for key in _usable(folder / split)]
    share = f"{share_for(keys, least):g}" if keys else "SHARE"
    return f"{said}: hold out more of them, by `mdm data {name} --source … --held-out {share}`"


def _usable(split: Path) -> list[str]:
    """The keys of its samples, as far as its rows say it; a set that was put there by hand has none."""
    gone = set((read_json(split / LIST) or {"keys": []})["keys"])
    rows = read_rows(split, ["key", "outcome"]).to_pylist()
    return [row["key"] for row in rows if row["outcome"] == OK and row["key"] not in gone]


def folders_of(folder: Path) -> list[Path]:
    """Every folder of a finished set that has a manifest: its splits, and their other tiers."""
    found = []
    for split in SPLITS:
        tiers = (read_json(folder / split / "manifest.json") or {}).get("tiers", {})
        found += [folder / split, *(folder / split / tier for tier in tiers)]
    return found


def names_of(name: str) -> tuple[str, ...]:
    """A data set's name, and those that it had."""
    return (name, *FORMERLY.get(name, ()))


def newest_set(root: Path, name: str, options: dict[str, Any] | None = None) -> Path:
    """What a name means, or a name with options. Raises ValueError where it has no finished set."""
    found = finished_sets(root, name)
    if options is not None:
        found = [folder for folder in found if _options(folder) == options]
    if not found:
        given = {f"--{field.replace('_', '-')}": value for field, value in (options or {}).items() if value}
        asked = [field if value is True else f"{field} {value:g}" for field, value in given.items()]
        command = " ".join(["mdm data", name, "--source …", *asked])
        raise ValueError(f"no such finished data set {name} or {name}-… in {root}: `{command}` makes it")
    return found[-1]


def _options(folder: Path) -> dict[str, Any]:
    """What a set was asked for with."""
    recipe = read_json(folder / RECIPE) or {}
    return {**recipe.get("options", {}), "drop_duplicates": recipe.get("drop_duplicates", False)}


def current_name(name: str) -> str:
    """What a data set is called now that had this name in an earlier version."""
    return next((current for current, former in FORMERLY.items() if name in former), name)


def name_of(folder: Path) -> str:
    """The name that a set belongs to."""
    said = (read_json(folder / "train" / "manifest.json") or {}).get("name")
    return said if isinstance(said, str) and folder.name.startswith(f"{said}-") else folder.name


def set_name(root: Path, name: str) -> str:
    """The data set that a name means: a set's folder means its data set."""
    return name_of(root / name) if is_finished(root / name) else name


def _says(folder: Path, name: str) -> bool:
    """Others' sets, which this user may not read perhaps, are not opened."""
    return folder.name.startswith(f"{name}-") and folder.name != name and name_of(folder) == name


def _finished_at(folder: Path) -> float:
    said = (read_json(folder / RECIPE) or {}).get("finished_s")
    return said if isinstance(said, float) else (folder / "val" / "manifest.json").stat().st_mtime


def removals(root: Path, name: str) -> Removed:
    """All that was ever removed from sets of a name. Raises ValueError where the list cannot be read."""
    known: Removed = {}
    name = set_name(root, name)
    for path in (removal_list(root, former) for former in names_of(name)):
        listed = read_json(path)
        if path.exists() and (listed is None or listed.get("format") not in (1, 2)):
            raise ValueError(f"{path} is damaged or of another version: what was removed would come back; restore it")
        listed = listed or {"format": 2, "removed": {}}
        fields = IDENTITY if listed["format"] == 2 else ("url",)  # no sample's .json has the sha256 of format 1
        for key, about in listed["removed"].items():
            known[key] = {field: about[field] for field in fields if field in about}
    listed_too = removal_rule((), dict(known))
    for folder in finished_sets(root, name):  # removed before there was a list, or while it was elsewhere
        dropped = set((read_json(folder / DROPPED) or {"keys": []})["keys"])
        for split in SPLITS:
            record = read_json(folder / split / LIST) or {"keys": []}
            for key in record["keys"]:
                about = record.get("known", {}).get(key, {})
                if key not in dropped and not listed_too({"key": key, **{f: v[0] for f, v in about.items() if v}}):
                    known.setdefault(key, about)
    return known


def removal_list(root: Path, name: str) -> Path:
    return root / f"{name}.removed.json"


def write_removals(root: Path, name: str, removed: Removed) -> None:
    write_json(removal_list(root, name), {"format": 2, "removed": dict(sorted(removed.items()))})


def is_cleared(folder: Path, removed: Removed) -> bool:
    """Whether a set was made or left without everything in a list of removals, and its lists forgot that."""
    return not removed or read_json(folder / CLEARED) == _cleared(removed)


def mark_cleared(folder: Path, removed: Removed) -> None:
    if removed:
        write_json(folder / CLEARED, _cleared(removed))


def _cleared(removed: Removed) -> dict[str, Any]:
    return {
        "removed": digest(removed),
        "forgotten": True,
    }  # sets of an earlier version are cleared again, of their lists
