"""What decides each stage's result, and nothing else: a stage is known by it (``flows/markers.py`` compares).

How a thing is computed, reported and stored, where it lies and what it is called decide nothing. Nor do held-out data
and removals decide a training: a takedown makes the metrics and the page anew, and only those. The ``*_FORMAT`` numbers
stand beside what they are about.

Trainings of the first format are known, too: ``first_*`` read their inputs.json as today's inputs.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from evaluation.images.captions import Line
from evaluation.networks.features import EfficientNetLite0
from evaluation.results import METRICS_FORMAT
from mdm.config import SAMPLING_FORMAT, Model, Sampling
from mdm.data.embeddings import TextSource
from mdm.presets import Preset, started_at
from mdm.stage import TRAINING_FORMAT, Training
from mdm.structure import digest, from_dict, to_dict
from preprocessing.manifest import read_json


@dataclass(frozen=True, kw_only=True)
class DataInputs:
    """What a training sees."""

    train: str  # digest of the training split as it was made; samples that were removed since leave it as it is
    encoder: str | None  # digest of the captions' encoder; whether its states are stored, and in how many bits, is none


@dataclass(frozen=True, kw_only=True)
class StageInputs:
    """What determines a stage's weights; the parent's is in it, hence all ancestors'."""

    format: int
    model: Model
    training: Training
    start: "StartInputs | None"
    data: DataInputs
    seed: int


@dataclass(frozen=True, kw_only=True)
class StartInputs:
    """What determines the weights that a stage starts from. The names of stages and milestones do not."""

    parent: StageInputs
    nimg: int  # images that the parent had seen
    weights: Literal["ema", "raw"]
    optimizer: Literal["reset", "carried"]
    model: Model
    seed: int


@dataclass(frozen=True, kw_only=True)
class SampleInputs:
    """What determines an image besides its prompt and number, which ``captions.jsonl`` says of each."""

    format: int
    weights: str  # sha256 of model.safetensors
    sampling: Sampling  # how many are drawn at once decides nothing: see ``without_batch``
    seed: int
    encoder: str | None
    negative_prompt: str = ""


@dataclass(frozen=True, kw_only=True)
class Revision:
    """A split as it was made, how often samples were removed from it, and which (``mdm/data/tars.py:revision_of``)."""

    digest: str
    revision: int
    removed: str = ""


@dataclass(frozen=True, kw_only=True)
class MetricsInputs:
    """What determines the metrics: which images of which prompts, how they are looked at, what they stand beside."""

    format: int
    samples: SampleInputs
    prompts: str  # digest of the lines of captions.jsonl that are measured
    extractor: str
    feature_px: int
    num_real: int
    train: Revision
    val: Revision


def data_inputs(train: str, text: TextSource | None) -> DataInputs:
    """``train``: digest of the training split as made."""
    return DataInputs(train=train, encoder=None if text is None else text.encoder_digest)


def stage_inputs(preset: Preset, name: str, data: DataInputs) -> StageInputs:
    stage = preset.stages[name]
    return StageInputs(
        format=TRAINING_FORMAT,
        model=stage.model,
        training=stage.training,
        start=None if stage.start is None else start_inputs(preset, name, data),
        data=data,
        seed=preset.seed,
    )


def start_inputs(preset: Preset, name: str, data: DataInputs) -> StartInputs:
    stage = preset.stages[name]
    assert stage.start is not None
    return StartInputs(
        parent=stage_inputs(preset, stage.start.stage, data),
        nimg=started_at(preset, name),
        weights=stage.start.weights,
        optimizer=stage.start.optimizer,
        model=stage.model,
        seed=preset.seed,
    )


def sample_inputs(preset: Preset, weights: str, text: TextSource | None, negative: str = "") -> SampleInputs:
    return SampleInputs(
        format=SAMPLING_FORMAT,
        weights=weights,
        sampling=without_batch(preset.sampling),
        seed=preset.seed,
        encoder=None if text is None else text.encoder_digest,
        negative_prompt=negative,
    )


def without_batch(sampling: Sampling) -> Sampling:
    """An image does not depend on how many are drawn beside it."""
    return replace(sampling, batch_size=Sampling.batch_size)


def metrics_inputs(
    preset: Preset, samples: SampleInputs, lines: list[Line], train: dict[str, Any], val: dict[str, Any]
) -> MetricsInputs:
    """``lines``: of the samples that are measured; ``train``, ``val``: the splits' digests and revisions."""
    return MetricsInputs(
        format=METRICS_FORMAT,
        samples=samples,
        prompts=_prompts([(line.index, line.key, line.caption) for line in lines]),
        extractor=EfficientNetLite0.name,
        feature_px=preset.evaluation.feature_px,
        num_real=preset.evaluation.num_real,
        train=Revision(**train),
        val=Revision(**val),
    )


def results_inputs(preset: Preset) -> dict[str, Any]:
    """All fields that decide a run's results: what tells runs of one preset apart."""
    nothing = DataInputs(train="", encoder=None)
    return {
        "data": preset.data,
        "text": preset.text,
        "stages": {name: stage_inputs(preset, name, nothing) for name in preset.stages},
        "sampling": without_batch(preset.sampling),
        "evaluation": preset.evaluation,
    }


def _prompts(lines: list[tuple[int, str, str]]) -> str:
    return digest(sorted(lines))


# -- the first format (until November 2026) ----------------------------------------------------------------------------
# A stage's data were the digests of the split and of its embeddings, parents were digests. What inputs.json lacks
# stands in the other files of the run. Samples were drawn with other noise (``SAMPLING_FORMAT``): they are drawn anew.


def first_stage(folder: Path, found: dict[str, Any]) -> StageInputs | None:
    """inputs.json of a training of the first format, as today's. None where it is none, or its parent is gone."""
    try:
        start = found["start"]
        return StageInputs(
            format=1,
            model=from_dict(Model, found["model"]),
            training=from_dict(Training, found["training"]),
            start=None if start is None else _first_start(folder, start),
            data=DataInputs(train=found["data"][0], encoder=_encoder(folder / "job.json")),
            seed=found["seed"],
        )
    except (OSError, KeyError, IndexError, TypeError, ValueError):
        return None


def first_start(folder: Path, found: dict[str, Any]) -> StartInputs | None:
    """inputs.json of a grown start of the first format, as today's."""
    try:
        return _first_start(folder, found)
    except (OSError, KeyError, TypeError, ValueError):
        return None


def _first_start(folder: Path, found: dict[str, Any]) -> StartInputs:
    """The parent is the stage of the same run, set aside or not, that has the digest."""
    for path in sorted(folder.parent.glob("*/inputs.json")):
        written = read_json(path) or {}
        parent = first_stage(path.parent, written["inputs"]) if written.get("digest") == found["parent"] else None
        if parent is not None:
            return from_dict(StartInputs, {**found, "parent": to_dict(parent)})
    raise KeyError(found["parent"])


def _encoder(job: Path) -> str | None:
    text = json.loads(job.read_text())["text"]
    return None if text is None else text["encoder_digest"]
