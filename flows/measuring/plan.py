"""What is measured of a run: the points, each a checkpoint and a way of drawing, and what is missing for them here."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from evaluation.images.asked import prompts_of, refuse
from evaluation.images.captions import Prompt
from evaluation.images.gallery import guidances
from evaluation.measuring.networks import missing
from evaluation.pages.points import read_results
from evaluation.protocols import PROTOCOLS, STAND_INS, Protocol
from flows.datasets.sets import set_of_samples
from flows.home import datasets, run_folder, weights
from mdm.config import Model, SamplerName, Sampling, brief_guidance
from mdm.data.embeddings import TextSource
from mdm.data.shards import Shards
from mdm.data.text import find_encoder
from mdm.experiments import Protocol as ProtocolName
from mdm.files import load_json, write_json
from mdm.presets import Preset, load_preset
from mdm.run.checkpoint import Damaged, last_checkpoint, list_points
from mdm.run.folder import find_damage
from mdm.structure import from_dict
from preprocessing.manifest import read_manifest, samples_left
from preprocessing.sets import SPLITS, finished_sets

BEGUN = "data.json"  # the splits' digests, in an evaluation's folder


@dataclass(frozen=True)
class Point:
    """One thing that is measured: weights, of which checkpoint, after how many images, and how they are drawn from."""

    name: str
    checkpoint: str
    weights: Path
    nimg: int
    sampling: Sampling


@dataclass(frozen=True)
class Evaluation:
    """A run under a protocol: what it was trained on, and the points to measure."""

    run: Path
    preset: Preset
    protocol: Protocol
    data: Path | None  # the set that is asked for, or measured against; None: it is not here, or none is needed
    text: TextSource | None
    points: list[Point]
    stage: str = ""  # where it is not the run's last
    about: str = ""  # what must stand beside every number

    @property
    def model(self) -> Model:
        return self.preset.model

    def prompts(self, sampling: Sampling) -> list[Prompt]:
        """What is asked for at a point; the guidance matters to the figures alone, each of which has its own."""
        number = self.preset.evaluation.num_samples
        return prompts_of(self.protocol, self.model, self.data, number, sampling.guidance[0])

    def count(self, sampling: Sampling) -> int:
        """How many, before what was removed is left out."""
        figures = self.protocol.prompts == "figures"
        return len(self.prompts(sampling)) if figures else self.preset.evaluation.num_samples

    def lacks(self) -> list[str]:
        """A line for everything that is missing to measure it here."""
        return lacking(self.protocol, self.data, self.preset.text)

    def digests(self) -> dict[str, str]:
        """Of the splits that are asked for or measured against, as they were made."""
        asked = (self.protocol.split,) if self.protocol.prompts == "held out" else ()
        splits = dict.fromkeys((*asked, *self.protocol.reference_splits))
        return {} if self.data is None else {split: read_manifest(self.data / split)["digest"] for split in splits}

    def revisions(self) -> dict[str, dict[str, Any]]:
        """Of both splits of the set: digest, and how often samples were removed."""
        return {} if self.data is None else {split: Shards(self.data / split).revision for split in SPLITS}

    def begin(self) -> None:
        """Make its folder, which says from then on of which data its images and numbers are (``as_begun``)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / BEGUN, self.digests())

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
    whole, chosen = load_preset(folder / "config.json"), PROTOCOLS[protocol]
    preset = up_to(whole, asked, folder.name)
    stage = folder / list(preset.stages)[-1]
    if not (stage / "job.json").exists():
        raise ValueError(f"{stage} has not been trained: `mdm run` trains it, `mdm status {folder.name}` says how far")
    job = load_json(stage / "job.json")
    text = None if job["text"] is None else from_dict(TextSource, job["text"])
    if chosen.data:
        data = prompts_set(chosen)
    elif chosen.prompts == "figures" and text is not None:  # captions are of no set, classes are
        data = None
    else:
        data = set_of_samples(job["val_data"], job.get("val_digest", ""))
    number = chosen.num_samples or preset.evaluation.num_samples
    preset = replace(preset, evaluation=replace(preset.evaluation, num_samples=number))
    model = preset.model
    refuse(chosen, model, folder.name)
    points = list(_points(stage, replace(preset.sampling, **chosen.sampling), swept(chosen, model, sweep)))
    for point in points:
        model.check_sampling(point.sampling)
    if data is not None and chosen.prompts == "held out":
        preset = fitted_to(preset, data / chosen.split)
    return as_begun(Evaluation(folder, preset, chosen, data, text, points, asked))


def up_to(preset: Preset, stage: str, run: str) -> Preset:
    """The preset as if that stage were its last. Raises ValueError where it has none of that name."""
    names = list(preset.stages)
    if stage and stage not in names:
        raise ValueError(f"{run} has no stage {stage!r}; there are {', '.join(names)}")
    kept = names[: names.index(stage or names[-1]) + 1]
    return replace(preset, stages={name: preset.stages[name] for name in kept})


def as_begun(planned: Evaluation) -> Evaluation:
    """Raises ValueError where a split was exchanged under what is there of an evaluation: its numbers would be of two
    data sets. A removal of samples exchanges nothing. And where the numbers that are there cannot be read."""
    read_results(planned.folder)
    begun = load_json(planned.folder / BEGUN) if (planned.folder / BEGUN).exists() else {}
    for split, digest in planned.digests().items():
        if begun.get(split, digest) != digest:
            raise ValueError(
                f"{planned.folder} was begun with another {split} split of {planned.protocol.data or 'its data'} "
                f"(digest {begun[split][:12]}, {planned.data} has {digest[:12]}): put that one back, or move the "
                "folder away"
            )
    return planned


