"""What each printed number needs: number -> experiment -> protocol -> model -> chain of stages -> sampler; the cost.

``EXPERIMENTS`` says what is drawn and measured, ``TRAININGS`` what is trained before. A stage that several trainings
need is one stage, known by ``stage_key``. ``TIMED`` says what a printed speed is of.
"""

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from mdm.config import Model, Sampling
from mdm.paper import BATCH_2, BATCH_2_TRAINING, GPUS_2, GPUS_3, TABLE_2, TABLE_3
from mdm.presets import PRESETS, Preset, merge, resolve, started_at
from mdm.stage import Stage
from mdm.structure import digest, to_dict

Protocol = Literal["coco2014-val-30k", "mdm-released", "imagenet-50k", "cc12m-heldout", "gallery", "watch", "embedded"]
IMAGES: dict[Protocol, int] = {  # per point; cc12m-heldout: 1/1000 of 12.4 M pairs, were they all alive
    "coco2014-val-30k": 30_000, "imagenet-50k": 50_000, "cc12m-heldout": 12_400, "gallery": 128,
}  # fmt: skip
DATA: dict[Protocol, str] = {"coco2014-val-30k": "COCO 2014, validation", "mdm-released": "COCO 2014, validation"}


# -- what is trained ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A chain of stages, which ends with ``stage``: a preset's, with fields replaced. Its name is its run's."""

    name: str
    preset: str
    stage: str = "256"
    fields: dict[str, Any] = field(default_factory=dict)  # as --set has them
    absent: str = ""  # what this project lacks for it; the preset is then the nearest one, for its cost and data
    pace: float = 1.0  # seconds per iteration against that preset's (Table 4)
    columns: tuple[str, ...] = ()  # of Table 3, where no preset comes near
    data: str = ""  # where it is not the preset's alone

    @cached_property
    def resolved(self) -> Preset:
        fields: dict[str, Any] = {"name": self.name}
        for path, value in self.fields.items():
            for key in reversed(path.split(".")):
                value = {key: value}
            fields = merge(fields, value)
        return resolve(self.preset, fields)

    def chain(self) -> list[str]:
        """The names of its stages, the first one first."""
        stages = self.resolved.stages
        names = [self.stage]
        while (start := stages[names[0]].start) is not None:
            names.insert(0, start.stage)
        return names


_NO_PT: dict[str, Any] = {"stages.64": None, "stages.256.start": None}  # null: left out
_SINGLE = _NO_PT | {"stages.256.training.level_weights": [0, 1], "stages.256.training.low_only": 0}


def _after(steps: int, batch_size: int) -> dict[str, Any]:
    """256² grown from a checkpoint within the 64² stage."""
    name = f"{steps // 1000}k"
    return {f"stages.64.cadence.milestones.{name}": steps * batch_size, "stages.256.start.milestone": name}


_PLAIN, _CASCADE, _LATENT, _VIDEO = (
    "a plain UNet, which this project does not have",
    "a cascaded model (App. E.1), which this project does not have",
    "a latent model and its autoencoder (App. E.2), which this project does not have",
    "temporal levels (App. A), which no preset of this project trains",
)
# 8.18 and 3.51 are two trainings: App. F drops no labels, and guidance needs dropped ones (10 %: our choice). Fig. 8a's
# lengths stand in its plot only; those here are the ones that the paper prints elsewhere (no PT, Table 3, Fig. 4,
# App. B). Its points share one 64² stage, and each is a 256² stage of its own.
TRAININGS = {
    trained.name: trained
    for trained in (
        Trained(name="imagenet-256", preset="imagenet-256"),
        Trained(name="imagenet-256-dropout", preset="imagenet-256-dropout"),
        Trained(name="imagenet-256-after-200k", preset="imagenet-256", fields=_after(200_000, 512)),
        Trained(name="imagenet-256-after-100k", preset="imagenet-256", fields=_after(100_000, 512)),
        Trained(name="imagenet-256-no-pt", preset="imagenet-256", fields=_NO_PT),
        Trained(name="imagenet-256-single", preset="imagenet-256", fields=_SINGLE),
        Trained(name="imagenet-256-simple", preset="imagenet-256", fields=_NO_PT, absent=_PLAIN, pace=1.03),
        Trained(name="imagenet-256-cascaded", preset="imagenet-256", absent=_CASCADE, pace=0.96),
        Trained(name="imagenet-256-latent", preset="imagenet-256", fields=_NO_PT, absent=_LATENT, pace=0.74),
        Trained(name="cc12m-256", preset="cc12m-256"),
        Trained(name="cc12m-256-three", preset="cc12m-1024-five", fields={"stages.1024": None}),
        Trained(name="cc12m-256-after-390k", preset="cc12m-256", fields=_after(390_000, 2048)),
        Trained(name="cc12m-256-no-pt", preset="cc12m-256", fields=_NO_PT),
        Trained(name="cc12m-256-single", preset="cc12m-256", fields=_SINGLE),
        Trained(name="cc12m-256-cascaded", preset="cc12m-256", absent=_CASCADE, pace=0.96),
        Trained(name="cc12m-256-latent", preset="cc12m-256", fields=_NO_PT, absent=_LATENT, pace=0.74),
        Trained(name="cc12m-1024", preset="cc12m-1024", stage="1024"),
        Trained(name="cc12m-1024-five", preset="cc12m-1024-five", stage="1024"),
        Trained(
            name="video-16x256",
            preset="cc12m-256",
            absent=_VIDEO,
            columns=("CC 64", "CC 64 → Vid 16x64", "Vid 16x64 → 16x256"),
            data="cc12m, webvid",
        ),
    )
}


