"""The folder of all data sets: which sets there are, what each was made from, and what was removed from its name.

A set is ``NAME-<12 hex digits of its recipe's digest>/{train,val}``; while it is made, the folder ends in ``.part``. A
finished set is never made into another: other settings or another source are another folder. A folder put in place by
hand is a set of NAME if it is called NAME, or NAME-anything and its manifests say that name.

``NAME.removed.json`` beside the sets has whatever was removed from any set of that name, {"format": 1, "removed": {key:
{"sha256": of the pictures' bytes, "url": where their metadata had one}}}: every later set is made without it.
"""

from pathlib import Path
from typing import Any

from preprocessing.manifest import digest, file_sha256, read_json, write_json
from preprocessing.shards import FORMAT, split_inputs
from preprocessing.sources import OpenMoji

SPLITS = ("train", "val")
RECIPE, CLEARED = "recipe.json", "cleared.json"

Removed = dict[str, dict[str, list[str]]]  # key -> what else its pictures can be known by


def recipe(source: OpenMoji, px: int, per_shard: int) -> dict[str, Any]:
    """Everything that decides a set's contents."""
    listed = [(d.key, d.caption, d.split, file_sha256(d.path)) for d in source.drawings]
    return {
        "format": FORMAT,
        "source": source.version,
        "people": source.people,
        "skin_tones": source.skin_tones,
        "val_fraction": source.val_fraction,
        "limit": source.limit,
        "resolution_px": px,
        "per_shard": per_shard,
        "list": digest(listed),
    }


def recipe_folder(root: Path, name: str, wanted: dict[str, Any]) -> Path:
    """Where the set of a recipe lies, or would."""
    return root / f"{name}-{digest(wanted)[:12]}"


def made_set(root: Path, name: str, source: OpenMoji, px: int, per_shard: int) -> Path | None:
    """The finished set of a recipe; one that an earlier version made at ``root / name`` is as good."""
    folder = recipe_folder(root, name, recipe(source, px, per_shard))
    if is_finished(folder):
        return folder
    inputs = [split_inputs(source, split, name, px, per_shard) for split in SPLITS]
    there = [(read_json(root / name / split / "manifest.json") or {}).get("inputs") for split in SPLITS]
    return root / name if there == inputs else None


def is_finished(folder: Path) -> bool:
    making_or_unmaking = folder.name.endswith((".part", ".deleted"))
    return not making_or_unmaking and all((folder / split / "manifest.json").exists() for split in SPLITS)


def finished_sets(root: Path, name: str) -> list[Path]:
    """The finished sets of a name, the oldest first."""
    named = [path for path in root.glob("*") if path.name == name or _says(path, name)]
    return sorted(filter(is_finished, named), key=_finished_at)


def newest_set(root: Path, name: str) -> Path:
    """What a name means. Raises ValueError where it has no finished set."""
    found = finished_sets(root, name)
    if not found:
        raise ValueError(f"no finished data set {name} or {name}-… in {root} (train/ and val/ with manifest.json)")
    return found[-1]


def name_of(folder: Path) -> str:
    """The name that a set belongs to."""
    said = (read_json(folder / "train" / "manifest.json") or {}).get("name")
    return said if isinstance(said, str) and folder.name.startswith(f"{said}-") else folder.name


def _says(folder: Path, name: str) -> bool:
    return folder.name != name and name_of(folder) == name


def _finished_at(folder: Path) -> float:
    said = (read_json(folder / RECIPE) or {}).get("finished_s")
    return said if isinstance(said, float) else (folder / "val" / "manifest.json").stat().st_mtime


def removals(root: Path, name: str) -> Removed:
    """All that was ever removed from sets of a name. Raises ValueError where the list cannot be read."""
    path = removal_list(root, name)
    listed = read_json(path)
    if path.exists() and (listed is None or listed.get("format") != 1):
        raise ValueError(f"{path} is damaged or of another version: what was removed would come back; restore it")
    known: Removed = {} if listed is None else dict(listed["removed"])
    for folder in finished_sets(root, name):  # removed before there was a list
        for split in SPLITS:
            for key in (read_json(folder / split / "removed.json") or {"keys": []})["keys"]:
                known.setdefault(key, {})
    return known


def removal_list(root: Path, name: str) -> Path:
    return root / f"{name}.removed.json"


def write_removals(root: Path, name: str, removed: Removed) -> None:
    write_json(removal_list(root, name), {"format": 1, "removed": dict(sorted(removed.items()))})


def is_cleared(folder: Path, removed: Removed) -> bool:
    """Whether a set was made or left without everything in a list of removals."""
    return not removed or (read_json(folder / CLEARED) or {}).get("keys") == digest(sorted(removed))


def mark_cleared(folder: Path, removed: Removed) -> None:
    if removed:
        write_json(folder / CLEARED, {"keys": digest(sorted(removed))})
