"""A run's checkpoints measured under a protocol, point by point: guidance, steps, samplers, checkpoints along the run.

Each point has a folder, ``RUN/evaluations/PROTOCOL/POINT``, with its images and its numbers, done when its markers say
so: killed at any moment, the same command draws what is missing and computes the same.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from prefect import State, flow

from evaluation.captions import held_out_prompts
from evaluation.networks import load_networks, missing
from evaluation.protocols import PROTOCOLS, Protocol
from evaluation.standard import measure_standard
from flows.cancel import ends_cancelled
from flows.data import embed_text, fitted
from flows.datasets.sets import set_of_samples
from flows.evaluation import evaluate_samples, sample_images, show_results
from flows.home import Trouble, datasets, hold, home, quiet_services, run_folder, weights
from flows.progress import board
from flows.records.evaluations import EvaluationRecord
from flows.records.pages import refresh_page
from mdm.config import SamplerName, Sampling
from mdm.data.embeddings import TextSource
from mdm.data.leases import Lease
from mdm.data.shards import Shards
from mdm.experiments import SECONDS_PER_CALL
from mdm.experiments import Protocol as ProtocolName
from mdm.files import load_json, write_json
from mdm.presets import Preset, load_preset, resolve
from mdm.run.checkpoint import list_points, newest_checkpoint
from mdm.run.folder import find_damage
from mdm.structure import digest, from_dict, to_dict
from mdm.training.compute import pick_device
from preprocessing.sets import finished_sets

STAND_INS = ("embedded", "watch")  # protocols of packaged features (evaluation/measure.py); others: standard.py
ROWS = ["text embeddings", "sample", "evaluate"]
FEW_STEPS = 50  # below, uniform spacing leaves images of shifted levels with too little variance


@dataclass(frozen=True)
class Point:
    """One thing that is measured: a checkpoint's EMA weights, and how images are drawn from them."""

    name: str
    checkpoint: Path
    sampling: Sampling

    @property
    def nimg(self) -> int:
        return int(self.checkpoint.name.removeprefix("nimg-"))


@dataclass(frozen=True)
class Evaluation:
    """A run under a protocol: what it was trained on, and the points to measure."""

    run: Path
    preset: Preset
    protocol: Protocol
    data: Path
    text: TextSource | None
    points: list[Point]
    stage: str = ""  # where it is not the run's last
    has_data: bool = True  # else ``data`` is what the run was trained on, and the protocol's own is not here

    def lacks(self) -> list[str]:
        """A line for everything that is missing to measure it here."""
        return lacking(self.protocol, self.data if self.has_data else None)

    @property
    def folder(self) -> Path:
        return self.run / "evaluations" / "-".join(filter(None, (self.protocol.name, self.stage)))


def plan(run: str, protocol: ProtocolName, sweep: dict[str, list[str]]) -> Evaluation:
    """``run``: a run's name or folder, or RUN/STAGE for one of its stages that is not the last.

    Raises ValueError for a run or sweep that cannot be measured.
    """
    folder, asked = _run_and_stage(run)
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} is no run (`mdm status` lists them)")
    preset, chosen = load_preset(folder / "config.json"), PROTOCOLS[protocol]
    if asked and asked not in preset.stages:
        raise ValueError(f"{folder.name} has no stage {asked!r}; there are {', '.join(preset.stages)}")
    names = list(preset.stages)
    kept = names[: names.index(asked or names[-1]) + 1]  # the preset as if that stage were its last
    preset = replace(preset, stages={name: preset.stages[name] for name in kept})
    stage = folder / kept[-1]
    if not (stage / "job.json").exists():
        raise ValueError(f"{stage} has not been trained: `mdm run` trains it, `mdm status {folder.name}` says how far")
    job = load_json(stage / "job.json")
    text = None if job["text"] is None else from_dict(TextSource, job["text"])
    trained_on = set_of_samples(job["val_data"], job.get("val_digest", ""))
    data = trained_on if not chosen.data else prompts_set(chosen)
    number = chosen.num_samples or preset.evaluation.num_samples
    preset = replace(preset, evaluation=replace(preset.evaluation, num_samples=number))
    sampling = preset.sampling if chosen.guided else replace(preset.sampling, guidance=(1.0,))
    points = list(_points(stage, sampling, sweep))
    if data is not None:
        preset = fitted(preset, data, lambda line: None)
    return Evaluation(folder, preset, chosen, data or trained_on, text, points, asked, data is not None)


