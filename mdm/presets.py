"""Named rows: whole pipelines from data to report (App. B), smallest first, of the models in ``config.py`` (App. A).

Where the paper is silent, the choice is ours and the comment says so.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mdm.config import ENCODERS, MODELS, Device, Model, Sampling, Way, check, check_growth
from mdm.files import load_json
from mdm.stage import Cadence, Compute, Stage, Start, Storage, Training
from mdm.structure import from_dict, to_dict

LEAST_SAMPLES = 8  # of a set that is measured: fewer say nothing


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which images."""

    name: str  # a data set that `mdm data` lists, or one made from your own pictures
    val_fraction: float = 0.0  # held out; 0: as that data set's row has it
    limit: int = 0  # only so many of what its source lists; 0 = all

    def __post_init__(self) -> None:
        check(0 <= self.val_fraction < 1, f"data.val_fraction must lie between 0 and 1, got {self.val_fraction}")
        check(self.limit >= 0, f"data.limit must not be negative, got {self.limit}")
        check("/" not in self.name and self.name not in ("", ".", ".."), f"data.name {self.name!r} is no folder name")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the trained model is measured with."""

    num_samples: int  # images per set (samples, untrained model, noise)
    feature_px: int = 224  # input size of the feature extractor; 224 is what EfficientNet-Lite0 was trained at
    num_real: int = 0  # training images to compare with; 0 = all

    def __post_init__(self) -> None:
        check(
            self.num_samples >= LEAST_SAMPLES,
            f"evaluation.num_samples must be at least {LEAST_SAMPLES}, got {self.num_samples}",
        )
        check(self.feature_px >= 32, f"evaluation.feature_px must be at least 32, got {self.feature_px}")
        check(self.num_real >= 0, f"evaluation.num_real must not be negative, got {self.num_real}")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a run needs and how the trainer uses it."""

    device: Device
    processes: int  # trainer processes on this machine
    threads: int = 0  # CPU threads of each; 0: torch's choice
    data_workers: int = 0  # decoding processes of each
    disk_gb: float = 1.0
    loose_images: bool = False  # drawn ones as files of their own, to look at; else in a tar for each batch

    def __post_init__(self) -> None:
        check(self.processes >= 1, f"hardware.processes must be at least 1, got {self.processes}")
        check(self.threads >= 0, f"hardware.threads must not be negative, got {self.threads}")
        check(self.data_workers >= 0, f"hardware.data_workers must not be negative, got {self.data_workers}")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A whole reproduction."""

    name: str
    summary: str
    data: Data
    text: str | None  # caption encoder; none for class-conditional models
    embeddings: Literal["auto", Way] = "auto"  # its states: stored, or made while training; auto: what costs least
    stages: dict[str, Stage]  # in the order in which they are trained; the last one is sampled and evaluated
    sampling: Sampling
    evaluation: Evaluation
    hardware: Hardware
    storage: Storage = field(default_factory=Storage)
    seed: int = 0

    def __post_init__(self) -> None:
        known = ", ".join(ENCODERS)
        check(self.text is None or self.text in ENCODERS, f"text must be one of {known}, or null; got {self.text!r}")
        check(len(self.stages) > 0, "a preset needs at least one stage")
        earlier: dict[str, Stage] = {}
        for name, stage in self.stages.items():
            _check_start(name, stage, earlier)
            earlier[name] = stage
            width = None if stage.model.text is None else stage.model.text.dim
            wanted = None if self.text is None else ENCODERS[self.text].dim
            check(width == wanted, f"stages.{name}.model.text.dim is {width}, but text {self.text} has width {wanted}")
            stage.model.check_sampling(self.sampling)

    @property
    def model(self) -> Model:
        """Of the last stage, which is sampled and evaluated."""
        return list(self.stages.values())[-1].model

    @property
    def px(self) -> int:
        """The resolution that it ends with: that of its samples."""
        return self.model.resolutions[-1]


def _check_start(name: str, stage: Stage, earlier: dict[str, Stage]) -> None:
    """Refuse a stage that starts from one that is not trained before it, or that does not keep what it starts from."""
    start = stage.start
    if start is None:
        return
    field, there = f"stages.{name}.start", ", ".join(earlier) or "none"
    check(start.stage in earlier, f"{field}.stage: no stage {start.stage!r} before this one; there are {there}")
    kept = earlier[start.stage].cadence.milestones
    check(
        not start.milestone or start.milestone in kept,
        f"{field}.milestone: stage {start.stage} has no milestone {start.milestone!r} in its cadence",
    )
    check_growth(earlier[start.stage].model, stage.model, f"stages.{name}: ")


def started_at(preset: Preset, name: str) -> int:
    """Images that the parent has seen when a stage starts from it; 0 where it starts from none."""
    start = preset.stages[name].start
    if start is None:
        return 0
    parent = preset.stages[start.stage]
    return parent.cadence.milestones[start.milestone] if start.milestone else parent.training.nimg


def seen_before(preset: Preset, name: str) -> int:
    """Images that a stage's weights had seen in all stages that they come from."""
    start = preset.stages[name].start
    return 0 if start is None else seen_before(preset, start.stage) + started_at(preset, name)


