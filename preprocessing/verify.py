"""A finished set as a whole, and every picture decoded: what no digest of one folder can tell."""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from preprocessing.manifest import read_json, read_manifest, verify_dataset
from preprocessing.pack.lists import PLAN, SPLITS
from preprocessing.pack.rows import check_rows
from preprocessing.remove import LIST
from preprocessing.sets import DROPPED, RECIPE, folders_of


def verify_set(folder: Path) -> None:
    """Compare every folder of a set with its manifest, its tiers with one another, and its shards with their rows.

    Raises ValueError naming the first file that differs.
    """
    parts = folders_of(folder)
    for path in (folder / RECIPE, folder / DROPPED, folder / "lists" / PLAN, *(part / LIST for part in parts)):
        if path.exists() and read_json(path) is None:  # what nothing makes again, and is read as if there were none
            raise ValueError(f"{path} is torn: restore it, or move {folder} away to have the set made anew")
    for part in parts:
        verify_dataset(part)
    plan = read_json(folder / "lists" / PLAN)  # none: an earlier version, or somebody else, made it
    for split in SPLITS:
        manifest = read_manifest(folder / split)
        for tier, wanted in manifest.get("tiers", {}).items():
            if read_manifest(folder / split / tier)["digest"] != wanted:
                raise ValueError(
                    f"{folder / split / tier} is not the one that {folder / split} was made with (its digest differs): "
                    "delete it and make the shards again"
                )
        if plan is not None:
            check_rows(folder, split, plan, {shard["file"]: shard["samples"] for shard in manifest["shards"]})


def decode_all(
    folder: Path, read_rgb: Callable[[bytes], NDArray[np.uint8]], progress: Callable[[int], object] = lambda n: None
) -> None:
    """Raises ValueError naming (the first of) the samples that cannot be read, or have another size than the set's."""
    manifest = read_manifest(folder)
    px, wrong = manifest["resolution_px"], []
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        spans = np.load(path.with_suffix(".idx.npy"))
        with path.open("rb") as tar, ThreadPoolExecutor(2) as pool:  # decoders let go of the interpreter

            def look(row: NDArray[np.int64], path: Path = path, file: int = tar.fileno()) -> str:
                *images, text, meta = (os.pread(file, int(length), int(offset)) for offset, length in row)
                try:
                    text.decode()
                    found = {read_rgb(image).shape for image in images}
                    if px and found != {(px, px, 3)}:
                        raise ValueError(f"its pictures are {found}, not {px} x {px} px")
                except ValueError as error:
                    return f"{path}: {json.loads(meta).get('key')!r}: {error}"
                return ""

            for line in pool.map(look, (row for row in spans if row.any())):  # the others were removed
                wrong += [line] if line else []
                progress(1)
    if wrong:
        more = f" (and {len(wrong) - 1:,} more)" if len(wrong) > 1 else ""
        raise ValueError(f"{wrong[0]}{more}: take them out (`mdm data NAME --remove FILE`), or make the set anew")