def _run_and_stage(run: str) -> tuple[Path, str]:
    parent, _, stage = run.rstrip("/").rpartition("/")
    if parent and (run_folder(parent) / "config.json").exists():
        return run_folder(parent), stage
    return run_folder(run), ""


def lacking(protocol: Protocol, data: Path | None) -> list[str]:
    """A line for everything that a protocol needs and this machine, or this project, lacks.

    ``data``: the set whose captions are asked for; none: it is not here.
    """
    if protocol.name in STAND_INS:
        return []
    return missing(protocol, weights(), [] if data is None else [data / protocol.split])


def prompts_set(protocol: Protocol) -> Path | None:
    """The newest set of the data set that a protocol names; None where there is none, or it names none."""
    sets = finished_sets(datasets(), protocol.data) if protocol.data else []
    return sets[-1] if sets else None


def _points(stage: Path, sampling: Sampling, sweep: dict[str, list[str]]) -> Iterator[Point]:
    checkpoints = _checkpoints(stage, sweep.get("checkpoint"))
    for checkpoint, (name, chosen) in itertools.product(checkpoints, _samplings(sampling, sweep)):
        parts = [checkpoint.name] * (len(checkpoints) > 1) + [name] * bool(name)
        yield Point("_".join(parts) or "as-trained", checkpoint, chosen)


def _samplings(sampling: Sampling, sweep: dict[str, list[str]]) -> list[tuple[str, Sampling]]:
    """Every combination of what is swept but checkpoints, by name; "" is the sampling as it is."""
    known = {"guidance": _numbers, "steps": int, "sampler": str, "checkpoint": str}
    for name in sweep:
        if name not in known:
            raise ValueError(f"--sweep {name}=…: what can be swept is {', '.join(known)}")
    others, found = {name: values for name, values in sweep.items() if name != "checkpoint"}, []
    for values in itertools.product(*others.values()):
        fields: dict[str, Any] = {}
        for name, text in zip(others, values, strict=True):
            try:
                fields[name] = known[name](text)  # type: ignore[operator]
            except ValueError:
                raise ValueError(f"--sweep {name}={text}: not a number") from None
        if "sampler" in fields:
            if fields["sampler"] not in get_args(SamplerName):
                raise ValueError(f"--sweep sampler={fields['sampler']}: there are {', '.join(get_args(SamplerName))}")
            fields["spacing"] = None  # that one's, not the run's
        name = "_".join(f"{name}-{text}" for name, text in zip(others, values, strict=True))
        found.append((name, replace(sampling, **fields)))
    return found


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split("/"))  # per level, innermost first; one value serves all


def _checkpoints(stage: Path, asked: list[str] | None) -> list[Path]:
    there = list_points(stage)
    if asked is None:
        newest = newest_checkpoint(stage / "checkpoints")[0]
        if newest is None:
            raise ValueError(f"{stage} has no whole checkpoint yet")
        return [newest]
    names = {path.name: path for path in there}
    chosen = there if asked == ["all"] else [names[name] for name in asked if name in names]
    if lacking := [name for name in asked if name != "all" and name not in names]:
        raise ValueError(f"{stage} has no checkpoint {lacking[0]!r}; there are {', '.join(names)}")
    for path in chosen:
        if (problem := find_damage(path)) is not None:
            raise ValueError(f"{path} is damaged ({problem}): leave it out of --sweep checkpoint=…")
    return chosen