# -- pipelines -------------------------------------------------------------------------------------------------------


# The stand-ins at a run's end watch it, and hold their images at once: 19 GB at 1024 px, 1.2 GB at 256. The paper's
# numbers are those of `mdm evaluate`, whose protocols have their own N and stream. Our choice.
_WATCHED = Evaluation(num_samples=1_000, num_real=2_000)


def _paper_stage(
    model: str,
    batch_size: int,
    steps: int,
    max_batch_per_process: int,
    start: str | None = None,
    caption_dropout: float = 0.0,
    label_dropout: float = 0.0,
    window_shards: int = 0,
    milestone: int | None = None,  # steps
) -> Stage:
    """App. B: Adam (0.9, 0.99), lr 1e-4 after 30,000 warm-up steps, EMA 0.9999, clip 2.0. See ``choices.py``.

    Compiled; the outer levels' activations, of which there are most, are computed again (our choices).
    """
    training = Training(
        nimg=batch_size * steps,
        batch_size=batch_size,
        warmup_nimg=30_000 * batch_size,
        window_shards=window_shards,
        low_only=1 / 3 if len(MODELS[model].levels) > 1 else 0.0,
        caption_dropout=caption_dropout,
        label_dropout=label_dropout,
    )
    return Stage(
        model=MODELS[model],
        training=training,
        start=None if start is None else Start(stage=start),
        compute=Compute(
            max_batch_per_process=max_batch_per_process,  # Table 3, samples per A100
            compile=True,
            recompute=tuple(px for px in MODELS[model].resolutions if px > 256),
        ),
        # What the figures need after weeks: 20 points of a curve, and those that Fig. 4's 256² stages start from.
        cadence=Cadence(
            checkpoint_every_nimg=0,
            checkpoint_every_minutes=30,
            keep_ema_every_nimg=training.nimg // 20,
            milestones={} if milestone is None else {f"{milestone // 1000}k": milestone * batch_size},
        ),
    )


def _cc12m(name: str, summary: str, disk_gb: float, *stages: tuple[str, int, int, int]) -> Preset:
    """App. B's text-to-image schedule; stages as (model, batch size, steps, images per GPU)."""
    names = [str(MODELS[stage[0]].resolutions[-1]) for stage in stages]
    return Preset(
        name=name,
        summary=summary,
        data=Data(name="cc12m"),
        text="flan-t5-xl",
        stages={
            name: _paper_stage(*stage, start, caption_dropout=0.1, window_shards=128, milestone=milestone)
            for name, stage, start, milestone in zip(names, stages, [None, *names], [390_000, None, None], strict=False)
        },
        sampling=_PAPER_SAMPLING,
        evaluation=_WATCHED,
        hardware=Hardware(device="cuda", processes=8, data_workers=8, disk_gb=disk_gb),
    )


def _imagenet(name: str, summary: str, models: str, label_dropout: float) -> Preset:
    """App. B and F: batch 512 and 256 for 300,000 and 500,000 steps."""
    return Preset(
        name=name,
        summary=summary,
        data=Data(name="imagenet"),
        text=None,
        stages={
            "64": _paper_stage(f"MDM-S64-{models}", 512, 300_000, 64, label_dropout=label_dropout, milestone=200_000),
            "256": _paper_stage(f"MDM-S64S256-{models}", 256, 500_000, 32, "64", label_dropout=label_dropout),
        },
        sampling=_PAPER_SAMPLING,
        evaluation=_WATCHED,
        hardware=Hardware(device="cuda", processes=8, data_workers=8, disk_gb=300),
    )


