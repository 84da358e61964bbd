"""Where the paper is silent, contradicts itself, or differs from its released code: every reading as a named value.

The presets take the default: App. B where it speaks. ``mdm run cc12m-1024 --choice batch-1024=table-3`` takes another.
``docs/choices.md`` is this table (``mdm config --choices``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mdm.presets import Preset
from mdm.stage import Stage

Change = Callable[[str, Stage], dict[str, Any]]  # a stage's name and settings -> fields to replace in it


@dataclass(frozen=True)
class Reading:
    """One way to read the paper: fields to replace in every stage, or in the preset itself."""

    source: str
    change: Change = lambda name, stage: {}
    whole: Callable[[Preset], dict[str, Any]] = lambda preset: {}


@dataclass(frozen=True)
class Choice:
    """A question that the paper leaves open; the first reading is the presets' default."""

    question: str
    readings: dict[str, Reading]


def _sampling(source: str, **fields: Any) -> Reading:
    return Reading(source, whole=lambda preset: {"sampling": fields})


def _guided(source: str, *scales: float) -> Reading:
    """Of models that have a null condition to guide away from."""

    def whole(preset: Preset) -> dict[str, Any]:
        model = preset.model
        null = model.text is not None or (model.labels is not None and model.labels.null)
        return {"sampling": {"guidance": list(scales)}} if null else {}

    return Reading(source, whole=whole)


def _encoder(source: str, name: str) -> Reading:
    return Reading(source, whole=lambda preset: {"text": name} if preset.text == "flan-t5-xl" else {})


def _start(**fields: Any) -> Change:
    return lambda name, stage: {"start": fields} if stage.start is not None else {}


def _training(**fields: Any) -> Change:
    return lambda name, stage: {"training": fields}


def _model(**fields: Any) -> Change:
    return lambda name, stage: {"model": fields}


