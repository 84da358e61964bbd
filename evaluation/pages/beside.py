"""A run beside the paper: the section ``paper`` of records.json, from ``mdm/paper.py`` and ``mdm/experiments.py``."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from evaluation.pages.points import Point
from evaluation.pages.since import SINCE, Later
from evaluation.protocols import PROTOCOLS
from evaluation.results import SAMPLES
from mdm.config import Sampling
from mdm.experiments import (
    DATA,
    EXPERIMENTS,
    TIMED,
    TIMED_STEPS,
    TRAININGS,
    Experiment,
    Trained,
    column_hours,
    commands,
    drawing_hours,
    gpu_hours,
    iteration_of,
    run_command,
    stage_key,
)
from mdm.paper import BATCH_2, COCO, IMAGENET, TABLE_1, TABLE_2, TABLE_3, TABLE_4, TEXT, WAYS, Number, reproduced
from mdm.presets import Preset

Row = dict[str, Any]


def beside_paper(preset: Preset, run: str, points: Sequence[Point], speeds: Sequence[Row] = ()) -> dict[str, Any]:
    """What the paper printed, with this run's values where it measured the same thing, and what the rest needs.

    ``points``: whatever was measured of the run. One is compared where its stage's weights, at the end of the stage,
    are of the experiment's chain (any seed), its images drawn by the paper's sampler, or as the protocol has it, with
    the printed guidance. ``speeds``: of its stages; one is put beside a printed one where model and batch are the same,
    with the hardware, whatever it was.
    """

    def rows(numbers: Sequence[Number]) -> list[Row]:
        return [_row(preset, number, run, points, speeds) for number in numbers]

    figures = [_figure(e, preset, run, points) for e in EXPERIMENTS.values() if e.where != "Table 1"]
    tables: list[dict[str, Any]] = [
        {"title": "Table 1: FID", "note": _TABLE_1_NOTE, "rows": rows(TABLE_1)},
        {"title": "Table 2: UNet and Nested UNet, speed on 8 A100", "note": _TABLE_2_NOTE, "rows": rows(TABLE_2)},
        {"title": "Table 3: cost of training on 32 A100", "note": _table_3_note(), "rows": rows(TABLE_3)},
        {"title": "Table 4: speed in training", "note": _TABLE_4_NOTE, "rows": rows(TABLE_4)},
        {"title": "Captions and text", "note": "", "rows": rows(TEXT)},
        {"title": "Figures, drawn and not printed as numbers", "note": _FIGURES_NOTE, "rows": figures},
    ]
    return {
        "summary": _summary([row for table in tables for row in table["rows"]]),
        "tables": tables,
        "since": [_later(system) for system in SINCE],
    }


def _summary(rows: Sequence[Row]) -> str:
    """Settings and other systems' numbers, which no run can measure, do not count."""
    measured = sum(bool(row["run"]) for row in rows)
    possible = measured + sum(bool(row["commands"]) for row in rows)
    absent = sum(bool(row["needs"]) for row in rows) + measured - possible
    trained = [trained for trained in TRAININGS.values() if not trained.absent]
    return (
        f"{measured} of the {possible} results and figures of the paper that this project can do are measured by this "
        f"run; {absent} more need what it lacks. By the commands below, each of which trains all its stages itself, "
        f"all trainings come to {sum(gpu_hours([each]) for each in trained):,.0f} A100-hours at Table 3's speed; were "
        f"each stage that several need trained once, to {gpu_hours(trained):,.0f}."
    )


_TABLE_1_NOTE = (
    "A star: drawn with guidance. Others' values are as the paper prints them. In brackets what counts as reproduced, "
    "written down beforehand from how much protocols are known to move a FID: the paper does not name its own, so on "
    "COCO a number is reproduced if every way to measure it falls in the range, and in part if one does."
)
_TABLE_2_NOTE = (
    f"A run's own drawing: its seconds per image and call of the network, times {BATCH_2}, on the hardware named."
)
_TABLE_4_NOTE = "The paper does not print its batch: App. B's 256 is taken."
_FIGURES_NOTE = (
    "Nothing is read off the paper's plots. Figs. 6 and 7 have no row: the paper does not print their prompts."
)