def swept(protocol: Protocol, model: Model, sweep: dict[str, list[str]]) -> dict[str, list[Any]]:
    """The values that are swept, each once, however it was written; with what a protocol sweeps by itself: the figures'
    guidance. Raises ValueError for a value that is none."""
    for name, texts in sweep.items():
        if name not in _VALUES:
            raise ValueError(f"--sweep {name}=…: what can be swept is {', '.join(_VALUES)}")
        if not texts:
            raise ValueError(f"--sweep {name}=: give at least one value")
    found = {name: list(dict.fromkeys(_value(name, text) for text in texts)) for name, texts in sweep.items()}
    levels = len(model.levels)
    if long := [scales for scales in found.get("guidance", []) if len(scales) > levels]:
        raise ValueError(f"--sweep guidance={_shown(long[0]).replace('-', '/')}: there are {levels} levels")
    if protocol.prompts != "figures":
        return found
    if "guidance" in sweep:
        raise ValueError("--sweep guidance: each figure has its own (`mdm sample RUN PROMPT --guidance W` has any)")
    return {"guidance": [(guidance,) for guidance in guidances(model)], **found}


def _scales(text: str) -> tuple[float, ...]:
    """Per level, innermost first."""
    return brief_guidance([float(part) for part in text.split("/")])


_VALUES: dict[str, Callable[[str], Any]] = {"guidance": _scales, "steps": int, "sampler": str, "checkpoint": str}


def _value(name: str, text: str) -> Any:
    try:
        return _VALUES[name](text)
    except ValueError:
        raise ValueError(f"--sweep {name}={text}: not a number") from None


def _shown(value: Any) -> str:
    """A value as a part of a folder's name."""
    return "-".join(str(scale).removesuffix(".0") for scale in value) if isinstance(value, tuple) else str(value)


def _run_and_stage(run: str) -> tuple[Path, str]:
    parent, _, stage = run.rstrip("/").rpartition("/")
    if parent and (run_folder(parent) / "config.json").exists():
        return run_folder(parent), stage
    return run_folder(run), ""


def fitted_to(preset: Preset, split: Path) -> Preset:
    """At most as many samples as the split has. Raises ValueError where a removal left none."""
    there = samples_left(read_manifest(split))
    if not there:
        raise ValueError(f"{split} has no sample that was not removed: there is nothing to ask for")
    number = min(preset.evaluation.num_samples, read_manifest(split)["samples"])
    return replace(preset, evaluation=replace(preset.evaluation, num_samples=number))


def lacking(protocol: Protocol, data: Path | None, encoder: str | None) -> list[str]:
    """A line for everything that a protocol needs and this machine lacks.

    ``data``: the set whose captions are asked for; none: it is not here. ``encoder``: the model's, of captions.
    """
    if protocol.name in STAND_INS:
        return []
    lines = missing(protocol, weights(), [] if data is None else [data / split for split in protocol.reference_splits])
    others = protocol.data or protocol.negative_prompt or protocol.prompts == "figures"
    if encoder is not None and others:  # captions that the training did not read
        try:
            find_encoder(encoder, weights(), download=False)
        except ValueError as error:
            lines.append(str(error))
    return lines


def prompts_set(protocol: Protocol) -> Path | None:
    """The newest set of the data set that a protocol names; None where there is none, or it names none."""
    sets = finished_sets(datasets(), protocol.data) if protocol.data else []
    return sets[-1] if sets else None


def _points(stage: Path, sampling: Sampling, sweep: dict[str, list[Any]]) -> Iterator[Point]:
    """A point's name says which checkpoint it is of: which one is the last changes as a training goes on."""
    checkpoints = _checkpoints(stage, sweep.get("checkpoint"))
    for checkpoint, (name, chosen) in itertools.product(checkpoints, samplings(sampling, sweep)):
        nimg = int(checkpoint.name.removeprefix("nimg-"))
        yield Point("_".join(filter(None, (checkpoint.name, name))), checkpoint.name, checkpoint / "ema", nimg, chosen)


def samplings(sampling: Sampling, sweep: dict[str, list[Any]]) -> list[tuple[str, Sampling]]:
    """Every combination of the values (``swept``) of all but checkpoints, by name; "" is the sampling as it is."""
    others, found = {name: values for name, values in sweep.items() if name != "checkpoint"}, []
    for values in itertools.product(*others.values()):
        fields: dict[str, Any] = dict(zip(others, values, strict=True))
        if "sampler" in fields:
            if fields["sampler"] not in get_args(SamplerName):
                raise ValueError(f"--sweep sampler={fields['sampler']}: there are {', '.join(get_args(SamplerName))}")
            fields["spacing"] = None  # that one's, not the run's
        name = "_".join(f"{name}-{_shown(value)}" for name, value in zip(others, values, strict=True))
        found.append((name, replace(sampling, **fields)))
    return found


def _checkpoints(stage: Path, asked: list[str] | None) -> list[Path]:
    """Those asked for; the last one without. Raises ValueError where one is damaged: another would be another model."""
    there = {path.name: path for path in list_points(stage)}
    if asked is None:
        try:
            last = last_checkpoint(stage / "checkpoints")
        except Damaged as error:
            take = f"; to measure another: --sweep checkpoint={error.whole.name}" if error.whole else ""
            raise ValueError(f"{error}{take}") from error
        if last is None:
            raise ValueError(f"{stage} has no checkpoint yet")
        return [last]
    if lacking := [name for name in asked if name != "all" and name not in there]:
        raise ValueError(f"{stage} has no checkpoint {lacking[0]!r}; there are {', '.join(there)}")
    chosen = list(there.values()) if "all" in asked else [there[name] for name in asked]
    for path in chosen:
        if (problem := find_damage(path)) is not None:
            raise ValueError(f"{path} is damaged ({problem}): leave it out of --sweep checkpoint=…")
    return chosen
