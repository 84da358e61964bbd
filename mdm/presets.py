"""Named rows: the paper's models (App. A) and whole pipelines from data to report (App. B), smallest first.

Where the paper is silent, the choice is ours and the comment says so.
"""

from dataclasses import dataclass
from typing import Any, Literal

from mdm.config import Level, Model, Sampling, Text, Training, check
from mdm.embeddings import Way
from mdm.structure import from_dict, to_dict
from mdm.text import ENCODERS


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which images, at which size."""

    source: Literal["openmoji", "prepared"]  # prepared: a finished dataset folder, put there by hand
    name: str  # folder below MDM_HOME/datasets, with train/ and val/
    resolution: int  # px
    skin_tones: bool = False  # openmoji: also the five skin-tone variants of people and hands
    val_fraction: float = 0.05  # openmoji: held out; the paper holds out 1/1000 of CC12M (App. F)
    limit: int = 0  # openmoji: use only so many drawings; 0 = all

    def __post_init__(self) -> None:
        check(self.resolution >= 8, f"data.resolution must be at least 8, got {self.resolution}")
        check(0 < self.val_fraction < 1, f"data.val_fraction must lie between 0 and 1, got {self.val_fraction}")
        check(self.limit >= 0, f"data.limit must not be negative, got {self.limit}")
        check("/" not in self.name and self.name not in ("", ".", ".."), f"data.name {self.name!r} is no folder name")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training of the progressive schedule; it starts from the stage before, grown to its model."""

    model: Model
    training: Training


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the trained model is measured with."""

    num_samples: int  # images per set (samples, untrained model, noise)
    feature_px: int = 128  # input size of the feature extractor
    num_real: int = 0  # real images to compare with; 0 = all

    def __post_init__(self) -> None:
        check(self.num_samples >= 8, f"evaluation.num_samples must be at least 8, got {self.num_samples}")
        check(self.feature_px >= 32, f"evaluation.feature_px must be at least 32, got {self.feature_px}")
        check(self.num_real >= 0, f"evaluation.num_real must not be negative, got {self.num_real}")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a run needs and how the trainer uses it."""

    device: Literal["cpu", "cuda"]
    processes: int  # trainer processes on this machine
    threads: int = 0  # CPU threads of each; 0: torch's choice
    data_workers: int = 0  # decoding processes of each
    disk_gb: float = 1.0

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
    text: str  # caption encoder
    embeddings: Literal["auto", Way] = "auto"  # its states: stored, or made while training; auto: what costs least
    stages: dict[str, Stage]  # in order
    sampling: Sampling
    evaluation: Evaluation
    hardware: Hardware
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.text in ENCODERS, f"text must be one of {', '.join(ENCODERS)}; got {self.text!r}")
        check(len(self.stages) > 0, "a preset needs at least one stage")
        for name, stage in self.stages.items():
            top = stage.model.resolutions[-1]
            check(
                self.data.resolution % top == 0,
                f"stages.{name} trains {top} px, which data.resolution {self.data.resolution} is no multiple of",
            )
            check(
                stage.model.text is not None and stage.model.text.dim == ENCODERS[self.text].dim,
                f"stages.{name}.model.text.dim must be {ENCODERS[self.text].dim}, the width of {self.text}",
            )


# -- models ----------------------------------------------------------------------------------------------------------

# emb_channels 1024, 2 text layers, projection 1024, 8 heads. The MLP after attention and the middle blocks are not
# listed in App. A; without the MLP the stated 450 M parameters do not come out (302 M against 436 M).
_PAPER_TEXT = Text(dim=2048, proj_dim=1024, num_layers=2)
_S64 = Level(
    resolution=64,
    channels=(256, 512, 768),
    num_res_blocks=(2, 2, 2),
    num_attn_layers=(0, 1, 5),
    attention_ffn=True,
)
_S256 = Level(resolution=256, channels=(64, 128, 256), num_res_blocks=(2, 2, 1), num_attn_layers=(0, 0, 0), shift=4)
_S1024 = Level(resolution=1024, channels=(32, 32, 64), num_res_blocks=(2, 2, 1), num_attn_layers=(0, 0, 0), shift=16)


def _paper(*levels: Level) -> Model:
    return Model(levels=levels, text=_PAPER_TEXT, emb_channels=1024)


MODELS = {
    "MDM-S64": _paper(_S64),
    "MDM-S64S256": _paper(_S64, _S256),
    "MDM-S64S256S1024": _paper(_S64, _S256, _S1024),
}

# The demo's model (our choice): the same anatomy, small enough to train in minutes on two CPU cores. Few norm groups:
# with 32, layers this narrow would be normalised channel by channel, which takes their colours away. p = 2, as in the
# released 1024 model: averaging S x S pixels divides the noise by S^2, so no level is ahead of the ones inside it.
_TINY_LEVELS = (
    Level(
        resolution=16,
        channels=(32, 48, 64),
        num_res_blocks=(2, 2, 2),
        num_attn_layers=(0, 1, 1),
        attention_ffn=True,
        norm_groups=8,
    ),
    Level(resolution=32, channels=(24, 32), num_res_blocks=(2, 1), num_attn_layers=(0, 0), shift=2, norm_groups=4),
    Level(resolution=64, channels=(16, 24), num_res_blocks=(2, 1), num_attn_layers=(0, 0), shift=4, norm_groups=4),
)