def _table_3_note() -> str:
    columns = {"imagenet-256": ["INet 64", "INet 64 → 256"]}
    columns["cc12m-1024"] = ["CC 64", "CC 64 → 256", "CC 256 → 1024"]
    hours = [
        f"{sum(map(column_hours, own)):,.0f} for {name} where its rows say {gpu_hours([TRAININGS[name]]):,.0f}"
        for name, own in columns.items()
    ]
    return (
        "A run's own seconds stand beside these where model and batch are the same, whatever it ran on: its hardware "
        "is named under them. The paper gives two schedules: the A100-hours on this page are of App. B's images, which "
        f"the presets have, at this table's seconds per image; by its own iterations it comes to {' and '.join(hours)} "
        "(`mdm config --choices` has its batches)."
    )


# -- one row -----------------------------------------------------------------------------------------------------------


_EMPTY: Row = {"ours": None, "interval": None, "difference": None, "n": None, "hardware": "", "run": "", "drawn": ""}
_EMPTY |= {"protocol": "", "stage": "", "needs": "", "commands": [], "verdict": "", "ways": []}


def _row(preset: Preset, number: Number, run: str, points: Sequence[Point], speeds: Sequence[Row]) -> Row:
    counts = reproduced(number)
    row = _EMPTY | {
        "system": ", ".join(filter(None, (number.system, number.column))),
        "metric": ", ".join(filter(None, (number.metric, number.data, number.where if number in TEXT else ""))),
        "printed": number.printed,
        "counts": None if counts is None else [round(end, 2) for end in counts],
    }
    found: Row | None = None
    if timed := TIMED.get(number.experiment):
        row, found = row | _needs_timing(timed), _speed(preset, number, timed, speeds)
    elif experiment := EXPERIMENTS.get(number.experiment):
        row |= _needs_experiment(experiment, number.guidance)
        found = _fids(preset, number, experiment, points)
    if found is None:
        return row
    return row | found | {"difference": found["ours"] - number.value, "run": run, "needs": "", "commands": []}


def _speed(preset: Preset, number: Number, timed: Trained, speeds: Sequence[Row]) -> Row | None:
    """A stage's seconds at the printed batch, or those of drawing with its model."""
    if timed.absent:
        return None
    wanted = iteration_of(timed.resolved.stages[timed.stage])
    for row in speeds:
        stage = preset.stages.get(row["stage"])
        if stage is None:
            continue
        if "inference" in number.metric:
            if stage.model == wanted[0] and row["call_s"] is not None:
                return {"ours": row["call_s"] * BATCH_2, "hardware": row["drawn_on"]}
        elif iteration_of(stage) == wanted:
            return {"ours": row["iteration_s"], "hardware": f"{row['processes']} × {row['hardware']}"}
    return None


def _fids(preset: Preset, number: Number, experiment: Experiment, points: Sequence[Point]) -> Row | None:
    """The number in all ways in which a run measured it. The first of them stands beside the paper's."""
    if number.guidance is None:
        return None
    low, high = reproduced(number) or (0.0, 0.0)
    found, lines, good = [], [], 0
    for protocol, resize in WAYS[number.data]:
        of = [p for p in points if p.protocol == protocol and _drawn_alike(preset, experiment, number.guidance, p)]
        fids = [(metric, point) for point in of if (metric := _fid(number, point, resize))]
        for metric, _ in fids[:1]:
            value = metric["values"][SAMPLES]
            good += low <= value <= high
            lines.append(f"{protocol}, {resize} resize: {value:.4g}, N = {metric['n']:,}")
        if not fids:
            lines.append(f"{protocol}, {resize} resize: not measured")
        found += fids[:1]
    if not found:
        return None
    first, point = found[0]
    return {
        "ours": first["values"][SAMPLES],
        "interval": first["interval"].get(SAMPLES),
        "n": first["n"],
        "drawn": _drawn(point.sampling, number.guidance),
        "protocol": point.protocol,
        "verdict": "" if not high else "reproduced" if good == len(lines) else "in part" if good else "OUT OF range",
        "ways": lines if len(lines) > 1 else [],
    }


_ENOUGH = 0.95  # of the printed number of images: those that were removed, or whose captions are left out, are missing