def plan_lines(planned: Evaluation) -> Iterator[str]:
    """What measuring will take: images, network calls, hours at the rate at which the run's own samples were drawn."""
    prompts = planned.preset.evaluation.num_samples
    yield f"{planned.run.name} under {planned.protocol.name} ({planned.protocol.summary})"
    calls, seconds, rate = 0, 0.0, _rate(planned)
    for point in planned.points:
        sampling = point.sampling
        calls += (mine := prompts * sampling.calls)
        seconds += 0 if rate is None else mine * rate
        shown = "/".join(f"{weight:g}" for weight in sampling.guidance)
        yield f"  {point.name}: {point.checkpoint.name}, {sampling.sampler}, {sampling.steps} steps, guidance {shown}"
        yield from (f"  {point.name}: {line}" for line in warnings(planned.preset, sampling))
    pixels = sum(px**2 for px in list(planned.preset.stages.values())[-1].model.resolutions)
    yield (
        f"{len(planned.points)} points, {prompts * len(planned.points):,} images and as many of an untrained model, "
        f"{calls:,} network calls, about {2 * prompts * len(planned.points) * pixels * 3 / 1e6:,.0f} MB at most"
    )
    yield (
        "no time is known: this run has drawn no samples here"
        if rate is None
        else (f"about {seconds / 3600:,.2f} hours at the rate of the run's own samples, measuring not counted")
    )


def _rate(planned: Evaluation) -> float | None:
    """Seconds per network call, of the run's own samples and untrained ones, together."""
    done = planned.run / "samples" / "done.json"
    if not done.exists():
        return None
    found = load_json(done)
    return found["seconds"] / (found["images"] / 2 * planned.preset.sampling.calls)


def warnings(preset: Preset, sampling: Sampling) -> Iterator[str]:
    """What is known to go wrong with such settings."""
    shifted = any(level.shift > 1 for level in list(preset.stages.values())[-1].model.levels)
    if shifted and sampling.spacing == "uniform" and sampling.steps < FEW_STEPS:
        yield (
            f"{sampling.steps} uniformly spaced steps leave images of shifted levels with too little variance (seen: "
            "0.36 for 0.70): take another spacing, another sampler, or more steps"
        )


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
    with (
        hold(planned.folder / "flow.lock", f"evaluation {planned.folder}"),
        board(ROWS) as shown,
        ends_cancelled() as end,
        Lease(planned.data, f"evaluation of {planned.run.name}"),
    ):
        record = EvaluationRecord(planned.run, planned.folder, planned.data, shown.say)
        write_results(planned.folder, _measure(planned, preset, record, shown.say))
        refresh_page(planned.run)
    return end.state or str(planned.folder)


