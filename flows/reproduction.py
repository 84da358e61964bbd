"""The whole reproduction as one Prefect flow: data, shards, text, staged training, samples, evaluation, report."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger
from prefect.runtime import deployment

from flows.cancel import ends_cancelled
from flows.data import embed_text, fitted, prepare_data, write_shard_set
from flows.evaluation import evaluate_samples, log_results, sample_images, write_report
from flows.home import Trouble, hold, quiet_services, run_folder
from flows.inputs import data_inputs, results_inputs
from flows.progress import board
from flows.records.facts import run_facts
from flows.records.tracking import Tracker
from flows.starting.overrides import Overrides, PresetName
from flows.starting.preflight import check_machine, on_this_machine
from flows.training import train_stages, trained_weights
from mdm.data.leases import Lease
from mdm.files import write_json
from mdm.presets import PRESETS, Preset, load_preset
from mdm.structure import digest, to_dict
from preprocessing.manifest import read_json


def run_name(preset: Preset) -> str:
    """The preset's name, with a digest where fields that decide results were replaced: other results are another run.

    Other hardware, storage or reporting is the same run. One that was named by an earlier rule keeps its name.
    """
    if preset.name not in PRESETS:
        return preset.name
    decides = to_dict(results_inputs(preset))
    usual = to_dict(results_inputs(PRESETS[preset.name]))
    name = preset.name if decides == usual else f"{preset.name}-{digest(decides)[:6]}"
    if run_folder(name).exists():
        return name
    for config in sorted(run_folder(name).parent.glob(f"{preset.name}-*/config.json")):
        try:
            known = load_preset(config)
        except ValueError:
            continue  # of another program, or of a time that had other fields
        if known.name == preset.name and to_dict(results_inputs(known)) == decides:
            return config.parent.name
    return name


def stage_names(preset: Preset) -> list[str]:
    """The rows of the board, in order."""
    names = ["data", "shards", "text embeddings"]
    for name, stage in preset.stages.items():
        names += [f"grow {name}"] * (stage.start is not None) + [f"train {name}"]
    return [*names, "sample", "evaluate", "report"]


@flow(name="mdm", flow_run_name="{preset}")
def reproduction(preset: PresetName = "cc12m-1024", overrides: Overrides = Overrides()) -> str | State:  # noqa: B008
    """Reproduce MDM with a preset; the same call resumes what a failure or kill interrupted. Returns the run's name."""
    quiet_services()
    chosen = on_this_machine(overrides.resolve(preset))
    check_machine(chosen)
    name = run_name(chosen)
    run = run_folder(name)
    with hold(run / "flow.lock", f"run {name}"), board(stage_names(chosen), _log()) as shown:
        write_json(run / "config.json", to_dict(chosen))
        tracker = Tracker(run, name, shown.say)
        with ends_cancelled() as end, tracker.recording():
            _work(chosen, run, tracker)
    return end.state or name


def _work(chosen: Preset, run: Path, tracker: Tracker) -> None:
    """Every part after the other."""
    with tracker.reachable():
        tracker.params(
            "", {"preset": chosen.name, "seed": chosen.seed, "text_encoder": chosen.text, "data": chosen.data.name}
        )
        tracker.tags("", run_facts(chosen))
    opened, total = prepare_data(chosen)
    data, data_digest = write_shard_set(chosen, opened, total, run)
    chosen = fitted(chosen, data, board().say)
    with Lease(data, f"run {run.name}"):
        text = embed_text(chosen, data)
        last = train_stages(chosen, run, data, text, data_inputs(data_digest, text), tracker)
        images = sample_images(chosen, run / "samples", trained_weights(last), data, text)
        measured = evaluate_samples(chosen, run, trained_weights(last), data, text)
        log_results(tracker, run / "evaluation", data, measured)
        with tracker.reachable():
            tracker.times(part_times(run, stage_names(chosen)))
        write_report(chosen, run, data, images, tracker)


def part_times(run: Path, names: list[str]) -> Iterator[tuple[str, float, int]]:
    """(part, seconds, when it ended in ms, 0 where that is not known) in order.

    What a marker says of a part that was done before, too; the data's parts have none and know of this start alone.
    """
    folders = {"sample": "samples", "evaluate": "evaluation"}
    for name in names:
        kind, _, stage = name.partition(" ")
        folder = {"train": stage, "grow": f"grow-{stage}"}.get(kind) or folders.get(name, "")
        done = read_json(run / folder / "done.json") if folder else None
        row = board().rows[name]
        if done is not None:
            yield name, done["seconds"], done["finished_ms"]
        else:
            yield name, row.seconds, int(time.time() * 1000) if row.state == "done" else 0


def _log() -> Callable[[str], None] | None:
    """A deployed run has no terminal: its lines go to its log, which the UI and ``--watch`` show."""
    return get_run_logger().info if deployment.id else None


def explain(error: BaseException) -> str | None:
    """The line for a person, where an error is theirs to mend."""
    if isinstance(error, OSError) and error.errno == 28:
        return f"no space left on the disk of {error.filename or 'MDM_HOME'}: free some and run the same command again"
    return str(error) if isinstance(error, Trouble | ValueError) else None


def parameters(preset: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """The flow's parameters, checked: raises ValueError naming the field."""
    from pydantic import ValidationError

    try:
        checked = Overrides.model_validate(overrides)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ValueError(f"{field}: {first['msg']}") from error
    checked.resolve(preset)
    return {"preset": preset, "overrides": checked}
