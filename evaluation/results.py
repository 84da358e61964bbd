"""What is measured, under which name, and which way is better: the one place that says so."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from evaluation.statistics.estimates import Estimate


@dataclass(frozen=True)
class Metric:
    """``name`` is the key in MLflow and records.json, ``label`` and ``note`` are for the reader of the page."""

    name: str
    label: str
    better: Literal["lower", "higher"]
    note: str


FRECHET = Metric(
    "fd1280_efficientnet_lite0",
    "Fréchet distance (EfficientNet-Lite0)",
    "lower",
    "Between Gaussians fitted to 1280 features of samples and of real images. A stand-in, not FID: the network is "
    "EfficientNet-Lite0, not Inception-V3. Biased upwards at small N, so only values of equal N compare. The interval "
    "is a 95 % jackknife over the images measured, the reference kept.",
)
KID = Metric(
    "kid_efficientnet_lite0",
    "Kernel distance (EfficientNet-Lite0)",
    "lower",
    "Unbiased squared MMD with a cubic kernel (Bińkowski et al. 2018) on the same features; its expectation does not "
    "depend on N and is 0 for equal distributions. A stand-in, not the Inception KID. The interval is a 95 % bootstrap "
    "over samples and real images.",
)
TEXT_IMAGE = Metric(
    "text_image_cosine_minilm_effnet_heads",
    "Text-image cosine (MiniLM × EfficientNet-Lite0 heads)",
    "higher",
    "Mean cosine between image and caption under two linear heads learned from the run's own training pairs. A "
    "stand-in, not a CLIP score; what the heads can tell apart is measured by their retrieval on held-out pairs. The "
    "interval is by the spread over images.",
)
RETRIEVAL_R1 = Metric(
    "retrieval_r1_minilm_effnet_heads",
    "Held-out retrieval of the heads, R@1",
    "higher",
    "How often the learned heads rank a real held-out image's own caption first among all N: the worth of the "
    "text-image cosine, with guessing beside it.",
)
RETRIEVAL_R10 = Metric(
    "retrieval_r10_minilm_effnet_heads",
    "Held-out retrieval of the heads, R@10",
    "higher",
    "As R@1, but among the ten best.",
)

# How the name of a network with random weights begins. Such exist for tests; their numbers reach no report.
RANDOM = "random_"

HEADLINE = KID  # the one number of a run, where there is room for one: unbiased, and with an interval

# What is measured, by the name that stands beside its value.
SAMPLES = "samples"
UNTRAINED = "untrained model"
NOISE = "noise"
REAL = "held-out images"
SHUFFLED = "shuffled captions"
REAL_AGAINST_REAL = "real images"  # the floor: some of them against others,
SAMPLES_BESIDE_REAL = "samples beside real images"  # and as many samples against the same others

# Raise it by hand where the code computes other numbers from the same images: they are measured anew.
METRICS_FORMAT = 2


@dataclass(frozen=True)
class Result:
    """One metric measured on ``n`` images per set: values by what was measured ("samples", "noise", …), the first of
    them the run's own, and 95 % intervals of those that have one. ``extractor``: the name of the network whose features
    were measured. ``sizes``: of what was measured on another number of images. Raises ValueError for values that are
    not finite, or an interval that has no value or does not enclose it.
    """

    metric: Metric
    n: int
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    extractor: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, metric: Metric, n: int, found: Mapping[str, Estimate | float], **more: Any) -> Self:
        """Of numbers with and without an interval."""
        values = {what: e.value if isinstance(e, Estimate) else e for what, e in found.items()}
        intervals = {what: (e.low, e.high) for what, e in found.items() if isinstance(e, Estimate)}
        return cls(metric, n, values, intervals, **more)

    def __post_init__(self) -> None:
        if self.n < 1 or not self.values:
            raise ValueError(f"{self.metric.name}: needs n >= 1 and at least one value")
        for what, value in self.values.items():
            if not math.isfinite(value):
                raise ValueError(f"{self.metric.name}: the value of {what!r} is {value}")
        for what in self.sizes.keys() - self.values.keys():
            raise ValueError(f"{self.metric.name}: a number of images for {what!r}, which has no value")
        for what, (low, high) in self.intervals.items():
            if what not in self.values:
                raise ValueError(f"{self.metric.name}: an interval for {what!r}, which has no value")
            if not low <= self.values[what] <= high:
                raise ValueError(f"{self.metric.name}: [{low}, {high}] does not enclose {what!r} {self.values[what]}")

    def to_record(self) -> dict[str, Any]:
        """The row of ``metrics`` in records.json. Raises ValueError for what a network with random weights measured."""
        if self.extractor.startswith(RANDOM) or RANDOM in self.metric.name:
            network = self.extractor or self.metric.name
            raise ValueError(f"{self.metric.name}: {network} has random weights, for tests only: not for a report")
        return {
            "name": self.metric.name,
            "label": self.metric.label,
            "n": self.n,
            "values": {what: float(value) for what, value in self.values.items()},
            "interval": {what: [float(low), float(high)] for what, (low, high) in self.intervals.items()},
            "sizes": dict(self.sizes),
            "better": self.metric.better,
            "note": self.metric.note,
        }


def memory_bytes(num_samples: int, num_real: int, px: int) -> int:
    """About what an evaluation holds at once: ``num_real`` training images, and of ``num_samples`` captions the real
    images and three sets of drawn ones; and 2 bytes for how often each image is drawn in each of the kernel distance's
    1,000 replicates."""
    return (num_real + 4 * num_samples) * 3 * px**2 + 2000 * (num_real + num_samples)
