"""Tasks after training: draw samples, measure them, make the page. Thin: the work is evaluation's."""

from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from evaluation.measuring.measure import measure
from evaluation.measuring.reading import measured_lines
from evaluation.protocols import PROTOCOLS, Protocol
from evaluation.report import render
from evaluation.results import HEADLINE
from flows.datasets.removal import between_removals
from flows.inputs import metrics_inputs, sample_inputs
from flows.launch import died
from flows.markers import once
from flows.measuring.drawing import drawing_of
from flows.progress import board
from flows.records.artifacts import StageProgress, show_link, show_metrics
from flows.records.evaluations import metric_values
from flows.records.export import export_records
from flows.records.following import record_stage
from flows.records.tracking import Tracker
from mdm.data.embeddings import TextSource
from mdm.data.leases import give_way
from mdm.data.shards import Shards
from mdm.files import load_json, sha256, write_json
from mdm.presets import Preset
from mdm.run.job import device_name
from mdm.training.compute import pick_device
from preprocessing.manifest import read_manifest


@task(task_run_name="sample", retries=3, retry_delay_seconds=1, retry_condition_fn=died, cache_policy=NO_CACHE)
def sample_images(
    preset: Preset,
    folder: Path,
    weights: Path,
    data: Path | None,
    text: TextSource | None,
    protocol: Protocol = PROTOCOLS["embedded"],
) -> Path:
    """Images of a protocol's prompts from the trained weights; and, for stand-ins to be compared with, from an
    untrained network.

    Done where every prompt that is there now has its image, whatever else was drawn.
    """
    drawing = drawing_of(preset, folder, weights, data, text, protocol)
    total = len(drawing.prompts) * len(drawing.job.sets)
    board().start("sample", total, "img")
    progress = StageProgress("sample", total)

    def on_poll() -> None:
        if drawn := drawing.count():
            board().update("sample", drawn)
            progress.update(drawn)

    def work() -> dict[str, Any]:
        before = drawing.count()
        drawing.run(on_poll)
        name = device_name(pick_device(preset.hardware.device))
        return {"images": total, "drawn": drawing.count() - before, "hardware": name}

    def drawn() -> dict[str, Any]:
        return work() if data is None else between_removals(data, work, board().say)

    done = once(folder, drawing.inputs, drawn, board().say, whole=drawing.whole)
    progress.done()
    note = f"{len(drawing.prompts)} prompts: {protocol.prompts}"
    board().finish("sample", "reused" if done["reused"] else "done", done["seconds"], note)
    return folder


@task(task_run_name="evaluate", cache_policy=NO_CACHE)
def evaluate_samples(
    preset: Preset, run: Path, weights: Path, data: Path, text: TextSource | None, features: Path | None = None
) -> dict[str, Any]:
    """Every metric, into results.json and Prefect's UI. ``features``: where they are kept, if not in the run."""
    folder, images, settings = run / "evaluation", run / "samples", preset.evaluation
    train, held_out = Shards(data / "train"), Shards(data / "val")
    lines = measured_lines(images, held_out, settings.num_samples, labelled=text is None)
    samples = sample_inputs(preset, sha256(weights / "model.safetensors"), text)
    inputs = metrics_inputs(preset, samples, lines, train.revision, held_out.revision)
    board().start("evaluate", 1, "img")
    progress = StageProgress("evaluate", 1.0)

    def show(what: str, done: int, total: int) -> None:
        board().update("evaluate", done, total, what)
        progress.update(done / total)

    def work() -> dict[str, Any]:
        results = measure(images, data, text, folder, features or run / "features", settings, preset.seed, show)
        return {"metrics": results["metrics"]}

    give_way(data, board().say)
    done = once(folder, inputs, work, board().say, whole=(folder / "results.json").exists)
    show_results(done)
    progress.done()
    headline = next(metric for metric in done["metrics"] if metric["name"] == HEADLINE.name)
    values = ", ".join(f"{what} {value:.3f}" for what, value in headline["values"].items())
    note = f"{headline['label']}: {values}"
    board().finish("evaluate", "reused" if done["reused"] else "done", done["seconds"], note)
    return done


def log_results(tracker: Tracker, folder: Path, data: Path, done: dict[str, Any]) -> None:
    """The numbers of a run's own samples; theirs alone also go to the parent run, by which the UI's table compares."""
    with tracker.reachable():
        own, values = metric_values(done["metrics"])
        tracker.metrics("", own, 0, done["finished_ms"])
        tracker.metrics("evaluation", values, 0, done["finished_ms"])
        for split, context in (("val", "evaluation"), ("train", "training")):
            tracker.dataset("evaluation", data / split, read_manifest(data / split)["digest"], context)
        tracker.artifact("evaluation", folder / "results.json")
        tracker.finish("evaluation")


def show_results(done: dict[str, Any]) -> None:
    rows = [
        {"metric": f"{m['label']} (N={m['n']})", **{what: f"{v:.4g}" for what, v in m["values"].items()}}
        for m in done["metrics"]
    ]
    show_metrics("metrics", rows, "Stand-ins where named; every value at the N given")


@task(task_run_name="report", cache_policy=NO_CACHE)
def write_report(preset: Preset, run: Path, data: Path, images: Path, tracker: Tracker) -> Path:
    """records.json, exported from MLflow, and the page made from it; both are kept there too."""
    board().start("report")
    for stage in preset.stages:  # unless somebody deleted them meanwhile they are there
        record_stage(tracker, stage)
    folder, names = run / "report", ("records.json", "index.html", "index.csv")
    made_from = {
        stage: load_json(run / stage / "done.json")["inputs"] for stage in [*preset.stages, "samples", "evaluation"]
    }

    def work() -> dict[str, Any]:
        records = export_records(preset, run, data, images, tracker)
        write_json(folder / "records.json", records)
        page = render(records, folder / "index.html")
        show_link("report", page.as_uri(), "The report page")
        return {"page": page.name}

    done = once(folder, made_from, work, board().say, whole=lambda: all((folder / name).exists() for name in names))
    for name in names:
        tracker.artifact("", folder / name)
    board().finish("report", "reused" if done["reused"] else "done", done["seconds"])
    return folder / "index.html"