def stage_key(preset: Preset, name: str) -> str:
    """What determines a stage's weights, as a digest: how it is computed, reported and called does not."""
    stage = preset.stages[name]
    start: dict[str, Any] = {}
    if stage.start is not None:
        parent = stage_key(preset, stage.start.stage)
        start = to_dict(stage.start) | {"stage": parent, "milestone": started_at(preset, name)}
    return digest([stage.model, stage.training, start, preset.data, preset.text, preset.seed])


# -- what is timed -----------------------------------------------------------------------------------------------------

TIMED_STEPS = 1000  # our choice: a speed needs no whole training


def _timed(name: str, preset: str, stage: str, batch_size: int, absent: str = "", **training: float) -> Trained:
    """A short training of one stage alone, at a printed batch."""
    nimg, found = TIMED_STEPS * batch_size, PRESETS[preset].stages[stage]
    others = {f"stages.{other}": None for other in PRESETS[preset].stages if other != stage}
    short: dict[str, Any] = {"batch_size": batch_size, "nimg": nimg} | training
    own = {f"stages.{stage}.training.{name}": value for name, value in short.items()}
    own |= {} if found.start is None else {f"stages.{stage}.start": None}
    own |= {f"stages.{stage}.cadence.milestones.{kept}": nimg for kept in found.cadence.milestones}
    drawn = {"evaluation.num_samples": BATCH_2}
    return Trained(name=name, preset=preset, stage=stage, fields=others | own | drawn, absent=absent)


def _column(name: str, preset: str, stage: str, column: str, absent: str = "") -> Trained:
    return _timed(name, preset, stage, round(_cell(column, "samples per GPU")) * GPUS_3, absent)


def _cell(column: str, metric: str) -> float:
    return next(number.value for number in TABLE_3 if (number.column, number.metric) == (column, metric))


# Table 4's batch is not printed: App. B's is our reading.
_BATCH_4 = PRESETS["imagenet-256"].stages["256"].training.batch_size
TIMED = {
    timed.name: timed
    for timed in (
        _timed("table-2-unet", "imagenet-256", "256", BATCH_2_TRAINING, _PLAIN),
        _timed("table-2-nested", "imagenet-256", "256", BATCH_2_TRAINING, low_only=0.0),
        _column("table-3-imagenet-64", "imagenet-256", "64", "INet 64"),
        _column("table-3-imagenet-256", "imagenet-256", "256", "INet 64 → 256"),
        _column("table-3-cc12m-64", "cc12m-256", "64", "CC 64"),
        _column("table-3-cc12m-256", "cc12m-256", "256", "CC 64 → 256"),
        _column("table-3-cc12m-1024", "cc12m-1024", "1024", "CC 256 → 1024"),
        _column("table-3-video", "cc12m-256", "256", "CC 64 → Vid 16x64", _VIDEO),
        _timed("table-4-mdm", "imagenet-256", "256", _BATCH_4),
        _timed("table-4-simple", "imagenet-256", "256", _BATCH_4, _PLAIN),
        _timed("table-4-cascaded", "imagenet-256", "256", _BATCH_4, _CASCADE),
        _timed("table-4-latent", "imagenet-256", "256", _BATCH_4, _LATENT),
    )
}


