"""What measuring will take, what it lacks and what it found, as lines for a person."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluation.images.asked import refuse
from evaluation.images.gallery import class_numbers, left_out
from evaluation.pages.points import read_results
from evaluation.protocols import STAND_INS, Protocol
from evaluation.results import SAMPLES
from flows.datasets.sets import told_outside
from flows.measuring.plan import Evaluation, lacking, prompts_set, samplings, swept, up_to
from mdm.config import MODELS, Model, Sampling
from mdm.diffusion.samplers import SAMPLERS
from mdm.experiments import EXPERIMENTS, IMAGES, SECONDS_PER_CALL, SECONDS_PER_CALL_H200, TRAININGS, stage_key
from mdm.files import load_json
from mdm.paper import TABLE_1, WAYS
from mdm.presets import Preset, resolve
from mdm.stage import Stage

SHEET = "contact-sheet.png"
FEW_STEPS = 50  # below, uniform spacing leaves images of shifted levels with too little variance


def plan_lines(planned: Evaluation) -> Iterator[str]:
    """What measuring will take: images, network calls, hours at the rate at which the run's own samples were drawn."""
    if planned.about:
        yield f"{planned.run.name}: {planned.about}; its numbers are no reproduction"
    yield f"{planned.run.name} under {planned.protocol.name} ({planned.protocol.summary})"
    if planned.data is not None:
        yield from told_outside(planned.data)
    calls, images, seconds, rate = 0, 0, 0.0, _rate(planned)
    for point in planned.points:
        sampling = point.sampling
        images += (count := planned.count(sampling))
        calls += (mine := count * sampling.calls)
        seconds += 0 if rate is None else mine * rate
        shown = "/".join(f"{weight:g}" for weight in sampling.guidance)
        yield f"  {point.name}: {sampling.sampler}, {sampling.steps} steps, guidance {shown}"
        yield from (f"  {point.name}: {line}" for line in warnings(planned.preset, sampling))
    if planned.protocol.prompts == "figures":
        yield from (f"  {line}" for line in left_out_lines(planned))
    if not planned.about:
        yield from (f"  {line}" for line in printed_lines(planned.preset, planned.protocol, planned.run.name))
    pixels = sum(px**2 for px in planned.model.resolutions)
    stand_in = planned.protocol.name in STAND_INS
    beside = " and as many of an untrained model" if stand_in else ""
    yield (
        f"{_points(len(planned.points))}, {images:,} images{beside}, {calls:,} network calls, "
        f"about {(1 + stand_in) * images * pixels * 3 / 1e6:,.0f} MB at most"
    )
    if rate is None:
        yield from _known_rates(calls, planned.model)
    else:
        yield f"about {seconds / 3600:,.2f} hours at the rate of the run's own samples, measuring not counted"


def left_out_lines(planned: Evaluation) -> Iterator[str]:
    """The figures that the model is not asked for."""
    return left_out(planned.model, {} if planned.data is None else class_numbers(planned.data, planned.model))


def _rate(planned: Evaluation) -> float | None:
    """Seconds per network call, of the run's own samples and untrained ones, together."""
    done = planned.run / "samples" / "done.json"
    if not done.exists():
        return None
    found = load_json(done)
    return found["seconds"] / (found["images"] / 2 * planned.preset.sampling.calls)


def warnings(preset: Preset, sampling: Sampling) -> Iterator[str]:
    """What is known to go wrong with such settings."""
    shifted = any(level.shift > 1 for level in preset.model.levels)
    spacing = sampling.spacing or SAMPLERS[sampling.sampler].spacing
    if shifted and spacing == "uniform" and sampling.steps < FEW_STEPS:
        yield (
            f"{sampling.steps} uniformly spaced steps leave images of shifted levels with too little variance (seen: "
            "0.36 for 0.70): take another spacing, another sampler, or more steps"
        )


def result_lines(folder: Path) -> Iterator[str]:
    """A table of the points' headline numbers, for a terminal: one for each digest, as no others compare."""
    points = read_results(folder)
    yield from dict.fromkeys(point["about"] for point in points if point.get("about"))
    digests = dict.fromkeys(point["protocol_digest"] for point in points if point["metrics"])
    width = max((len(point["point"]) for point in points), default=0)
    if len(digests) > 1:
        yield f"measured in {len(digests)} ways, of other captions, real images or settings, which do not compare:"
    for digest in digests:
        if len(digests) > 1:
            yield f"{points[0]['protocol']}, digest {digest}"
        yield from (_result_line(p, width) for p in points if p["metrics"] and p["protocol_digest"] == digest)
    for point in (point for point in points if not point["metrics"]):
        yield f"{point['point']:{width}} N={point['n']}  no numbers: {folder / point['point'] / SHEET}"


