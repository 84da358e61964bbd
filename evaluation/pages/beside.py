"""A run beside the paper: the section ``paper`` of records.json, from ``mdm/paper.py`` and ``mdm/experiments.py``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from evaluation.pages.points import Point
from evaluation.pages.since import SINCE, Later
from evaluation.results import SAMPLES
from mdm.config import Sampling
from mdm.experiments import (
    DATA,
    EXPERIMENTS,
    TRAININGS,
    Experiment,
    commands,
    drawing_hours,
    gpu_hours,
    stage_key,
)
from mdm.paper import TABLE_1, TABLE_2, TABLE_3, TABLE_4, TEXT, Number, reproduced
from mdm.presets import Preset

Row = dict[str, Any]


@dataclass(frozen=True)
class Ours:
    """A run's own measurement that stands beside a printed number."""

    value: float
    interval: list[float] | None = None
    n: int | None = None  # none: a speed, not measured on images
    hardware: str = ""


def beside_paper(preset: Preset, run: str, points: Sequence[Point], speeds: Sequence[Row] = ()) -> dict[str, Any]:
    """What the paper printed, with this run's values where it measured the same thing, and what the rest needs.

    ``points``: whatever was measured of the run. One is compared where its stage's weights, at the end of the stage,
    are of the experiment's chain (any seed), its images drawn by the paper's sampler with the printed guidance and
    measured under the experiment's protocol. ``speeds``: of its stages; Table 3's seconds are put beside those of a
    stage that was trained as the paper's, with the hardware, whatever it was.
    """

    def ours(number: Number) -> Ours | None:
        experiment = EXPERIMENTS.get(number.experiment)
        if experiment is not None and number.where == "Table 3":
            return _speed(preset, number, experiment, speeds)
        if experiment is None or number.guidance is None:
            return None
        for point in points:
            metric = point.metric(number.measured_as)
            if metric is not None and _drawn_alike(preset, experiment, number.guidance, point):
                return Ours(metric["values"][SAMPLES], metric["interval"].get(SAMPLES), metric["n"])
        return None

    tables = [
        _table("Table 1: FID", TABLE_1, run, ours, _TABLE_1_NOTE),
        _table("Table 2: UNet and Nested UNet, speed on 8 A100", TABLE_2, run, ours),
        _table("Table 3: cost of training on 32 A100", TABLE_3, run, ours, _TABLE_3_NOTE),
        _table("Table 4: speed in training, relative", TABLE_4, run, ours),
        _table("Captions and text", TEXT, run, ours),
        {
            "title": "Figures, drawn and not printed as numbers",
            "note": "Nothing is read off the paper's plots.",
            "rows": [_figure(e, preset, run, points) for e in EXPERIMENTS.values() if e.where != "Table 1"],
        },
    ]
    rows = [row for table in tables for row in table["rows"] if row["stage"]]
    possible = [name for name, trained in TRAININGS.items() if not trained.absent]
    measured = sum(bool(row["run"]) for row in rows)
    return {
        "summary": f"{measured} of the {len(rows)} numbers and figures that the paper gives of its own models and "
        "baselines are measured by this run. All trainings for them that this project can do come to "
        f"{gpu_hours(possible):,.0f} A100-hours at Table 3's speed, stages that several need counted once.",
        "tables": tables,
        "since": [_later(system) for system in SINCE],
    }


_TABLE_1_NOTE = (
    "A star: drawn with guidance. Others' values are as the paper prints them. In brackets what counts as reproduced, "
    "written down beforehand from how much protocols are known to move a FID: the paper does not name its own."
)


_TABLE_3_NOTE = "A run's own seconds stand beside these whatever it ran on: its hardware is named under them."


def _same_stage(preset: Preset, experiment: Experiment, stage: str) -> bool:
    """Whether a stage of the run is what the experiment trains, but for the seed."""
    trained = TRAININGS[experiment.trained]
    wanted = replace(trained.resolve(), seed=preset.seed)
    return not trained.absent and stage_key(preset, stage) == stage_key(wanted, trained.stage)


def _drawn_alike(preset: Preset, experiment: Experiment, guidance: float, point: Point) -> bool:
    stage = preset.stages[point.stage]
    levels = len(stage.model.levels)

    def settled(sampling: Sampling) -> Sampling:
        return replace(sampling, guidance=sampling.guidance_scales(levels), batch_size=1)

    return (
        experiment.protocol == point.protocol
        and point.nimg >= stage.training.nimg
        and settled(point.sampling) == settled(experiment.sampling(guidance))
        and _same_stage(preset, experiment, point.stage)
    )