def iteration_of(stage: Stage) -> tuple[Model, int, float]:
    """What decides how long an iteration takes: neither how many there are, nor what the stage starts from."""
    return stage.model, stage.training.batch_size, stage.training.low_only


# -- what is drawn and measured ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A training's checkpoints, measured under a protocol. The sampler is its preset's: DDPM, 250 steps (App. C)."""

    name: str
    where: str
    what: str
    trained: str
    protocol: Protocol
    guidance: tuple[float, ...] = (1.0,)
    points: int = 1  # checkpoints along the run; 20 of a curve: our choice

    def sampling(self, guidance: float) -> Sampling:
        return replace(TRAININGS[self.trained].resolved.sampling, guidance=(guidance,))


def _at_end(where: str, name: str, what: str, trained: str, protocol: Protocol, *guidance: float) -> Experiment:
    return Experiment(name=name, where=where, what=what, trained=trained, protocol=protocol, guidance=guidance)


def _along(where: str, name: str, what: str, trained: str, protocol: Protocol = "imagenet-50k") -> Experiment:
    return Experiment(name=name, where=where, what=what, trained=trained, protocol=protocol, points=20)


_SWEEP = (1.0, 1.35, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0)  # Fig. 8c prints no weights: our choice
EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        _at_end("Table 1", "table-1-imagenet", "FID", "imagenet-256", "imagenet-50k", 1.0),
        _at_end("Table 1", "table-1-imagenet-guided", "FID", "imagenet-256-dropout", "imagenet-50k", 1.5),
        _at_end("Table 1", "table-1-coco", "FID", "cc12m-256", "coco2014-val-30k", 1.0, 1.35),
        _along("Fig. 4a", "fig-4a-mdm", "FID, MDM", "imagenet-256-after-200k"),
        _along("Fig. 4a", "fig-4a-no-pt", "FID, MDM (no PT)", "imagenet-256-no-pt"),
        _along("Fig. 4a", "fig-4a-simple", "FID, simple DM", "imagenet-256-simple"),
        _along("Fig. 4a", "fig-4a-cascaded", "FID, cascaded DM", "imagenet-256-cascaded"),
        _along("Fig. 4a", "fig-4a-latent", "FID, latent DM", "imagenet-256-latent"),
        _along("Fig. 4b, 4c", "fig-4b-mdm", "FID and CLIP, MDM", "cc12m-256-after-390k", "cc12m-heldout"),
        _along("Fig. 4b, 4c", "fig-4b-no-pt", "FID and CLIP, MDM (no PT)", "cc12m-256-no-pt", "cc12m-heldout"),
        _along("Fig. 4b, 4c", "fig-4b-simple", "FID and CLIP, simple DM", "cc12m-256-single", "cc12m-heldout"),
        _along("Fig. 4b, 4c", "fig-4b-cascaded", "FID and CLIP, cascaded DM", "cc12m-256-cascaded", "cc12m-heldout"),
        _along("Fig. 4b, 4c", "fig-4b-latent", "FID and CLIP, latent DM", "cc12m-256-latent", "cc12m-heldout"),
        _along("Fig. 8a", "fig-8a-0k", "FID after no steps at 64²", "imagenet-256-no-pt"),
        _along("Fig. 8a", "fig-8a-100k", "FID after 100K steps at 64²", "imagenet-256-after-100k"),
        _along("Fig. 8a", "fig-8a-200k", "FID after 200K steps at 64²", "imagenet-256-after-200k"),
        _along("Fig. 8a", "fig-8a-300k", "FID after 300K steps at 64²", "imagenet-256"),
        _along("Fig. 8b", "fig-8b-two", "CLIP, two levels", "cc12m-256", "cc12m-heldout"),
        _along("Fig. 8b", "fig-8b-three", "CLIP, three levels", "cc12m-256-three", "cc12m-heldout"),
        _at_end("Fig. 8c", "fig-8c", "FID against CLIP over guidance", "cc12m-256", "coco2014-val-30k", *_SWEEP),
        _along("Fig. 12", "fig-12-unet", "FID, UNet", "imagenet-256-simple"),
        _along("Fig. 12", "fig-12-nested", "FID, Nested UNet", "imagenet-256-single"),
        _at_end("Fig. 5, 13-15", "gallery-imagenet", "pictures", "imagenet-256-dropout", "gallery", 2.0, 2.5),
        _at_end("Fig. 9, 16", "gallery-256", "pictures", "cc12m-256", "gallery", 7.0),
        _at_end("Fig. 1", "gallery-1024-five", "pictures, five levels", "cc12m-1024-five", "gallery", 7.0),
        _at_end("Fig. 9, 11, 17, 18", "gallery-1024", "pictures", "cc12m-1024", "gallery", 7.0),
        _at_end("Fig. 1, 19", "gallery-video", "clips", "video-16x256", "gallery", 7.0),
    )
}