def _tiny(num_levels: int) -> Model:
    text = Text(dim=384, proj_dim=128)
    return Model(levels=_TINY_LEVELS[:num_levels], text=text, emb_channels=128, shift_power=2)


MODELS |= {"tiny-16": _tiny(1), "tiny-16-32": _tiny(2), "tiny-16-32-64": _tiny(3)}


# -- pipelines -------------------------------------------------------------------------------------------------------


def _paper_stage(model: str, batch_size: int, steps: int, max_batch_per_process: int) -> Stage:
    """App. B: Adam (0.9, 0.99), lr 1e-4 after 30,000 warm-up steps, EMA 0.9999, clip 2.0."""
    training = Training(
        nimg=batch_size * steps,
        batch_size=batch_size,
        warmup_nimg=30_000 * batch_size,
        caption_dropout=0.1,  # our choice: Table 1 guides, which needs a trained null caption
        max_batch_per_process=max_batch_per_process,  # Table 3, samples per A100
    )
    return Stage(model=MODELS[model], training=training)


def _tiny_stage(model: str, nimg: int, batch_size: int, log_every: int) -> Stage:
    training = Training(
        nimg=nimg,
        batch_size=batch_size,
        lr=2e-3,
        warmup_nimg=1000,
        lr_decay=0.35,
        ema_decay=0.9995,
        ema_rampup=0.1,
        loss="v",
        caption_dropout=0.1,
        log_every_nimg=log_every,
        eval_every_nimg=nimg // 2,
        checkpoint_every_nimg=max(1, nimg // 6),
    )
    return Stage(model=MODELS[model], training=training)


_PAPER_SAMPLING = Sampling()  # DDPM, 250 steps, dynamic thresholding

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="tiny",
            summary="about ten minutes on two CPU cores: emoji at 16, 32 and 64 px, everything offline",
            data=Data(source="openmoji", name="openmoji-64", resolution=64),
            text="minilm",
            embeddings="cached",
            stages={
                "16": _tiny_stage("tiny-16", 22_400, 32, 640),
                "32": _tiny_stage("tiny-16-32", 9_600, 16, 320),
                "64": _tiny_stage("tiny-16-32-64", 8_000, 8, 160),
            },
            sampling=Sampling(steps=24, guidance=(3.0, 1.0), threshold="clip"),  # white paper must stay white
            evaluation=Evaluation(num_samples=96),
            hardware=Hardware(device="cpu", processes=2, threads=1, disk_gb=1),
        ),
        Preset(
            name="cc12m-256",
            summary="the paper's text-to-image model at 256 px on 32 A100",
            data=Data(source="prepared", name="cc12m-256", resolution=256),
            text="flan-t5-xl",
            embeddings="auto",  # cached takes about 1 TB for CC12M
            stages={
                "64": _paper_stage("MDM-S64", 2048, 500_000, 64),
                "256": _paper_stage("MDM-S64S256", 1024, 500_000, 32),
            },
            sampling=_PAPER_SAMPLING,
            evaluation=Evaluation(num_samples=30_000),
            hardware=Hardware(device="cuda", processes=8, data_workers=8, disk_gb=1_500),
        ),
        Preset(
            name="cc12m-1024",
            summary="the paper's text-to-image model at 1024 px on 32 A100",
            data=Data(source="prepared", name="cc12m-1024", resolution=1024),
            text="flan-t5-xl",
            embeddings="auto",  # cached takes about 1 TB for CC12M
            stages={
                "64": _paper_stage("MDM-S64", 2048, 500_000, 64),
                "256": _paper_stage("MDM-S64S256", 1024, 500_000, 32),
                "1024": _paper_stage("MDM-S64S256S1024", 768, 100_000, 12),
            },
            sampling=_PAPER_SAMPLING,
            evaluation=Evaluation(num_samples=30_000),
            hardware=Hardware(device="cuda", processes=8, data_workers=8, disk_gb=4_000),
        ),
    )
}


def resolve(name: str, overrides: dict[str, Any]) -> Preset:
    """A preset with fields replaced, e.g. {"stages": {"16": {"training": {"nimg": 640}}}}.

    What ``mdm config NAME`` prints is accepted whole. Raises ValueError naming the field and the choices.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    base = to_dict(PRESETS[name])
    for stage in overrides.get("stages") or {}:
        check(stage in base["stages"], f"unknown field stages.{stage}; the stages are {', '.join(base['stages'])}")
    return from_dict(Preset, merge(base, overrides))


def merge(base: Any, changes: Any) -> Any:
    """Nested dicts, with those of ``changes`` in place of those of ``base``."""
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return {**base, **{key: merge(base[key], value) if key in base else value for key, value in changes.items()}}