def _result_line(point: dict[str, Any], width: int) -> str:
    values = []
    for metric in (metric for metric in point["metrics"] if SAMPLES in metric["values"]):
        low, high = metric["interval"].get(SAMPLES, (None, None))
        interval = "" if low is None else f" [{low:.4g}, {high:.4g}]"
        values.append(f"{metric['label']} {metric['values'][SAMPLES]:.4g}{interval}")
    return f"{point['point']:{width}} N={point['n']}  {'; '.join(values)}"


def _points(count: int) -> str:
    return f"{count} point{'s' * (count != 1)}"


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.1f}" if hours < 10 else f"{hours:,.0f}"


def _known_rates(calls: int, model: Model) -> Iterator[str]:
    """Hours of so many network calls at others' rates, which are of the paper's models."""
    px, papers = model.resolutions[-1], [m for m in MODELS.values() if m.levels[0].resolution == 64]
    if model not in papers or px not in SECONDS_PER_CALL_H200:
        yield "no time is known: this model has drawn no samples here"
        return
    more = "" if px <= 256 else f", and {px} px take more (no rate of theirs is printed)"
    yield f"about {_hours(calls * SECONDS_PER_CALL)} A100-hours at Table 2's rate for 256 px{more}"
    own = _hours(calls * SECONDS_PER_CALL_H200[px])
    yield f"about {own} hours of an H200 at the rate measured there for {px} px, not compiled"
    yield "measuring is not counted"


def printed_lines(preset: Preset, protocol: Protocol, run: str) -> Iterator[str]:
    """Whose number of Table 1 a protocol gives: that of the last stage here, or of one before it."""
    last = list(preset.stages)[-1]
    for name, experiment in EXPERIMENTS.items():
        printed = [n for n in TABLE_1 if n.experiment == name and protocol.name in dict(WAYS[n.data])]
        trained = TRAININGS[experiment.trained]
        wanted = stage_key(replace(trained.resolved, seed=preset.seed), trained.stage) if printed else ""
        for stage in (stage for stage in preset.stages if printed and stage_key(preset, stage) == wanted):
            numbers = " and ".join(f"{n.printed} (guidance {n.guidance:g})" for n in printed)
            elsewhere = "" if stage == last else f", not of stage {last}: name {run}/{stage}"
            yield f"Table 1's {numbers}: of stage {stage}{elsewhere}"


def preset_lines(name: str, stage: str, protocol: Protocol, sweep: dict[str, list[str]]) -> Iterator[str]:
    """What measuring a preset's model, or that of one of its stages, would take that has not been trained here."""
    preset = up_to(resolve(name, {}), stage, name)
    model, (*_, last) = preset.model, preset.stages.values()
    refuse(protocol, model, name)
    sampling, values = replace(preset.sampling, **protocol.sampling), swept(protocol, model, sweep)
    drawn = [sampling for _, sampling in samplings(sampling, values)]
    for each in drawn:
        model.check_sampling(each)
    weights, checkpoints = _checkpoints(name, last, values.get("checkpoint"))
    images = IMAGES.get(protocol.name, protocol.num_samples) or preset.evaluation.num_samples
    calls, count = checkpoints * images * sum(sampling.calls for sampling in drawn), checkpoints * len(drawn)
    steps = "/".join(str(steps) for steps in sorted({sampling.steps for sampling in drawn}))
    yield f"{name} is a preset, and no run of it is here; under {protocol.name} ({protocol.summary}):"
    yield from printed_lines(preset, protocol, name)
    yield f"of stage {list(preset.stages)[-1]}, {weights}"
    yield f"{_points(count)} of {images:,} images, {steps} steps: {calls:,} network calls of {preset.px} px"
    yield from _known_rates(calls, model)
    lines = [f"a trained run: `mdm run {name}`", *lacking(protocol, prompts_set(protocol), preset.text)]
    yield from (f"missing: {line}" for line in lines)


def _checkpoints(name: str, stage: Stage, asked: list[str] | None) -> tuple[str, int]:
    """Which a training would leave, in words, and how many. Raises ValueError where one is named."""
    if asked is None:
        return "its last checkpoint", 1
    if set(asked) != {"all"}:
        raise ValueError(f"--sweep checkpoint: no run of {name} is here, so no checkpoint has a name yet; take all")
    cadence, nimg = stage.cadence, stage.training.nimg
    every = [each for each in (cadence.keep_ema_every_nimg, cadence.keep_every_nimg) if each]
    kept = {nimg, *cadence.milestones.values(), *(at for each in every for at in range(each, nimg, each))}
    newest = cadence.keep_checkpoints - 1
    return f"{len(kept)} kept along its training and {newest} before its end", len(kept) + newest
