"""What a run's stages took: time along a training from its metrics.jsonl, and what Tables 2 to 4 have of the paper's.

A training that went back to a checkpoint counts the branch that it kept.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from mdm.files import load_json
from mdm.network.costs import parameters
from mdm.presets import Preset, started_at


@dataclass(frozen=True)
class Pace:
    """Of one stage: seconds of training up to so many images, and where."""

    nimg: tuple[float, ...]
    seconds: tuple[float, ...]
    hardware: str  # the GPU, else the processor
    gpu: bool
    processes: int

    def until(self, nimg: float) -> float:
        return float(np.interp(nimg, self.nimg, self.seconds))


def read_lines(stage: Path) -> list[dict[str, Any]]:
    """The lines of the branch that was kept of a stage's metrics.jsonl, fewest images first; a torn last one is left.

    Raises ValueError naming the file where another line is no metrics line.
    """
    path, returns_file = stage / "metrics.jsonl", stage / "returns.json"
    if not path.exists():
        return []
    returns = [entry["to"] for entry in load_json(returns_file)] if returns_file.exists() else []
    text, kept = path.read_text(encoding="utf-8"), []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        try:
            point = json.loads(line)
            if all(point["nimg"] <= to for to in returns[point["returns"] :]):
                kept.append(point)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is no metrics line ({error!r}): take it out") from error
    return sorted(kept, key=lambda point: point["nimg"])


def read_pace(stage: Path) -> Pace | None:
    """None where nothing was written of its speed."""
    nimg, seconds = [0.0], [0.0]
    for point in read_lines(stage):
        rate = point["values"].get("speed/images_per_s")
        if rate and point["nimg"] > nimg[-1]:
            seconds.append(seconds[-1] + (point["nimg"] - nimg[-1]) / rate)
            nimg.append(float(point["nimg"]))
    if len(nimg) == 1 or not (stage / "config.json").exists():
        return None
    config = load_json(stage / "config.json")
    *_, system, last = config["hardware"].split(", ")  # mdm/run/job.py:resolved
    gpu = last.startswith("CUDA ")
    name = system if gpu else config["hardware"].partition(",")[0]
    return Pace(tuple(nimg), tuple(seconds), name, gpu, config["processes"])


@dataclass(frozen=True)
class Spent:
    """What weights had cost, earlier stages counted in; hours are of all devices together."""

    seconds: float
    device_hours: float


def spent(preset: Preset, paces: dict[str, Pace], stage: str, nimg: float) -> Spent | None:
    """None where a stage's speed is not known."""
    if stage not in paces:
        return None
    before: Spent | None = Spent(0.0, 0.0)
    start = preset.stages[stage].start
    if start is not None:
        before = spent(preset, paces, start.stage, started_at(preset, stage))
    if before is None:
        return None
    pace = paces[stage]
    seconds = pace.until(nimg)
    hours = before.device_hours + seconds * pace.processes / 3600
    return Spent(before.seconds + seconds, hours)


def read_paces(preset: Preset, run: Path) -> dict[str, Pace]:
    found = {name: read_pace(run / name) for name in preset.stages}
    return {name: pace for name, pace in found.items() if pace is not None}


def speeds(preset: Preset, run: Path) -> list[dict[str, Any]]:
    """The section ``speeds`` of records.json: a row per stage that was trained, of the last one with its drawing."""
    rows = []
    for name, pace in read_paces(preset, run).items():
        stage, lines = preset.stages[name], [point["values"] for point in read_lines(run / name)]
        steps, gpu, own = ([v[key] for v in lines if key in v] for key in _KEPT)
        rows.append(
            {
                "stage": name,
                "hardware": pace.hardware,
                "processes": pace.processes,
                "parameters": parameters(stage.model),
                "batch": stage.training.batch_size,
                "iterations": round(pace.nimg[-1] / stage.training.batch_size),
                "iteration_s": fmean(steps),
                "images_per_s": pace.nimg[-1] / pace.seconds[-1],
                "memory_mb": max(gpu or own, default=None),
                **(_drawing(preset, run) if name == list(preset.stages)[-1] else _NOT_DRAWN),
            }
        )
    return rows


_KEPT = ("speed/step_s", "system/gpu_peak_memory_megabytes", "system/peak_memory_megabytes")
_NOT_DRAWN = {"call_s": None, "drawn_on": ""}


def _drawing(preset: Preset, run: Path) -> dict[str, Any]:
    """Seconds per image and call of the network, of the run's own samples and untrained ones (which are not guided)."""
    file = run / "samples" / "done.json"
    done = load_json(file) if file.exists() else {}
    if not done.get("drawn"):  # of samples of before nobody wrote down how many it took so long to draw, and where
        return _NOT_DRAWN
    calls = done["drawn"] / 2 * (preset.sampling.calls + preset.sampling.steps)
    return {"call_s": done["seconds"] / calls, "drawn_on": done["hardware"]}