def _schedule(name: str, stage: Stage, schedule: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """(batch size, steps) of the stages named; the warm-up keeps its number of steps."""
    if name not in schedule:
        return {}
    batch, steps = schedule[name]
    warmup = stage.training.warmup_nimg // stage.training.batch_size * batch
    return {"training": {"batch_size": batch, "nimg": batch * steps, "warmup_nimg": warmup}}


def _text_steps(source: str, stage: str, batch: int, steps: int) -> Reading:
    schedule = {stage: (batch, steps)}
    return Reading(source, lambda name, settings: _schedule(name, settings, schedule) if settings.model.text else {})


def _imagenet_steps(source: str, low: tuple[int, int], high: tuple[int, int]) -> Reading:
    schedule = {"64": low, "256": high}
    return Reading(source, lambda name, settings: _schedule(name, settings, schedule) if settings.model.labels else {})


def _nested(low_only: float) -> Change:
    return lambda name, stage: {"training": {"low_only": low_only}} if len(stage.model.levels) > 1 else {}


def _captions(rate: float) -> Change:
    return lambda name, stage: {"training": {"caption_dropout": rate}} if stage.model.text else {}


def _warmup(steps: int) -> Change:
    return lambda name, stage: {"training": {"warmup_nimg": steps * stage.training.batch_size}}


CHOICES = {
    "cc12m-64": Choice(
        "How long the 64 px text-to-image stage trains",
        {
            "app-b": _text_steps("App. B, Table 3: 500,000 steps of 2048", "64", 2048, 500_000),
            "fig-4": _text_steps("Fig. 4: 390,000 steps", "64", 2048, 390_000),
        },
    ),
    "batch-1024": Choice(
        "Batch size at 1024 px",
        {
            "app-b": _text_steps("App. B: 768", "1024", 768, 100_000),
            "table-3": _text_steps("Table 3: 12 per GPU on 4 x 8 GPUs, 384", "1024", 384, 100_000),
        },
    ),
    "imagenet-schedule": Choice(
        "ImageNet's batch sizes and steps",
        {
            "app-b": _imagenet_steps("App. B: 512 x 300,000, then 256 x 500,000", (512, 300_000), (256, 500_000)),
            "table-3": _imagenet_steps(
                "Table 3 (32 GPUs): 2048 x 100,000, then 1024 x 375,000", (2048, 100_000), (1024, 375_000)
            ),
            "fig-4": _imagenet_steps("Fig. 4: 64 px for 200,000 steps", (512, 200_000), (256, 500_000)),
        },
    ),
    "learning-rate": Choice(
        "Learning rate",
        {
            "app-b": Reading("App. B: 1e-4", _training(lr=1e-4)),
            "released": Reading("released configurations: 5e-5", _training(lr=5e-5)),
        },
    ),
    "warm-up": Choice(
        "Linear warm-up of the learning rate",
        {
            "app-b": Reading("App. B: 30,000 steps", _warmup(30_000)),
            "released": Reading("released configurations: 10,000 steps", _warmup(10_000)),
        },
    ),
    "adam-beta2": Choice(
        "Adam's second beta",
        {
            "app-b": Reading("App. B: 0.99", _training(beta2=0.99)),
            "released": Reading("released code: 0.999, torch's default", _training(beta2=0.999)),
        },
    ),
    "caption-dropout": Choice(
        "Captions dropped in training, so that there is a null caption to guide with",
        {
            "tenth": Reading("stated nowhere, yet Table 1 guides; 10 % is our choice", _captions(0.1)),
            "released": Reading("released code: none dropped", _captions(0.0)),
        },
    ),
    "mixed-resolution": Choice(
        "Fraction of a batch that skips the top level",
        {
            "third": Reading("Sec. 4.1 has it on; 1/3 is the released 256 px file's 2:1, unused there", _nested(1 / 3)),
            "off": Reading("what the released code does in effect", _nested(0.0)),
        },
    ),
    "loss": Choice(
        "Where the squared error is taken (omega_t of Eq. 3, which the paper leaves open)",
        {
            "noise": Reading("released code: in the noise, omega_t = alpha²/sigma²", _training(loss="noise")),
            "eq-3": Reading("Eq. 3 with omega_t = 1: in the image", _training(loss="x")),
            "v": Reading("in what the network predicts (App. C), omega_t = 1/sigma²", _training(loss="v")),
        },
    ),
    "grown-weights": Choice(
        "Which weights of the stage before a grown stage starts from",
        {
            "ema": Reading(
                "the paper does not say; the EMA, which is what samples, is our choice", _start(weights="ema")
            ),
            "raw": Reading("the weights that the optimizer moved", _start(weights="raw")),
        },
    ),
    "grown-optimizer": Choice(
        "Adam's state of the parameters that were there before, when a stage grows",
        {
            "reset": Reading("the paper does not say; released code: never saved", _start(optimizer="reset")),
            "carried": Reading("goes on, the new parameters begin without", _start(optimizer="carried")),
        },
    ),
    "downsampling": Choice(
        "The operator D^r of Eq. 2",
        {
            "average": Reading("Sec. 3.1's example and the released code", _model(downsampling="average")),
            "bilinear": Reading("Sec. 4.1; by halves the same", _model(downsampling="bilinear")),
            "bilinear-antialias": Reading("Sec. 4.1 with antialiasing", _model(downsampling="bilinear-antialias")),
        },
    ),
    "shift-power": Choice(
        "p of SNR / S^p in cosine-shiftS",
        {
            "paper": Reading("App. A as f-DM has it; released 64 and 256 px models", _model(shift_power=1.0)),
            "released-1024": Reading("released 1024 px model", _model(shift_power=2.0)),
        },
    ),
    "token-limit": Choice(
        "Tokens of a caption that the encoder sees; longer ones are cut, and counted",
        {
            "128": _encoder("the released tokenizer's limit; that code drops longer pairs from training", "flan-t5-xl"),
            "512": _encoder("what FLAN-T5 was trained with: hardly any caption is cut", "flan-t5-xl-512"),
        },
    ),
    "sampler": Choice(
        "The sampler and its noise",
        {
            "ddpm": _sampling("App. C: a standard diffusion model's step; the posterior's variance", sampler="ddpm"),
            "released-demo": _sampling("released demo at 64 and 256 px: DDIM, eta 0", sampler="ddim", eta=0.0),
        },
    ),
    "guidance": Choice(
        "guidance_scale per level, innermost first; the last one given serves the levels above it",
        {
            "none": _guided("Fig. 4: without guidance", 1.0),
            "released-demo": _guided("released demo: 7.5, the same at every level", 7.5),
            "innermost": _guided("7.5 at the innermost level only: two thirds of the cost at 1024 px", 7.5, 1.0),
        },
    ),
    "drawing-precision": Choice(
        "Precision of the network when images are drawn",
        {
            "bfloat16": _sampling("the paper does not say; on A100s twice as fast, our choice", precision="bfloat16"),
            "float32": _sampling("as on a CPU", precision="float32"),
        },
    ),
    "percentile": Choice(
        "Percentile and ceiling of dynamic thresholding",
        {
            "imagen": _sampling("App. C, as Imagen: 0.995, at most 100", percentile=0.995, ceiling=100.0),
            "deepfloyd": _sampling("released demo: 0.95, at most 1.5", percentile=0.95, ceiling=1.5),
        },
    ),
}


def overrides(preset: Preset, chosen: str) -> dict[str, Any]:
    """The fields that ``TOPIC=READING`` replaces in a preset. Raises ValueError naming the choices."""
    topic, _, name = chosen.partition("=")
    if topic not in CHOICES:
        raise ValueError(f"--choice: unknown topic {topic!r}; there are {', '.join(CHOICES)}")
    readings = CHOICES[topic].readings
    if name not in readings:
        raise ValueError(f"--choice {topic}: unknown reading {name!r}; there are {', '.join(readings)}")
    changes = {stage: readings[name].change(stage, settings) for stage, settings in preset.stages.items()}
    changes = {stage: change for stage, change in changes.items() if change}
    whole = readings[name].whole(preset)
    if not changes and not whole:
        raise ValueError(f"--choice {topic}: preset {preset.name} has no stage that it concerns")
    return {**whole, "stages": changes}


def table() -> str:
    """All choices as Markdown."""
    lines = [
        "# What the paper leaves open",
        "",
        "Where the paper is silent, contradicts itself or differs from its released code, the presets take the first",
        "reading (App. B where it speaks). Another one: `mdm run cc12m-1024 --choice batch-1024=table-3`.",
        "This page is `mdm config --choices`; `mdm/choices.py` holds the values.",
        "",
        "| topic | question | readings, default first |",
        "|---|---|---|",
    ]
    for topic, choice in CHOICES.items():
        readings = "<br>".join(f"`{name}`: {reading.source}" for name, reading in choice.readings.items())
        lines.append(f"| `{topic}` | {choice.question} | {readings} |")
    lines += [
        "",
        "Dropped labels are not a choice but a preset: App. F drops none (`imagenet-256`, which refuses guidance), and",
        "yet Table 1 reports guidance 1.5, which needs a trained null class: `imagenet-256-dropout`, 10 %, our choice.",
        "",
        "Pictures smaller than a stage are no preset's choice either: whoever prepares a dataset enlarges them (App. F",
        "resizes all and leaves none out) or leaves them out.",
        "",
        "Three of our choices have no other reading here. App. F fuses the label with the time embedding, without",
        "saying how: it is a sum. Sec. 3.3 draws times uniformly: each is, but those of a batch are spread evenly, so",
        "that the loss varies less between batches (Kingma et al. 2021). App. F's FID is of randomly sampled labels:",
        "each is drawn uniformly and for itself, by its number and a seed that is the same for every run, so that",
        "classes come up as often as chance has it, not equally often (`evaluation/images/asked.py:random_labels`).",
    ]
    return "\n".join(lines) + "\n"