def _tiny_stage(model: str, nimg: int, batch_size: int, log_every: int, start: str | None = None) -> Stage:
    training = Training(
        nimg=nimg,
        batch_size=batch_size,
        lr=2e-3,
        warmup_nimg=1000,
        lr_decay=0.35,
        ema_halflife_nimg=2000,
        ema_rampup=0.1,
        loss="x",
        caption_dropout=0.1,
    )
    cadence = Cadence(log_every_nimg=log_every, eval_every_nimg=nimg // 2, checkpoint_every_nimg=max(1, nimg // 6))
    start_from = None if start is None else Start(stage=start)
    return Stage(model=MODELS[model], training=training, start=start_from, cadence=cadence)


# DDPM, 250 steps, dynamic thresholding; the precision is our choice.
_PAPER_SAMPLING = Sampling(precision="bfloat16")

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="tiny",
            summary="about ten minutes on two CPU cores: emoji at 16, 32 and 64 px, everything offline",
            data=Data(name="openmoji"),
            text="minilm",
            embeddings="cached",
            stages={
                # The outer levels are what is short of training at the end, so they get most of the minutes, in many
                # small steps.
                "16": _tiny_stage("tiny-16", 14_720, 16, 640),
                "32": _tiny_stage("tiny-16-32", 6_720, 8, 320, "16"),
                "64": _tiny_stage("tiny-16-32-64", 8_320, 8, 320, "32"),
            },
            # White paper must stay white: clip. Few steps, most of them where little noise is left. Captions are
            # followed at the inner levels; guidance at 64 px too costs the dearest pass and likeness to real pictures.
            sampling=Sampling(steps=24, spacing="quadratic", guidance=(3.0, 2.0, 1.0), threshold="clip"),
            evaluation=Evaluation(num_samples=128, num_real=600),
            hardware=Hardware(device="cpu", processes=2, threads=1, disk_gb=1, loose_images=True),
        ),
        _cc12m(
            "cc12m-256",
            "the paper's text-to-image model at 256 px on 32 A100",
            1_500,
            ("MDM-S64", 2048, 500_000, 64),
            ("MDM-S64S256", 1024, 500_000, 32),
        ),
        _cc12m(
            "cc12m-1024",
            "the paper's text-to-image model at 1024 px on 32 A100",
            4_000,
            ("MDM-S64", 2048, 500_000, 64),
            ("MDM-S64S256", 1024, 500_000, 32),
            ("MDM-S64S256S1024", 768, 100_000, 12),
        ),
        _cc12m(
            "cc12m-1024-five",
            "the same with five levels; 256 px is trained by its three inner ones (App. B)",
            4_000,
            ("MDM-S64", 2048, 500_000, 64),
            ("MDM-S64S128S256", 1024, 500_000, 32),
            ("MDM-S64S128S256S512S1024", 768, 100_000, 12),
        ),
        _imagenet("imagenet-256", "the paper's class-conditional model, no label dropped", "imagenet", 0),
        _imagenet(
            "imagenet-256-dropout", "the same with 10 % of labels dropped, for guidance", "imagenet-dropout", 0.1
        ),
    )
}


def resolve(name: str, overrides: dict[str, Any]) -> Preset:
    """A preset with fields replaced, e.g. {"stages": {"16": {"training": {"nimg": 640}}}}.

    A stage that is None is left out. What ``mdm config NAME`` prints is accepted whole. Raises ValueError naming the
    field and the choices.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    base = to_dict(PRESETS[name])
    for stage in overrides.get("stages") or {}:
        check(stage in base["stages"], f"unknown field stages.{stage}; the stages are {', '.join(base['stages'])}")
    whole = merge(base, overrides)
    if isinstance(whole["stages"], dict):
        whole["stages"] = {stage: fields for stage, fields in whole["stages"].items() if fields is not None}
    return from_dict(Preset, whole)


def load_preset(path: Path) -> Preset:
    """The preset of a run, as its config.json has it. Raises ValueError naming the file, and the wrong field."""
    try:
        return from_dict(Preset, today(load_json(path)))
    except ValueError as error:
        raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from None


def today(config: Any) -> Any:
    """A run's config.json as of today: until November 2026 its data named a source, a size and which part of it."""
    if not isinstance(config, dict) or "source" not in (config.get("data") or {}):
        return config
    data = config["data"]
    if data["source"] != "openmoji":
        return {**config, "data": {"name": data["name"]}}
    fraction = 0.0 if data["val_fraction"] == 0.075 else data["val_fraction"]  # that data set's own
    return {**config, "data": {"name": "openmoji", "val_fraction": fraction, "limit": data["limit"]}}


def merge(base: Any, changes: Any) -> Any:
    """Nested dicts, with those of ``changes`` in place of those of ``base``."""
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return {**base, **{key: merge(base[key], value) if key in base else value for key, value in changes.items()}}