def _fid(number: Number, point: Point, resize: str) -> Row | None:
    least = _ENOUGH * {IMAGENET: 50_000, COCO: 30_000}[number.data]
    named = re.compile(rf"fid_\d+k?_{resize}")
    return next(
        (m for m in point.metrics if named.fullmatch(m["name"]) and SAMPLES in m["values"] and m["n"] >= least), None
    )


def _same_stage(preset: Preset, experiment: Experiment, stage: str) -> bool:
    """Whether a stage of the run is what the experiment trains, but for the seed."""
    trained = TRAININGS[experiment.trained]
    wanted = replace(trained.resolved, seed=preset.seed)
    return not trained.absent and stage_key(preset, stage) == stage_key(wanted, trained.stage)


def _drawn_alike(preset: Preset, experiment: Experiment, guidance: float, point: Point) -> bool:
    stage = preset.stages[point.stage]
    levels = len(stage.model.levels)
    own = PROTOCOLS[point.protocol].sampling if point.protocol in PROTOCOLS else {}
    wanted = replace(experiment.sampling(guidance), **{**own, "guidance": (guidance,)})

    def settled(sampling: Sampling) -> Sampling:
        return replace(sampling, guidance=sampling.guidance_scales(levels), batch_size=1)

    return (
        point.nimg >= stage.training.nimg
        and settled(point.sampling) == settled(wanted)
        and _same_stage(preset, experiment, point.stage)
    )


def _figure(experiment: Experiment, preset: Preset, run: str, points: Sequence[Point]) -> Row:
    """A figure is ours where as many of its points were measured as make a chart of it, a gallery where it is drawn."""
    row = _EMPTY | _needs_experiment(experiment, *experiment.guidance)
    row |= {"system": experiment.where, "metric": experiment.what, "printed": "", "counts": None}
    mine = [p for p in points if p.protocol == experiment.protocol]
    of_stage = {stage: _same_stage(preset, experiment, stage) for stage in {p.stage for p in mine}}
    found = [p for p in mine if of_stage[p.stage]]
    if experiment.protocol == "gallery":
        drawn = all(any(_drawn_alike(preset, experiment, w, p) for p in found) for w in experiment.guidance)
    else:
        drawn = len({p.nimg if experiment.points > 1 else p.guidance for p in found}) > 1
    return row | {"run": run, "needs": "", "commands": []} if drawn else row


# -- what a row needs --------------------------------------------------------------------------------------------------


def _needs_timing(timed: Trained) -> Row:
    if timed.absent:
        return {"stage": timed.name, "needs": f"needs {timed.absent}"}
    preset = timed.resolved
    batch, hours = preset.stages[timed.stage].training.batch_size, gpu_hours([timed])
    return {
        "stage": f"{timed.preset}, stage {timed.stage}, batch {batch:,}",
        "needs": f"data: {preset.data.name}; {hours:,.1f} A100-hours for {TIMED_STEPS:,} iterations",
        "commands": [run_command(timed)],
    }


def _needs_experiment(experiment: Experiment, *guidance: float | None) -> Row:
    """Without guidance it is of training."""
    weights = [weight for weight in guidance if weight is not None]
    trained, sampling = TRAININGS[experiment.trained], experiment.sampling(1)
    return {
        "drawn": _drawn(sampling, *weights) if weights else "",
        "protocol": experiment.protocol if weights else "",
        "stage": f"{trained.name}, stage {trained.stage}",
        "needs": needs(experiment, bool(weights)),
        "commands": commands(experiment)[: 2 if weights else 1],
    }


def _drawn(sampling: Sampling, *guidance: float) -> str:
    weights = ", ".join(f"{weight:g}" for weight in guidance)
    return f"{sampling.sampler}, {sampling.steps} steps, guidance {weights}"


@cache
def needs(experiment: Experiment, measured: bool = True) -> str:
    """What it takes, in a line: data, A100-hours, and what this project lacks."""
    trained = TRAININGS[experiment.trained]
    known = [trained.data or trained.resolved.data.name, DATA.get(experiment.protocol, "") if measured else ""]
    absent = f"needs {trained.absent}; " if trained.absent else ""
    drawing = f", {drawing_hours(experiment):,.1f} to draw" if measured else ""
    hours = f"{gpu_hours([trained]):,.0f} A100-hours to train{drawing}"
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
