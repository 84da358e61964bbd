"""What records.json may hold: ``Records``. Whatever is wrong with a file is named by its field."""

import base64
import binascii
import io
import unicodedata
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from evaluation.results import SAMPLES

PNG_URI = "data:image/png;base64,"
MAX_IMAGE_PX = 4096
LONGEST_CAPTION = 300


def _clean(text: str) -> str:
    """Without control characters, text-direction overrides and halves of surrogate pairs, which break or fake text."""
    text = text.encode("utf-8", "replace").decode()
    return "".join(c for c in text if c in "\n\t" or (unicodedata.category(c) != "Cc" and c not in _OVERRIDES))


_OVERRIDES = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def _cut(text: str) -> str:
    """A caption from the web may have 100,000 letters, and a page of 24 of these is none that a browser opens."""
    return text if len(text) <= LONGEST_CAPTION else f"{text[:LONGEST_CAPTION]}…"


Text = Annotated[str, AfterValidator(_clean)]
Caption = Annotated[Text, AfterValidator(_cut)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Pair = Annotated[list[Number], Field(min_length=2, max_length=2)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Checked = TypeVar("Checked", bound=_Part)


class Stage(_Part):
    name: Text
    state: Literal["done", "reused", "failed"]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    cost: Text
    detail: Text


class Series(_Part):
    name: Text
    x: list[Number]
    y: list[Number]
    labels: list[Text] = []  # of the points, drawn beside them: numbers, no text from the web
    x_interval: list[Pair | None] = []  # 95 %, of the points that have one
    y_interval: list[Pair | None] = []

    @model_validator(mode="after")
    def _paired(self) -> "Series":
        if len(self.x) != len(self.y) or not self.x:
            raise ValueError(f"x and y must be equally long and not empty, they have {len(self.x)} and {len(self.y)}")
        for name in ("labels", "x_interval", "y_interval"):
            if len(getattr(self, name)) not in (0, len(self.x)):
                raise ValueError(f"{name}: {len(getattr(self, name))} of {len(self.x)} points")
        return self


class PrintedLine(_Part):
    """A value that stands in the paper's tables, across a chart."""

    name: Text
    y: Number


class Curve(_Part):
    title: Text
    x_label: Text
    y_label: Text
    log_y: bool
    series: Annotated[list[Series], Field(min_length=1)]
    lines: list[PrintedLine] = []

    @model_validator(mode="after")
    def _positive(self) -> "Curve":
        if self.log_y and min(min(series.y) for series in self.series) <= 0:
            raise ValueError("log_y is true, but a y is 0 or below")
        return self


class MetricRow(_Part):
    name: Text
    label: Text
    n: Annotated[int, Field(ge=1)]
    values: Annotated[dict[Text, Number], Field(min_length=1)]
    interval: dict[Text, Pair]
    better: Literal["lower", "higher"]
    note: Text
    protocol: Text = ""
    sizes: dict[Text, int] = {}  # number of images of those values that are of another than n

    def size(self, what: str) -> int:
        return self.sizes.get(what, self.n)

    @model_validator(mode="after")
    def _intervals_of_values(self) -> "MetricRow":
        for what, (low, high) in self.interval.items():
            if what not in self.values:
                raise ValueError(f"interval: {what!r} has no value")
            if low > high:
                raise ValueError(f"interval: of {what!r} its low end {low} is above its high end {high}")
        return self


def decoded_size(uri: str) -> tuple[int, int]:
    """Width and height of a PNG data URI; ValueError unless it is one, whole, and of a sane size."""
    if not uri.startswith(PNG_URI):
        raise ValueError(f"only {PNG_URI}... is accepted")
    try:
        with Image.open(io.BytesIO(base64.b64decode(uri[len(PNG_URI) :], validate=True)), formats=["PNG"]) as image:
            size = image.size
            if max(size) > MAX_IMAGE_PX:
                raise ValueError(f"{size[0]} x {size[1]} px is larger than {MAX_IMAGE_PX}")
            image.load()
    except (binascii.Error, OSError, SyntaxError) as error:
        raise ValueError("not a PNG that can be decoded") from error
    return size


def _check_png(uri: str) -> str:
    decoded_size(uri)
    return uri


class Item(_Part):
    caption: Caption
    image: Annotated[str, AfterValidator(_check_png)]


class Grid(_Part):
    title: Caption
    note: Text
    columns: Annotated[int, Field(ge=1, le=64)]
    items: Annotated[list[Item], Field(min_length=1)]


class Sample(_Part):
    """An image of the run's own, by its prompt's key and the seed of its noise."""

    key: Text
    seed: int
    caption: Caption
    image: Annotated[str, AfterValidator(_check_png)]


class PaperRow(_Part):
    """A printed number, or what a figure shows without one (``printed`` empty), and this run's or what it needs."""

    system: Text
    metric: Text
    printed: Text
    counts: Pair | None  # the range that counts as reproduced
    ours: Number | None
    interval: Pair | None
    difference: Number | None
    n: Annotated[int, Field(ge=1)] | None
    drawn: Text  # sampler, steps, guidance
    protocol: Text
    stage: Text  # the training, and which of its stages; empty: another system's number, or none that is measured
    run: Text
    needs: Text
    commands: list[Text]
    hardware: Text = ""  # of ours, where a speed is compared
    verdict: Text = ""  # of ours, where some range counts as reproduced
    ways: list[Text] = []  # each way to measure it, and its value, where there are several

    @model_validator(mode="after")
    def _whole(self) -> "PaperRow":
        if self.ours is not None and not (self.run and (self.n or self.hardware)):
            raise ValueError("ours has no run, or neither n nor hardware")
        return self


class PaperTable(_Part):
    title: Text
    note: Text
    rows: Annotated[list[PaperRow], Field(min_length=1)]


class Drawn(_Part):
    """How images were drawn (``Way`` of identity.py)."""

    guidance: Text  # per level, innermost first
    steps: Annotated[int, Field(ge=1)]
    sampler: Text  # with whatever else is not as it usually is


class EvaluationRow(Drawn):
    """A checkpoint, and how images were drawn from it."""

    run: Text = ""  # where several runs' stand in one table
    point: Text
    stage: Text
    nimg: Annotated[int, Field(ge=0)]  # images seen, by this stage
    metrics: list[MetricRow]

    def by_name(self) -> dict[str, MetricRow]:
        return {metric.name: metric for metric in self.metrics if SAMPLES in metric.values}


class EvaluationTable(_Part):
    """Of one protocol and one digest, at one resolution: only such numbers stand in one column."""

    protocol: Text
    digest: Text
    px: Annotated[int, Field(ge=1)]
    summary: Text
    rows: Annotated[list[EvaluationRow], Field(min_length=1)]

    def columns(self) -> dict[str, MetricRow]:
        """The metrics that some row has of its samples, by name, in order."""
        return {m.name: m for row in self.rows for m in row.metrics if SAMPLES in m.values}

    def beside(self) -> dict[str, dict[str, tuple[float, float, int]]]:
        """What a number stands between (noise, real images, ...) -> metric -> least and largest over rows, and N."""
        found: dict[str, dict[str, tuple[float, float, int]]] = {}
        for metric in (metric for row in self.rows for metric in row.metrics):
            for what, value in metric.values.items():
                if what != SAMPLES:
                    low, high, _ = found.setdefault(what, {}).get(metric.name, (value, value, 0))
                    found[what][metric.name] = (min(low, value), max(high, value), metric.size(what))
        return {what: of for what, of in found.items() if of.keys() & self.columns().keys()}


class Speed(_Part):
    """What a stage took, and on what: the paper's Tables 2 to 4, of this run."""

    stage: Text
    hardware: Text
    processes: Annotated[int, Field(ge=1)]
    parameters: Annotated[int, Field(ge=1)]
    batch: Annotated[int, Field(ge=1)]
    iterations: Annotated[int, Field(ge=0)]
    iteration_s: Number
    images_per_s: Number
    memory_mb: Number | None  # most that rank 0 had, of its GPU's, else of the machine's
    call_s: Number | None  # of the network, for one image that is drawn; the last stage's
    drawn_on: Text


class Later(_Part):
    """A system since the paper; what of it is second-hand."""

    system: Text
    arxiv: Text
    parameters: Text
    imagenet_256: Text
    imagenet_512: Text
    calls: Text
    source: Text
    note: Text
    second_hand: list[Literal["imagenet_256", "imagenet_512", "calls"]]


class Paper(_Part):
    summary: Text
    tables: list[PaperTable]
    since: list[Later]

    @property
    def measured(self) -> bool:
        return any(row.run for table in self.tables for row in table.rows)


def _check_time(text: str) -> str:
    datetime.fromisoformat(text)
    return text


class Records(_Part):
    """What ``flows/records/export.py`` exports of a run, and all that the page knows."""

    format: Literal[1]
    title: Text
    run: Text
    preset: Text
    created: Annotated[str, AfterValidator(_check_time)]  # ISO 8601
    verdict: Text
    facts: list[Annotated[list[Text], Field(min_length=2, max_length=2)]]
    stages: list[Stage]
    curves: list[Curve]
    metrics: list[MetricRow]
    grids: list[Grid]
    credits: list[Text]
    paper: Paper | None = None  # records made before November 2026 have none of what follows
    evaluations: list[EvaluationTable] = []
    figures: list[Curve] = []
    speeds: list[Speed] = []
    prompts: list[Grid] = []
    settings: dict[Text, Text] = {}  # of the preset, by dotted names, as JSON
    digest: Text = ""  # of how ``metrics`` were measured
    drawn: Drawn | None = None  # how the samples were that they are of
    samples: list[Sample] = []
    alive: Text = ""  # how much of the published data set there was


class RunHead(_Part):
    run: Text
    preset: Text
    created: Annotated[str, AfterValidator(_check_time)]
    verdict: Text


class Setting(_Part):
    """A field in which runs differ: a value each, as JSON; empty: that run's preset has no such field."""

    name: Text
    values: list[Text]


class Own(_Part):
    """The own samples of runs that were measured alike: a metric of each, in the order of ``runs``."""

    digest: Text
    runs: Annotated[list[Text], Field(min_length=1)]
    drawn: list[Drawn | None]
    metrics: list[list[MetricRow | None]]


class Comparison(_Part):
    """What ``compare.py`` makes of several runs' records, and all that their common page knows."""

    format: Literal[1]
    title: Text
    created: Annotated[str, AfterValidator(_check_time)]
    runs: Annotated[list[RunHead], Field(min_length=2)]
    apart: list[Text]  # what does not compare, and why
    settings: list[Setting]
    own: list[Own]
    evaluations: list[EvaluationTable]
    curves: list[Curve]
    prompts: list[Grid]
    credits: list[Text]


def check(records: dict[str, Any], kind: type[Checked]) -> Checked:
    """Raises ValueError naming the first field that is missing or malformed, e.g. ``stages[2].seconds``."""
    try:
        return kind.model_validate(records)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        given = "" if first["type"] == "missing" else f" (given: {_shortened(first['input'])})"
        raise ValueError(f"records: {field or 'the whole'}: {first['msg']}{given}") from error


def _shortened(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
