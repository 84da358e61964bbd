"""Which weights were trained on samples that were removed since: a removal takes pictures, not what was learned."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from flows.home import datasets, home
from preprocessing.manifest import read_json, read_manifest
from preprocessing.remove import removed_keys, removed_since
from preprocessing.sets import finished_sets


def trained_on_removed(name: str) -> Iterator[str]:
    """A line for each checkpoint below MDM_HOME/runs that was trained on samples that a set of a name has no more.

    Which these are stands in the checkpoint: from which revision on its training, or that of the stage that it was
    grown from, read the training split.
    """
    splits = [folder / "train" for folder in finished_sets(datasets(), name)]
    by_digest = {read_manifest(split)["digest"]: split for split in splits if removed_keys(split)}
    for run in sorted((home() / "runs").glob("*")) if by_digest else ():
        for folder in sorted(chain.from_iterable(run.glob(f"{stage}checkpoints/nimg-*") for stage in ("", "*/"))):
            data = _since(run, folder)
            split = by_digest.get(data.get("digest", ""))
            count = 0 if split is None else removed_since(split, data["since"])
            begun = int(folder.name.removeprefix("nimg-")) > 0 or (split and _of_parent(run, folder, data))
            if count and begun:  # the first checkpoint of a stage that was not grown has seen no picture
                yield f"{folder.relative_to(home())}: trained on {count:,} samples that were removed since"


def _since(run: Path, checkpoint: Path) -> dict[str, Any]:
    """The set that a checkpoint was trained on, and the first of its revisions that the weights have seen."""
    data = (read_json(checkpoint / "state" / "state.json") or {}).get("data") or {}
    if not isinstance(data.get("revision"), int):
        return {}
    return {**data, "since": min([data.get("since", data["revision"]), *_of_parent(run, checkpoint, data)])}


def _of_parent(run: Path, checkpoint: Path, data: dict[str, Any]) -> list[int]:
    """The same of the checkpoints of the stage that this one was grown from, on the same data."""
    stage = checkpoint.parents[1].name
    start = (((read_json(run / "config.json") or {}).get("stages") or {}).get(stage) or {}).get("start") or {}
    parents = run.glob(f"{start['stage']}/checkpoints/nimg-*") if "stage" in start else ()
    found = (_since(run, parent) for parent in parents)
    return [there["since"] for there in found if there.get("digest") == data["digest"]]
