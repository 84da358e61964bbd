"""``mdm status``: what is done, running and missing, read from the run folders alone."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.home import Trouble, datasets, home, run_folder
from flows.progress import clock
from mdm.data.tars import revision_of
from mdm.files import LocksRefused, is_locked
from mdm.structure import to_dict
from preprocessing.manifest import read_json
from preprocessing.units import size


def list_runs() -> int:
    runs = sorted(p for p in (home() / "runs").glob("*") if (p / "config.json").exists())
    if not runs:
        print(f"no runs in {home() / 'runs'}; `mdm run tiny` makes one")
    for run in runs:
        try:
            states = [state for _, state, _ in stage_states(run)]
        except Trouble as trouble:
            print(f"{run.name:24} {trouble}")
            continue
        print(f"{run.name:24} {sum(s == 'done' for s in states)} of {len(states)} stages done")
    for line in reference_lines():
        print(line)
    return 0


def reference_lines() -> Iterator[str]:
    """What the features of real images and of noise take that evaluations share, and which of them nobody will read."""
    folder = home() / "references"
    kept, unfinished = sorted(folder.glob("*.npy")), sorted(folder.glob("*.part"))
    if not kept and not unfinished:
        return
    yield f"{len(kept)} files of features in {folder}, {_took(folder)}: made again where they were deleted"
    for path in unfinished:
        state = "being made" if _is_held(path / "owner.lock") else "unfinished: the same evaluation goes on"
        yield f"  {path.name}  {_took(path)}  {state}"
    manifests = filter(None, (read_json(path) for path in datasets().glob("*/*/manifest.json")))
    here = [revision_of(manifest) for manifest in manifests if {"digest", "shards"} <= manifest.keys()]
    for path in kept:
        data = (read_json(path.with_suffix(".json")) or {}).get("data", [])
        if any(split not in here for split in data):
            yield f"  {path.name}  {_took(path)}  of data that is no more here, or has lost samples since"


def _took(path: Path) -> str:
    """On the disk. What goes while it is looked at takes nothing."""
    total = 0
    for file in [path, *path.rglob("*.npy")]:
        with contextlib.suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return size(total)


def show_run(name: str) -> int:
    run = run_folder(name)
    if not (run / "config.json").exists():
        raise Trouble(f"{run} is no run; `mdm status` lists them")
    states = stage_states(run)
    print(f"{run}{'  (a flow is at work)' if _is_held(run / 'flow.lock') else ''}")
    for stage, state, note in states:
        print(f"  {stage:14} {state:8} {note}")
    return 0


def stage_states(run: Path, stages: Mapping[str, Any] | None = None) -> list[tuple[str, str, str]]:
    """(stage, done | running | begun | missing, note) in order; of a preset's stages, or of those the run began with.

    Raises Trouble where the folder is not a run's.
    """
    names: list[str] = []
    for name, stage in (_stages(run) if stages is None else to_dict(stages)).items():
        names += [f"grow-{name}"] * (stage.get("start") is not None) + [name]
    return [(name, *_state(run / name)) for name in [*names, "samples", "evaluation", "report"]]


def _stages(run: Path) -> dict[str, dict[str, Any]]:
    config = read_json(run / "config.json")
    stages = None if config is None else config.get("stages")
    if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
        raise Trouble(f"{run / 'config.json'} is not of a run of this program")
    return stages


def _state(folder: Path) -> tuple[str, str]:
    marker = folder / "done.json"
    done = read_json(marker)
    if done is not None:
        return "done", clock(done.get("seconds", 0))
    if not folder.exists():
        return "missing", ""
    torn = f"{marker} is torn: made again by the next `mdm run`" if marker.exists() else ""
    running = _is_held(folder / "lock") or _is_held(folder / "launch.lock")
    return ("running" if running else "begun"), torn or _last_point(folder / "metrics.jsonl")


def _is_held(lock: Path) -> bool | None:
    """None: the file system has no locks, so whether it is at work is not known."""
    try:
        return is_locked(lock)
    except LocksRefused:
        return None


def _last_point(metrics: Path) -> str:
    """The newest whole line of the metrics."""
    if not metrics.exists():
        return ""
    for line in reversed(metrics.read_text(errors="replace").splitlines()):
        try:
            return f"{json.loads(line)['nimg']:,} images seen"
        except (ValueError, KeyError, TypeError):
            continue
    return ""