# -- what it costs -----------------------------------------------------------------------------------------------------


def column_hours(column: str) -> float:
    """A100-hours of a column of Table 3: its iterations by its seconds by 32 GPUs."""
    return _cell(column, "iterations (K)") * 1000 * _cell(column, "s per iteration") * GPUS_3 / 3600


_PACE = {
    ("imagenet", 64): "INet 64",
    ("imagenet", 256): "INet 64 → 256",
    ("cc12m", 64): "CC 64",
    ("cc12m", 256): "CC 64 → 256",
    ("cc12m", 1024): "CC 256 → 1024",
}


def gpu_hours(trainings: Iterable[Trained]) -> float:
    """A100-hours of trainings together, at Table 3's seconds per image; a stage that several need counts once.

    Of a model with more levels too, which Sec. 4.3 calls a negligible cost. Where App. B and Table 3 disagree
    (ImageNet's schedule; 768 or 384 images per step at 1024²) the images are the preset's, App. B's.
    """
    seconds: dict[str, float] = {}
    for trained in trainings:
        if trained.columns:
            seconds |= {f"column {column}": column_hours(column) * 3600 for column in trained.columns}
            continue
        preset = trained.resolved
        for name in trained.chain():
            stage = preset.stages[name]
            column = _PACE[preset.data.name, stage.model.resolutions[-1]]
            each = _cell(column, "s per iteration") / _cell(column, "samples per GPU")
            own = trained.absent and name == trained.stage  # another network; what it starts from is shared
            key = f"{trained.name} {name}" if own else stage_key(preset, name)
            seconds[key] = stage.training.nimg * each * (trained.pace if own else 1)
    return sum(seconds.values()) / 3600


_STEP_S = next(n.value for n in TABLE_2 if (n.system, n.metric) == ("Nested UNet", "inference, s per step"))
SECONDS_PER_CALL = _STEP_S * GPUS_2 / BATCH_2  # of an A100, for one image of 256 px
# The same of an H200, by the highest resolution of the paper's models, in bfloat16 and not compiled, 16 images at once:
# benchmarks/results/2026-11-26-gpu-check.md.
SECONDS_PER_CALL_H200 = {64: 0.0023, 256: 0.0057, 1024: 0.0322}


def drawing_hours(experiment: Experiment) -> float:
    """A100-hours of drawing its images, at Table 2's 0.41 s per step of 256 images on 8 GPUs; guided ones count twice.

    Measured at 256²; a gallery is a hundred images, whatever their size.
    """
    passes = sum(2 if guidance != 1 else 1 for guidance in experiment.guidance)
    calls = IMAGES[experiment.protocol] * experiment.points * passes * experiment.sampling(1).steps
    return calls * SECONDS_PER_CALL / 3600


def run_command(trained: Trained) -> str:
    """What trains it, and nothing beside it."""
    fields = {"name": trained.name} if trained.name != trained.preset else {}
    run = ["mdm", "run", trained.preset]
    for path, value in (fields | trained.fields).items():
        run += ["--set", f"{path}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(run)


def commands(experiment: Experiment) -> list[str]:
    """What runs it; nothing where something is absent."""
    trained = TRAININGS[experiment.trained]
    if trained.absent:
        return []
    measure = ["mdm", "evaluate", trained.name, "--protocol", experiment.protocol]
    if experiment.guidance != (1.0,) and experiment.protocol != "gallery":  # each of its figures has its own
        measure += ["--sweep", "guidance=" + ",".join(f"{weight:g}" for weight in experiment.guidance)]
    if experiment.points > 1:
        measure += ["--sweep", "checkpoint=all"]
    return [run_command(trained), shlex.join(measure)]
