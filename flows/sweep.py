"""A run's checkpoints measured under a protocol, point by point: guidance, steps, samplers, checkpoints along the run.

Each point has a folder, ``RUN/evaluations/PROTOCOL/POINT``, with its images and its numbers, done when its markers say
so: killed at any moment, the same command draws what is missing and computes the same.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from prefect import State, flow

from evaluation.captions import held_out_prompts
from evaluation.protocols import PROTOCOLS, Protocol
from evaluation.weights import TABLE, how_to_get
from flows.cancel import ends_cancelled
from flows.data import fitted
from flows.datasets.sets import set_of_samples
from flows.evaluation import evaluate_samples, sample_images
from flows.home import Trouble, datasets, hold, quiet_services, run_folder, weights
from flows.progress import board
from flows.records.tracking import Tracker
from mdm.config import SamplerName, Sampling
from mdm.data.embeddings import TextSource
from mdm.data.leases import Lease
from mdm.data.shards import Shards
from mdm.experiments import SECONDS_PER_CALL
from mdm.experiments import Protocol as ProtocolName
from mdm.files import load_json, write_json
from mdm.presets import Preset, load_preset, resolve
from mdm.run.checkpoint import newest_checkpoint
from mdm.run.folder import find_damage, list_folders
from mdm.structure import digest, from_dict, to_dict
from preprocessing.sets import finished_sets

MEASURED = ("embedded", "watch")  # protocols whose drawing and measuring are joined up
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
    data = set_of_samples(job["val_data"], job.get("val_digest", ""))
    number = chosen.num_samples or preset.evaluation.num_samples
    preset = replace(preset, evaluation=replace(preset.evaluation, num_samples=number))
    sampling = preset.sampling if chosen.guided else replace(preset.sampling, guidance=(1.0,))
    points = list(_points(stage, sampling, sweep))
    return Evaluation(folder, fitted(preset, data, lambda line: None), chosen, data, text, points, asked)


def _run_and_stage(run: str) -> tuple[Path, str]:
    parent, _, stage = run.rstrip("/").rpartition("/")
    if parent and (run_folder(parent) / "config.json").exists():
        return run_folder(parent), stage
    return run_folder(run), ""


def missing(protocol: Protocol, weights: Path, datasets: Path) -> list[str]:
    """A line for everything that a protocol needs and this machine, or this project, lacks."""
    lines = [protocol.lacks] if protocol.lacks else []
    if protocol.name not in MEASURED:
        lines.append("drawing and measuring by its networks is not joined up yet: its parts are (evaluation/)")
    if protocol.data and not finished_sets(datasets, protocol.data):
        lines.append(f"data set {protocol.data}: `mdm data {protocol.data} --source PATH` makes it")
    lacking = [row for row in TABLE if row.name in protocol.networks and not (weights / row.file).exists()]
    return lines + [f"{weights / row.file}: {how_to_get(row, weights / row.file)}" for row in lacking]


def _points(stage: Path, sampling: Sampling, sweep: dict[str, list[str]]) -> Iterator[Point]:
    known = {"guidance": _numbers, "steps": int, "sampler": str, "checkpoint": str}
    for name in sweep:
        if name not in known:
            raise ValueError(f"--sweep {name}=…: what can be swept is {', '.join(known)}")
    checkpoints = _checkpoints(stage, sweep.get("checkpoint"))
    others = {name: values for name, values in sweep.items() if name != "checkpoint"}
    for checkpoint, values in itertools.product(checkpoints, itertools.product(*others.values())):
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
        parts = [f"{name}-{text}" for name, text in zip(others, values, strict=True)]
        if len(checkpoints) > 1:
            parts.insert(0, checkpoint.name)
        yield Point("_".join(parts) or "as-trained", checkpoint, replace(sampling, **fields))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split("/"))  # per level, innermost first; one value serves all


def _checkpoints(stage: Path, asked: list[str] | None) -> list[Path]:
    there = list_folders(stage / "checkpoints")
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
        passes = 1 + any(weight != 1 for weight in sampling.guidance)
        calls += (mine := prompts * sampling.steps * passes)
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
    found, sampling = load_json(done), planned.preset.sampling
    passes = 1 + any(weight != 1 for weight in sampling.guidance)
    return found["seconds"] / (found["images"] / 2 * sampling.steps * passes)


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
    if lines := missing(planned.protocol, weights(), datasets()):
        raise Trouble(f"protocol {protocol} cannot be measured here:\n" + "\n".join(f"  - {line}" for line in lines))
    preset = planned.preset
    if processes:
        preset = replace(preset, hardware=replace(preset.hardware, processes=processes))
    planned.folder.mkdir(parents=True, exist_ok=True)
    with hold(planned.folder / "flow.lock", f"evaluation {planned.folder}"), board(["sample", "evaluate"]) as shown:
        tracker = Tracker(planned.folder, f"{planned.run.name} {planned.protocol.name}", shown.say)
        with ends_cancelled() as end, tracker.recording(), Lease(planned.data, f"evaluation of {planned.run.name}"):
            write_json(planned.folder / "results.json", _measure(planned, preset, tracker, shown.say))
            with tracker.reachable():
                tracker.artifact("", planned.folder / "results.json")
    return end.state or str(planned.folder)


def _measure(planned: Evaluation, preset: Preset, tracker: Tracker, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The numbers of every point."""
    found = []
    for point in planned.points:
        for line in warnings(preset, point.sampling):
            say(f"{point.name}: {line}")
        chosen, ema = replace(preset, sampling=point.sampling), point.checkpoint / "ema"
        folder, data, text = planned.folder / point.name, planned.data, planned.text
        sample_images(chosen, folder / "samples", ema, data, text)
        done = evaluate_samples(chosen, folder, ema, data, text, tracker, point.name, point.nimg)
        facts = point_facts(planned, point)
        with tracker.reachable():
            tracker.params(point.name, facts)
        found.append({**facts, "metrics": done["metrics"]})
    return found


