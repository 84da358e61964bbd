"""A run's checkpoints measured under a protocol, point by point: guidance, steps, samplers, checkpoints along the run.

Each point has a folder, ``RUN/evaluations/PROTOCOL/POINT``, with its images and its numbers, done when its markers say
so: killed at any moment, the same command draws what is missing and computes the same.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prefect import State, flow, task
from prefect.cache_policies import NO_CACHE

from evaluation.images.asked import rows_of
from evaluation.images.gallery import write_sheet
from evaluation.images.npz import write_npz
from evaluation.images.preparation import Drawn
from evaluation.measuring.fresh import Fresh
from evaluation.measuring.identity import PARTS, Origin, identity, measured_by_stand_ins, way_of
from evaluation.measuring.networks import load_networks
from evaluation.measuring.standard import measure_standard
from evaluation.pages.points import RESULTS, read_results
from evaluation.protocols import PROTOCOLS, STAND_INS
from flows.cancel import ends_cancelled
from flows.data import embed_text
from flows.datasets.parts import part_lock
from flows.evaluation import evaluate_samples, sample_images, show_results
from flows.home import Trouble, hold, home, quiet_services, weights
from flows.launch import died
from flows.measuring.drawing import drawing_of, stored_where_nobody_trains, with_processes
from flows.measuring.extracting import extract_in_processes
from flows.measuring.plan import Evaluation, Point, plan
from flows.measuring.released import plan_released, write_weights
from flows.measuring.told import SHEET, warnings
from flows.progress import board
from flows.records.evaluations import EvaluationRecord
from flows.records.pages import refresh_page
from mdm.data.leases import Lease
from mdm.data.shards import Shards
from mdm.experiments import Protocol as ProtocolName
from mdm.files import write_json
from mdm.presets import Preset
from mdm.structure import to_dict
from mdm.training.compute import pick_device

NPZ = "samples.npz"
ROWS = ["text embeddings", "sample", "evaluate"]


@flow(name="mdm-evaluation", flow_run_name="{run} {protocol}")
def evaluation(
    run: str,
    protocol: ProtocolName = "embedded",
    sweep: dict[str, list[str]] | None = None,
    processes: int = 0,
    released: bool = False,
    npz: bool = False,
    fast: bool = False,
) -> str | State:
    """Measure a run's checkpoints under a protocol; the same call goes on after a kill. Returns the results' folder.

    ``released``: ``run`` is a file of the authors'. ``npz``: each point's images also as one file, samples.npz, which
    from then on is kept up to date.
    ``fast``: features are made of images as they are drawn, none of which becomes a file.
    """
    quiet_services()
    check_fast(protocol, fast, npz)
    planned = plan_released(Path(run), protocol, sweep or {}) if released else plan(run, protocol, sweep or {})
    if lines := planned.lacks():
        raise Trouble(f"protocol {protocol} cannot be measured here:\n" + "\n".join(f"  - {line}" for line in lines))
    preset = with_processes(planned.preset, processes)
    if released:
        write_weights(Path(run), planned)
    planned.folder.mkdir(parents=True, exist_ok=True)
    with (
        hold(planned.folder / "flow.lock", f"evaluation {planned.folder}"),
        board(ROWS) as shown,
        ends_cancelled() as end,
        contextlib.nullcontext() if planned.data is None else Lease(planned.data, f"evaluation of {planned.run}"),
    ):
        record = EvaluationRecord(planned.run, planned.folder, planned.data, shown.say)
        _measure(planned, preset, record, shown.say, npz, fast)
        refresh_page(planned.run)
    return end.state or str(planned.folder)


def _measure(
    planned: Evaluation,
    preset: Preset,
    record: EvaluationRecord,
    say: Callable[[str], None],
    npz: bool = False,
    fast: bool = False,
) -> list[dict[str, Any]]:
    """The numbers of every point, or its pictures, each written down and sent to MLflow when it is known."""
    found, data, text = [], planned.data, planned.text
    planned.begin()
    figures = planned.protocol.prompts == "figures"
    if planned.protocol.data and text is not None and data is not None:  # captions of another set than the run's
        text = embed_text(stored_where_nobody_trains(preset, data), data)
    for point in planned.points:
        (planned.folder / point.name).mkdir(exist_ok=True)
        for line in warnings(preset, point.sampling):
            say(f"{point.name}: {line}")
        chosen, folder = replace(preset, sampling=point.sampling), planned.folder / point.name
        origin = Origin(point.sampling, preset.seed, planned.revisions())
        images: Path | Fresh = folder / "samples" / "samples"
        if fast:
            drawing = drawing_of(chosen, folder / "samples", point.weights, data, text, planned.protocol)
            images = drawing.fresh(planned.protocol, say)
        else:
            with part_lock(folder / "samples", "images", (1, 1)):
                sample_images(chosen, folder / "samples", point.weights, data, text, planned.protocol)
        if isinstance(images, Path) and (npz or (folder / NPZ).exists()):  # a removal must not leave it as it was
            write_npz(Drawn.open(images, planned.protocol.preparation, planned.prompts(point.sampling)), folder / NPZ)
            say(f"{point.name}: its images as one file: {folder / NPZ}")
        if figures:
            done = _sheet(planned, point, folder)
        elif planned.protocol.name in STAND_INS:
            assert data is not None
            features = planned.folder / "features"  # real images and noise are every point's
            done = evaluate_samples(chosen, folder, point.weights, data, text, features)
        else:
            assert data is not None
            done = evaluate_standard(planned, data, chosen, folder, images, origin)
            done |= {"finished_ms": int(time.time() * 1000)}
            show_results(done)
        known = {part: done[part] for part in PARTS} if "measured" in done else of_stand_ins(planned, origin)
        facts = facts_of(planned, known)
        facts |= {"point": point.name, "checkpoint": point.checkpoint, "nimg": point.nimg}
        facts |= {f"sampling.{name}": value for name, value in to_dict(point.sampling).items()}
        found.append({**facts, **known, "metrics": done["metrics"]})
        write_results(planned.folder, found[-1:])
        record.send(point.weights, point.name, facts, way_of(known["drawn"]), done)
    return found


def check_fast(protocol: ProtocolName, fast: bool, npz: bool) -> None:
    """Raises ValueError where images must become files."""
    if fast and (npz or not PROTOCOLS[protocol].metrics or protocol in STAND_INS):
        what = "--npz" if npz else f"protocol {protocol}"
        raise ValueError(f"--fast keeps no image, and {what} needs them: leave it out")


def _sheet(planned: Evaluation, point: Point, folder: Path) -> dict[str, Any]:
    """One guidance's figures on a contact sheet; no numbers."""
    board().start("evaluate")
    rows = rows_of(planned.protocol, planned.model, planned.data, point.sampling.guidance[0])
    write_sheet(folder / "samples" / "samples", rows, folder / SHEET)
    board().finish("evaluate", "done", 0, f"{len(rows)} rows of pictures on {folder / SHEET}")
    return {"metrics": [], "finished_ms": int(time.time() * 1000)}