def _measure(
    planned: Evaluation, preset: Preset, record: EvaluationRecord, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The numbers of every point, each sent to MLflow when it is known."""
    found, data, text, common = [], planned.data, planned.text, common_facts(planned)
    if planned.protocol.data and text is not None:  # captions of another set than the run's
        text = embed_text(preset, data)
    for point in planned.points:
        for line in warnings(preset, point.sampling):
            say(f"{point.name}: {line}")
        chosen, folder = replace(preset, sampling=point.sampling), planned.folder / point.name
        ema = point.checkpoint / "ema"
        sample_images(chosen, folder / "samples", ema, data, text)
        if planned.protocol.name in STAND_INS:
            done = evaluate_samples(chosen, folder, ema, data, text)
        else:
            done = _standard(planned, chosen, folder)
            done |= {"finished_ms": int(time.time() * 1000)}
            show_results(done)
        facts = common | {"point": point.name, "checkpoint": point.checkpoint.name, "nimg": point.nimg}
        facts |= {f"sampling.{name}": value for name, value in to_dict(point.sampling).items()}
        record.send(point.checkpoint, point.name, facts, done)
        found.append({**facts, "metrics": done["metrics"]})
    return found


def _standard(planned: Evaluation, preset: Preset, folder: Path) -> dict[str, Any]:
    """One point's numbers by the protocol's own networks."""
    protocol, device = planned.protocol, pick_device(preset.hardware.device)
    splits = {"both splits": ("train", "val"), "all of train": ("train",)}.get(protocol.reference, (protocol.split,))
    board().start("evaluate", 1, "img")
    done = measure_standard(
        protocol,
        folder / "samples" / "samples",
        [Shards(planned.data / split) for split in splits],
        load_networks(protocol, weights(), device),
        folder / "evaluation",
        home() / "references",
        preset.seed,
        lambda what, part, total: board().update("evaluate", part, total, what),
    )
    board().finish("evaluate", "done", 0, f"{len(done['metrics'])} numbers of {protocol.name}")
    return done


def common_facts(planned: Evaluation) -> dict[str, Any]:
    """What stands beside every point's numbers; ``protocol_digest`` tells those that may be compared."""
    held_out = Shards(planned.data / "val")
    prompts = held_out_prompts(held_out, planned.preset.evaluation.num_samples, labelled=planned.text is None)
    decides = [
        to_dict(planned.protocol),
        to_dict(planned.preset.evaluation),
        sorted((prompt.key, prompt.caption) for prompt in prompts),
        held_out.revision,
        Shards(planned.data / "train").revision,
        planned.preset.seed,
    ]
    facts = {"stage": list(planned.preset.stages)[-1], "seed": planned.preset.seed, "n": len(prompts)}
    return {"protocol": planned.protocol.name, "protocol_digest": digest(decides)[:12], **facts}


def write_results(folder: Path, found: list[dict[str, Any]]) -> None:
    """results.json: these points, and those of sweeps before."""
    file = folder / "results.json"
    before = load_json(file) if file.exists() else []
    write_json(file, list({point["point"]: point for point in [*before, *found]}.values()))


def result_lines(folder: Path) -> Iterator[str]:
    """A table of the points' headline numbers, for a terminal."""
    from evaluation.results import HEADLINE, SAMPLES

    for point in load_json(folder / "results.json"):
        named = {metric["name"]: metric for metric in point["metrics"]}
        values = [
            f"{metric['label']} {metric['values'][SAMPLES]:.4g}"
            for metric in named.values()
            if SAMPLES in metric["values"]
        ]
        low, high = named.get(HEADLINE.name, {}).get("interval", {}).get(SAMPLES, (None, None))
        interval = "" if low is None else f"  [{low:.3f}, {high:.3f}]"
        yield f"{point['point']:24} N={point['n']}{interval}  " + "; ".join(values)


def preset_lines(name: str, protocol: Protocol, sweep: dict[str, list[str]]) -> Iterator[str]:
    """What measuring a preset's model would take that has not been trained here."""
    preset = resolve(name, {})
    samplings = [sampling for _, sampling in _samplings(preset.sampling, sweep)]
    images, px = protocol.num_samples or preset.evaluation.num_samples, preset.px
    calls = images * sum(sampling.calls for sampling in samplings)
    steps = "/".join(str(steps) for steps in sorted({sampling.steps for sampling in samplings}))
    yield f"{name} is a preset, and no run of it is here; under {protocol.name} ({protocol.summary}):"
    yield f"{len(samplings)} points of {images:,} images, {steps} steps: {calls:,} network calls of {px} px"
    more = "" if px <= 256 else f", and {px} px take more (no rate of theirs is printed)"
    hours = calls * SECONDS_PER_CALL / 3600
    yield f"about {hours:,.0f} A100-hours at Table 2's rate for 256 px{more}; measuring is not counted"
    lines = [f"a trained run: `mdm run {name}`", *lacking(protocol, prompts_set(protocol))]
    yield from (f"missing: {line}" for line in lines)


def released_lines(file: Path, protocol: Protocol) -> Iterator[str]:
    """What measuring one of the authors' checkpoints would take, and what is missing here."""
    from mdm.released.convert import convert

    model = convert(file, file.with_name(f"{file.name}.never-written"), dry_run=True)
    yield f"{file}: the released model {model}"
    yield "the authors' weights, trained on 50 M pairs from Flickr, not on CC12M: their numbers are not this project's"
    yield f"protocol {protocol.name}: {protocol.summary}; {protocol.num_samples:,} samples"
    yield from (f"missing: {line}" for line in lacking(protocol, prompts_set(protocol)))
