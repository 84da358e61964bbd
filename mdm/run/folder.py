"""Folders named by a count of images, ``nimg-…``: written whole or not at all, verified before use.

All that a training writes in several files (checkpoints, snapshots of averages) is written here: under a temporary
name, every file and then ``manifest.json`` with their sizes and sha256 on the disk, and renamed. Whatever else lies
beside them is somebody else's: neither read nor deleted.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mdm.files import sha256, sync, write_json

NAME = re.compile(r"nimg-([0-9]+)")
TEMPORARY = re.compile(r"nimg-[0-9]+(\.[0-9]+)?(\.old)?\.tmp")


def folder_of(parent: Path, nimg: int) -> Path:
    """What a folder of that count of images is called."""
    return parent / f"nimg-{nimg:012d}"


def nimg_of(folder: Path) -> int:
    """The images seen that a folder's name says."""
    named = NAME.fullmatch(folder.name)
    if named is None:
        raise ValueError(f"{folder} is not called nimg-NUMBER")
    return int(named[1])


def list_folders(parent: Path) -> list[Path]:
    """Those under their final names, fewest images first."""
    return sorted((p for p in parent.glob("nimg-*") if NAME.fullmatch(p.name) and p.is_dir()), key=nimg_of)


def write_folder(
    final: Path,
    attempt: int,
    facts: Mapping[str, Any],
    fill: Callable[[Path], None],
    may_write: Callable[[], None] = lambda: None,
) -> None:
    """Have ``fill`` write the files, add ``manifest.json`` with ``facts``, and give the folder its name.

    ``may_write`` is asked before anything is written and before the name is given; it raises where another attempt owns
    the run. Raises OSError where there is no room: what was there is there still, and the room is free again.
    """
    may_write()
    temporary = final.with_name(f"{final.name}.{attempt}.tmp")
    for leftover in final.parent.glob("nimg-*.tmp"):
        if TEMPORARY.fullmatch(leftover.name):
            shutil.rmtree(leftover, ignore_errors=True)
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        fill(temporary)
        files = {}
        for path in sorted(p for p in temporary.rglob("*") if p.is_file()):
            files[str(path.relative_to(temporary))] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
            sync(path)
        for inner in (p for p in temporary.rglob("*") if p.is_dir()):
            sync(inner)
        write_json(temporary / "manifest.json", {**facts, "files": files})
        sync(temporary)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    may_write()
    old = final.with_name(f"{final.name}.{attempt}.old.tmp")
    if final.exists():  # a damaged one, or of a stretch that was given up or is repeated
        final.rename(old)
    temporary.rename(final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """So that no half folder is ever seen under its name."""
    doomed = folder.rename(folder.with_name(f"{folder.name}.old.tmp"))
    shutil.rmtree(doomed, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the folder says of itself, {} where that cannot be read."""
    try:
        facts = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def find_damage(folder: Path) -> str | None:
    """What is wrong with a folder, or None. Reads all of it."""
    try:
        files = json.loads((folder / "manifest.json").read_text())["files"]
        for name, expected in files.items():
            path = folder / name
            if path.stat().st_size != expected["bytes"] or sha256(path) != expected["sha256"]:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None
