"""``mdm status``: what is done, running and missing, read from the run folders alone."""

import json
from pathlib import Path

from flows.home import Trouble, home, run_folder
from flows.launch import is_locked
from flows.progress import clock


def list_runs() -> int:
    runs = sorted(p for p in (home() / "runs").glob("*") if (p / "config.json").exists())
    if not runs:
        print(f"no runs in {home() / 'runs'}; `mdm run tiny` makes one")
    for run in runs:
        states = [state for _, state, _ in stage_states(run)]
        print(f"{run.name:24} {sum(s == 'done' for s in states)} of {len(states)} stages done")
    return 0


def show_run(name: str) -> int:
    run = run_folder(name)
    if not (run / "config.json").exists():
        raise Trouble(f"{run} is no run; `mdm status` lists them")
    print(f"{run}{'  (a flow is at work)' if is_locked(run / 'flow.lock') else ''}")
    for stage, state, note in stage_states(run):
        print(f"  {stage:14} {state:8} {note}")
    return 0


def stage_states(run: Path) -> list[tuple[str, str, str]]:
    """(stage, done | running | begun | missing, note) in order."""
    names: list[str] = []
    for name, stage in json.loads((run / "config.json").read_text())["stages"].items():
        names += [f"grow-{name}"] * (stage.get("start") is not None) + [name]
    return [(name, *_state(run / name)) for name in [*names, "samples", "evaluation", "report"]]


def _state(folder: Path) -> tuple[str, str]:
    if (folder / "done.json").exists():
        return "done", clock(json.loads((folder / "done.json").read_text())["seconds"])
    if not folder.exists():
        return "missing", ""
    running = is_locked(folder / "lock") or is_locked(folder / "launch.lock")
    return ("running" if running else "begun"), _last_point(folder / "metrics.jsonl")


def _last_point(metrics: Path) -> str:
    if not metrics.exists():
        return ""
    lines = [json.loads(line) for line in metrics.read_text().splitlines() if line.endswith("}")]
    return f"{lines[-1]['nimg']:,} images seen" if lines else ""