def point_facts(planned: Evaluation, point: Point) -> dict[str, Any]:
    """What stands beside a point's numbers; ``protocol_digest`` tells those that may be compared."""
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
    return {
        "protocol": planned.protocol.name,
        "protocol_digest": digest(decides)[:12],
        "point": point.name,
        "checkpoint": point.checkpoint.name,
        "nimg": point.nimg,
        "n": len(prompts),
        **{f"sampling.{name}": value for name, value in to_dict(point.sampling).items()},
    }


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
        low, high = named[HEADLINE.name]["interval"][SAMPLES]
        yield f"{point['point']:24} N={point['n']}  [{low:.3f}, {high:.3f}]  " + "; ".join(values)


def preset_lines(name: str, protocol: Protocol, sweep: dict[str, list[str]], lacking: list[str]) -> Iterator[str]:
    """What measuring a preset's model would take that has not been trained here."""
    preset = resolve(name, {})
    guidances = [float(text) for text in sweep.get("guidance", [])] or [max(preset.sampling.guidance)]
    steps, images, px = preset.sampling.steps, protocol.num_samples or preset.evaluation.num_samples, preset.px
    calls = sum(images * steps * (2 if weight != 1 else 1) for weight in guidances)
    yield f"{name} is a preset, and no run of it is here; under {protocol.name} ({protocol.summary}):"
    yield f"{len(guidances)} points of {images:,} images, {steps} steps: {calls:,} network calls of {px} px"
    more = "" if px <= 256 else f", and {px} px take more (no rate of theirs is printed)"
    hours = calls * SECONDS_PER_CALL / 3600
    yield f"about {hours:,.0f} A100-hours at Table 2's rate for 256 px{more}; measuring is not counted"
    yield from (f"missing: {line}" for line in [f"a trained run: `mdm run {name}`", *lacking])


def released_lines(file: Path, protocol: Protocol, weights: Path, datasets: Path) -> Iterator[str]:
    """What measuring one of the authors' checkpoints would take, and what is missing here."""
    from mdm.released.convert import convert

    model = convert(file, file.with_name(f"{file.name}.never-written"), dry_run=True)
    yield f"{file}: the released model {model}"
    yield "the authors' weights, trained on 50 M pairs from Flickr, not on CC12M: their numbers are not this project's"
    yield f"protocol {protocol.name}: {protocol.summary}; {protocol.num_samples:,} samples"
    yield from (f"missing: {line}" for line in missing(protocol, weights, datasets))