@task(task_run_name="evaluate", retries=3, retry_delay_seconds=1, retry_condition_fn=died, cache_policy=NO_CACHE)
def evaluate_standard(
    planned: Evaluation, data: Path, preset: Preset, folder: Path, images: Path | Fresh, origin: Origin
) -> dict[str, Any]:
    """One point's numbers by the protocol's own networks."""
    protocol, device = planned.protocol, pick_device(preset.hardware.device)
    board().start("evaluate", 1, "img")
    done = measure_standard(
        protocol,
        images,
        [Shards(data / split) for split in protocol.reference_splits],
        load_networks(protocol, weights(), device),
        folder / "evaluation",
        home() / "references",
        origin,
        lambda what, part, total: board().update("evaluate", part, total, what),
        planned.prompts(preset.sampling),
        planned.about,
        extract=partial(extract_in_processes, preset.hardware),
    )
    board().finish("evaluate", "done", 0, f"{len(done['metrics'])} numbers of {protocol.name}")
    return done


def of_stand_ins(planned: Evaluation, origin: Origin) -> dict[str, Any]:
    prompts = planned.prompts(origin.sampling)
    encoder = None if planned.text is None else planned.text.encoder_digest
    settings, px = planned.preset.evaluation, planned.preset.px
    return identity(measured_by_stand_ins(planned.protocol, prompts, settings, origin, px, encoder), origin)


def facts_of(planned: Evaluation, known: dict[str, Any]) -> dict[str, Any]:
    """What stands beside the numbers of a point in a line; ``protocol_digest`` tells those that may be compared."""
    facts = {"stage": list(planned.preset.stages)[-1], "seed": planned.preset.seed, "n": known["measured"]["n"]}
    facts |= {"about": planned.about} if planned.about else {}
    digests = {"protocol_digest": known["protocol_digest"], "digest": known["digest"]}
    return {"protocol": planned.protocol.name, **digests, **facts}


def write_results(folder: Path, found: list[dict[str, Any]]) -> None:
    """results.json: these points, and those that were measured before."""
    points = {point["point"]: point for point in [*read_results(folder), *found]}
    write_json(folder / RESULTS, list(points.values()))
