"""A run beside the paper: the section ``paper`` of records.json, from ``mdm/paper.py`` and ``mdm/experiments.py``."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from evaluation.since import SINCE, Later
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

Measured = dict[str, Any]  # a row of ``metrics`` in records.json


def beside_paper(preset: Preset, run: str, protocol: str, metrics: list[Measured]) -> dict[str, Any]:
    """What the paper printed, with this run's values where it measured the same thing, and what the rest needs.

    The run's last stage is compared: its weights must be of the experiment's chain of stages (any seed), its images
    drawn by the paper's sampler with the printed guidance, measured under the experiment's protocol.
    """

    def ours(number: Number) -> Measured | None:
        experiment = EXPERIMENTS.get(number.experiment)
        if experiment is None or number.guidance is None or experiment.protocol != protocol:
            return None
        if not _drawn_alike(preset, experiment, number.guidance):
            return None
        return next((metric for metric in metrics if metric["name"] == number.measured_as), None)

    tables = [
        _table("Table 1: FID", TABLE_1, run, ours, _TABLE_1_NOTE),
        _table("Table 2: UNet and Nested UNet, speed on 8 A100", TABLE_2, run, ours),
        _table("Table 3: cost of training on 32 A100", TABLE_3, run, ours),
        _table("Table 4: speed in training, relative", TABLE_4, run, ours),
        _table("Captions and text", TEXT, run, ours),
        {
            "title": "Figures, drawn and not printed as numbers",
            "note": "Nothing is read off the paper's plots.",
            "rows": [_figure(e) for e in EXPERIMENTS.values() if e.where != "Table 1"],
        },
    ]
    rows = [row for table in tables for row in table["rows"] if row["stage"]]
    possible = [name for name, trained in TRAININGS.items() if not trained.absent]
    measured = sum(row["ours"] is not None for row in rows)
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


def _drawn_alike(preset: Preset, experiment: Experiment, guidance: float) -> bool:
    trained = TRAININGS[experiment.trained]
    wanted = replace(trained.resolve(), seed=preset.seed)
    last = list(preset.stages)[-1]
    levels = len(preset.stages[last].model.levels)

    def settled(sampling: Any) -> Any:
        return replace(sampling, guidance=sampling.guidance_scales(levels), batch_size=1)

    return (
        not trained.absent
        and stage_key(preset, last) == stage_key(wanted, trained.stage)
        and settled(preset.sampling) == settled(experiment.sampling(guidance))
    )


def _table(
    title: str, numbers: tuple[Number, ...], run: str, ours: Callable[[Number], Measured | None], note: str = ""
) -> dict[str, Any]:
    return {"title": title, "note": note, "rows": [_row(number, run, ours(number)) for number in numbers]}


def _row(number: Number, run: str, measured: Measured | None) -> dict[str, Any]:
    counts = reproduced(number)
    row = _not_run(EXPERIMENTS.get(number.experiment), number.guidance, drawing="inference" in number.metric) | {
        "system": ", ".join(filter(None, (number.system, number.column))),
        "metric": ", ".join(filter(None, (number.metric, number.data, number.where if number in TEXT else ""))),
        "printed": number.printed,
        "counts": None if counts is None else [round(end, 2) for end in counts],
    }
    if measured is None:
        return row
    what, value = next(iter(measured["values"].items()))
    return row | {
        "ours": value,
        "interval": measured["interval"].get(what),
        "difference": value - number.value,
        "n": measured["n"],
        "run": run,
        "needs": "",
        "commands": [],
    }


def _figure(experiment: Experiment) -> dict[str, Any]:
    row = _not_run(experiment, *experiment.guidance)
    return row | {"system": experiment.where, "metric": experiment.what, "printed": "", "counts": None}


def _not_run(experiment: Experiment | None, *guidance: float | None, drawing: bool = False) -> dict[str, Any]:
    """The fields that say what a row needs, empty where it is nobody's here; without guidance it is of training."""
    empty = {"ours": None, "interval": None, "difference": None, "n": None, "run": ""}
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
