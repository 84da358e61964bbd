"""A run's checkpoints measured under a protocol, point by point: guidance, steps, samplers, checkpoints along the run.

Each point has a folder, ``RUN/evaluations/PROTOCOL/POINT``, with its images and its numbers, done when its markers say
so: killed at any moment, the same command draws what is missing and computes the same.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import State, flow

from evaluation.asked import prompts_of
from evaluation.networks import load_networks
from evaluation.protocols import STAND_INS
from evaluation.standard import measure_standard
from flows.cancel import ends_cancelled
from flows.data import embed_text
from flows.evaluation import evaluate_samples, log_results, sample_images
from flows.home import Trouble, hold, home, quiet_services, weights
from flows.measuring.plan import Evaluation, plan
from flows.measuring.told import warnings
from flows.progress import board
from flows.records.tracking import Tracker
from mdm.data.leases import Lease
from mdm.data.shards import Shards
from mdm.experiments import Protocol as ProtocolName
from mdm.files import write_json
from mdm.presets import Preset
from mdm.structure import digest, to_dict
from mdm.training.compute import pick_device

ROWS = ["text embeddings", "sample", "evaluate"]


@flow(name="mdm-evaluation", flow_run_name="{run} {protocol}")
def evaluation(
    run: str, protocol: ProtocolName = "embedded", sweep: dict[str, list[str]] | None = None, processes: int = 0
) -> str | State:
    """Measure a run's checkpoints under a protocol; the same call goes on after a kill. Returns the results' folder."""
    quiet_services()
    planned = plan(run, protocol, sweep or {})
    if lines := planned.lacks():
        raise Trouble(f"protocol {protocol} cannot be measured here:\n" + "\n".join(f"  - {line}" for line in lines))
    preset = planned.preset
    if processes:
        preset = replace(preset, hardware=replace(preset.hardware, processes=processes))
    planned.folder.mkdir(parents=True, exist_ok=True)
    with hold(planned.folder / "flow.lock", f"evaluation {planned.folder}"), board(ROWS) as shown:
        tracker = Tracker(planned.folder, f"{planned.run.name} {planned.protocol.name}", shown.say)
        with ends_cancelled() as end, tracker.recording(), Lease(planned.data, f"evaluation of {planned.run.name}"):
            write_json(planned.folder / "results.json", _measure(planned, preset, tracker, shown.say))
            with tracker.reachable():
                tracker.artifact("", planned.folder / "results.json")
    return end.state or str(planned.folder)


def _measure(planned: Evaluation, preset: Preset, tracker: Tracker, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The numbers of every point."""
    found, data, text, common = [], planned.data, planned.text, common_facts(planned)
    if planned.protocol.data and text is not None:  # captions of another set than the run's
        text = embed_text(preset, data)
    for point in planned.points:
        for line in warnings(preset, point.sampling):
            say(f"{point.name}: {line}")
        chosen, folder = replace(preset, sampling=point.sampling), planned.folder / point.name
        ema = point.checkpoint / "ema"
        sample_images(chosen, folder / "samples", ema, data, text, planned.protocol)
        if planned.protocol.name in STAND_INS:
            done = evaluate_samples(chosen, folder, ema, data, text, tracker, point.name, point.nimg)
        else:
            done = _standard(planned, chosen, folder)
            done |= {"finished_ms": int(time.time() * 1000)}
            log_results(tracker, folder / "evaluation", data, done, point.name, point.nimg)
        facts = common | {"point": point.name, "checkpoint": point.checkpoint.name, "nimg": point.nimg}
        facts |= {f"sampling.{name}": value for name, value in to_dict(point.sampling).items()}
        with tracker.reachable():
            tracker.params(point.name, facts)
        found.append({**facts, "metrics": done["metrics"]})
    return found


def _standard(planned: Evaluation, preset: Preset, folder: Path) -> dict[str, Any]:
    """One point's numbers by the protocol's own networks."""
    protocol, device = planned.protocol, pick_device(preset.hardware.device)
    model = list(preset.stages.values())[-1].model
    board().start("evaluate", 1, "img")
    done = measure_standard(
        protocol,
        folder / "samples" / "samples",
        [Shards(planned.data / split) for split in protocol.reference_splits],
        load_networks(protocol, weights(), device),
        folder / "evaluation",
        home() / "references",
        preset.seed,
        lambda what, part, total: board().update("evaluate", part, total, what),
        prompts_of(protocol, model, planned.data, preset.evaluation.num_samples),
    )
    board().finish("evaluate", "done", 0, f"{len(done['metrics'])} numbers of {protocol.name}")
    return done


def common_facts(planned: Evaluation) -> dict[str, Any]:
    """What stands beside every point's numbers; ``protocol_digest`` tells those that may be compared."""
    held_out, preset = Shards(planned.data / "val"), planned.preset
    model = list(preset.stages.values())[-1].model
    prompts = prompts_of(planned.protocol, model, planned.data, preset.evaluation.num_samples)
    decides = [
        to_dict(planned.protocol),
        to_dict(preset.evaluation),
        sorted((prompt.key, prompt.caption) for prompt in prompts),
        held_out.revision,
        Shards(planned.data / "train").revision,
        preset.seed,
    ]
    return {"protocol": planned.protocol.name, "protocol_digest": digest(decides)[:12], "n": len(prompts)}