def _speed(preset: Preset, number: Number, experiment: Experiment, speeds: Sequence[Row]) -> Ours | None:
    """Of the column's stage, which is the last one of its experiment's chain or the one before."""
    trained = TRAININGS[experiment.trained]
    if number.metric != "s per iteration" or trained.absent:
        return None
    wanted = replace(trained.resolve(), seed=preset.seed)
    column = number.column.split(" → ")[-1].split(" ")[-1]  # its resolution, which the stage is named after
    for row in speeds:
        same = column in wanted.stages and row["stage"] in preset.stages
        if same and stage_key(preset, row["stage"]) == stage_key(wanted, column):
            return Ours(row["iteration_s"], hardware=f"{row['processes']} × {row['hardware']}")
    return None


def _table(
    title: str, numbers: tuple[Number, ...], run: str, ours: Callable[[Number], Ours | None], note: str = ""
) -> dict[str, Any]:
    return {"title": title, "note": note, "rows": [_row(number, run, ours(number)) for number in numbers]}


def _row(number: Number, run: str, measured: Ours | None) -> Row:
    counts = reproduced(number)
    row = _not_run(EXPERIMENTS.get(number.experiment), number.guidance, drawing="inference" in number.metric) | {
        "system": ", ".join(filter(None, (number.system, number.column))),
        "metric": ", ".join(filter(None, (number.metric, number.data, number.where if number in TEXT else ""))),
        "printed": number.printed,
        "counts": None if counts is None else [round(end, 2) for end in counts],
    }
    if measured is None:
        return row
    return row | {
        "ours": measured.value,
        "interval": measured.interval,
        "difference": measured.value - number.value,
        "n": measured.n,
        "hardware": measured.hardware,
        "run": run,
        "needs": "",
        "commands": [],
    }


def _figure(experiment: Experiment, preset: Preset, run: str, points: Sequence[Point]) -> Row:
    """A figure is ours where as many of its points were measured as make a chart of it."""
    row = _not_run(experiment, *experiment.guidance)
    row |= {"system": experiment.where, "metric": experiment.what, "printed": "", "counts": None}
    of_stage = {p.stage: _same_stage(preset, experiment, p.stage) for p in points if p.protocol == experiment.protocol}
    found = [p for p in points if p.protocol == experiment.protocol and of_stage[p.stage]]
    charted = len({p.nimg for p in found}) > 1 if experiment.points > 1 else len({p.guidance for p in found}) > 1
    return row | {"run": run, "needs": "", "commands": []} if charted else row


def _not_run(experiment: Experiment | None, *guidance: float | None, drawing: bool = False) -> dict[str, Any]:
    """The fields that say what a row needs, empty where it is nobody's here; without guidance it is of training."""
    empty = {"ours": None, "interval": None, "difference": None, "n": None, "run": "", "hardware": ""}
    if experiment is None:
        return empty | {"drawn": "", "protocol": "", "stage": "", "needs": "", "commands": []}
    weights = ", ".join(f"{weight:g}" for weight in guidance if weight is not None)
    trained, sampling = TRAININGS[experiment.trained], experiment.sampling(1)
    measured = bool(weights) or drawing
    return empty | {
        "drawn": f"{sampling.sampler}, {sampling.steps} steps, guidance {weights}" if weights else "",
        "protocol": experiment.protocol if measured else "",
        "stage": f"{trained.name}, stage {trained.stage}",
        "needs": needs(experiment, measured),
        "commands": commands(experiment)[: 2 if measured else 1],
    }


@cache
def needs(experiment: Experiment, measured: bool = True) -> str:
    """What it takes, in a line: data, A100-hours, and what this project lacks."""
    trained = TRAININGS[experiment.trained]
    known = [trained.data or trained.resolve().data.name, DATA.get(experiment.protocol, "") if measured else ""]
    absent = f"needs {trained.absent}; " if trained.absent else ""
    drawing = f", {drawing_hours(experiment):,.1f} to draw" if measured else ""
    hours = f"{gpu_hours([trained.name]):,.0f} A100-hours to train{drawing}"
    return f"{absent}data: {', '.join(filter(None, known))}; {hours}"


def _later(later: Later) -> dict[str, Any]:
    return {
        "system": later.system,
        "arxiv": later.arxiv,
        "parameters": later.parameters,
        "imagenet_256": later.imagenet_256,
        "imagenet_512": later.imagenet_512,
        "calls": later.calls,
        "source": later.source,
        "note": later.note,
        "second_hand": list(later.second_hand),
    }
