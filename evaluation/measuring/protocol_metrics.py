"""A protocol's metrics by name: features of one network -> numbers, each with its floor and ceiling. N stands in every
name.

The ceiling is what noise measures, as much as there are samples, against the same reference. The floor is what real
images measure against real images. A reference cannot be measured against itself, so some of it stands against the
rest: as many as there are samples, or half of it where that is less. As the rest is less than the whole, which raises
a biased distance, as many samples are measured against that rest, too: these two numbers compare.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from evaluation import protocols
from evaluation.clip_score import clip_score
from evaluation.cmmd import cmmd
from evaluation.fid_infinity import fid_infinity
from evaluation.frechet import Gaussian, distance, frechet_estimate
from evaluation.inception_score import inception_score
from evaluation.kid import kid
from evaluation.networks.features import Extractor
from evaluation.prdc import Prdc, prdc
from evaluation.relative import apart, drawn, relative_to_real
from evaluation.results import (
    NOISE,
    RANDOM,
    REAL_AGAINST_REAL,
    SAMPLES,
    SAMPLES_BESIDE_REAL,
    SHUFFLED,
    Metric,
    Result,
)
from evaluation.statistics.arrays import Features, blocks
from evaluation.statistics.estimates import Estimate

FEWEST = 30  # samples: what a line through 15 numbers of them needs
PRDC_IMAGES, PRDC_K = 10_000, 3
SPLITS = 10  # of the Inception score
KERNEL_REFERENCE = 50_000  # pictures: of ImageNet's 1.3 million all pairs would take days
FLOOR_REFERENCE = 50_000  # pictures that a floor is measured against: held in memory, unlike the whole reference

Better = Literal["lower", "higher"]
Between = Callable[[Features, Features], Estimate | float]


@runtime_checkable
class Classifier(Protocol):
    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features [N, D] -> logits [N, C] of the classes."""


@runtime_checkable
class TextReader(Protocol):
    def text_features(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """Captions -> float32 [N, D], in the space of the images' features."""


@dataclass(frozen=True)
class FeatureSets:
    """Features of one network: of ``samples`` [N, D], as much ``noise`` [N, D] and the reference ``real`` [M, D]."""

    network: Extractor
    samples: Features
    noise: Features
    real: Features
    seed: int

    @property
    def n(self) -> int:
        return len(self.samples)

    def result(
        self, name: str, label: str, better: Better, note: str, found: dict[str, Estimate | float], n: int = 0
    ) -> Result:
        """``n``: of the images measured, if not all samples."""
        sizes = {}
        if SAMPLES_BESIDE_REAL in found:
            sizes = dict.fromkeys((REAL_AGAINST_REAL, SAMPLES_BESIDE_REAL), self.floor_n)
            note += (
                f" Floor: {self.floor_n} real images against {len(self.floor[1])} others, and beside that as many "
                "samples against the same others."
            )
        elif REAL_AGAINST_REAL not in found:
            note += f" No floor: the reference has {len(self.real)} images, {2 * FEWEST} are needed."
        return named(name, label, better, note, found, n or self.n, self.network, sizes)

    @property
    def floor_n(self) -> int:
        return min(self.n, len(self.real) // 2)

    @cached_property
    def floor(self) -> tuple[Features, Features]:
        """Real images, and others to measure them against."""
        return apart(self.real, self.floor_n, min(len(self.real) - self.floor_n, FLOOR_REFERENCE), self.seed)

    def beside(
        self, of_samples: Between, of_others: Between, real: Features | None = None
    ) -> dict[str, Estimate | float]:
        """A distance to the reference or ``real``, a part of it: of samples, noise and, if they suffice, reals."""
        real = self.real if real is None else real
        found = {SAMPLES: of_samples(self.samples, real), NOISE: of_others(self.noise, real)}
        if self.floor_n >= FEWEST:
            some, others = self.floor
            found[REAL_AGAINST_REAL] = of_others(some, others)
            found[SAMPLES_BESIDE_REAL] = of_others(drawn(self.samples, self.floor_n, self.seed), others)
        return found


def named(
    name: str,
    label: str,
    better: Better,
    note: str,
    found: dict[str, Estimate | float],
    n: int,
    network: Extractor,
    sizes: Mapping[str, int] | None = None,
) -> Result:
    """``name``: with {n} where the number of images is to stand. A network of random weights stands before it."""
    random = RANDOM if network.name.startswith(RANDOM) else ""
    metric = Metric(random + name.format(n=short(n)), label, better, note)
    return Result.of(metric, n, found, extractor=network.name, sizes=sizes or {})


def short(n: int) -> str:
    """30000 -> 30k, 64 -> 64."""
    return f"{n // 1000}k" if n % 1000 == 0 else str(n)


def _gaussians(sets: FeatureSets) -> Callable[[Features], Gaussian]:
    """Of the sets that are measured against, each made once: the reference and the floor's, which ``sets`` keeps."""
    known: dict[int, Gaussian] = {}

    def of(real: Features) -> Gaussian:
        if id(real) not in known:
            known[id(real)] = Gaussian.of_features(real, "reference")
        return known[id(real)]

    return of


def _frechet(a: Features, b: Gaussian) -> float:
    return distance(Gaussian.of_features(a, "samples"), b)


def _fid(resize: str) -> "Measure":
    def measure(sets: FeatureSets) -> list[Result]:
        of = _gaussians(sets)
        # Intervals, which cost most, are of the samples alone.
        found = sets.beside(lambda a, b: frechet_estimate(a, of(b), sets.seed), lambda a, b: _frechet(a, of(b)))
        infinite = sets.beside(
            lambda a, b: fid_infinity(a, of(b), sets.seed).estimate,
            lambda a, b: fid_infinity(a, of(b), sets.seed, replicates=2).estimate.value,
        )
        note = f"Inception-V3, {resize} resize. Biased upwards: compare equal N only."
        line = "The value at infinitely many samples, by a line through 15 numbers of them; the reference is as it is."
        return [
            sets.result(f"fid_{{n}}_{resize}", f"FID, {resize} resize", "lower", note, found),
            sets.result(f"fid_infinity_{{n}}_{resize}", f"FID∞, {resize} resize", "lower", line, infinite),
        ]

    return measure


def _kid(sets: FeatureSets) -> list[Result]:
    found = _kernel(sets, lambda a, b: kid(a, b, sets.seed))
    note = "Unbiased, cubic kernel, all pairs; Inception-V3, clean resize."
    return [sets.result("kid_{n}_clean", "KID, clean resize", "lower", note + _part(sets), found)]


def _cmmd(sets: FeatureSets) -> list[Result]:
    found = _kernel(sets, lambda a, b: cmmd(a, b, sets.seed))
    note = "CLIP ViT-L/14 at 336 px, Gaussian kernel, times 1000."
    return [sets.result("cmmd_{n}", "CMMD", "lower", note + _part(sets), found)]


def _kernel(sets: FeatureSets, between: Between) -> dict[str, Estimate | float]:
    return sets.beside(between, between, drawn(sets.real, KERNEL_REFERENCE, sets.seed))


def _part(sets: FeatureSets) -> str:
    return f" Against {KERNEL_REFERENCE} of the reference's images." if len(sets.real) > KERNEL_REFERENCE else ""


def _fd_dinov2(sets: FeatureSets) -> list[Result]:
    of = _gaussians(sets)
    found = sets.beside(lambda a, b: frechet_estimate(a, of(b), sets.seed), lambda a, b: _frechet(a, of(b)))
    note = "Fréchet distance of DINOv2 ViT-L/14's features. Biased upwards: compare equal N only."
    return [sets.result("fd_dinov2_{n}", "FD-DINOv2", "lower", note, found)]


def _prdc(sets: FeatureSets) -> list[Result]:
    n = min(PRDC_IMAGES, sets.floor_n)  # of all of them, so that the floor is of equal sets
    some, real = apart(sets.real, n, n, sets.seed)
    found = {
        SAMPLES: prdc(real, drawn(sets.samples, n, sets.seed), PRDC_K),
        NOISE: prdc(real, drawn(sets.noise, n, sets.seed), PRDC_K),
        REAL_AGAINST_REAL: prdc(real, some, PRDC_K),
    }
    note = f"{n} images of each, k = {PRDC_K}; Inception-V3, legacy resize."
    return [
        sets.result(
            f"{part}_{{n}}_legacy",
            part.capitalize(),
            "higher",
            note,
            {what: float(getattr(value, part)) for what, value in found.items()},
            n,
        )
        for part in Prdc.__dataclass_fields__
    ]


def _inception_score(sets: FeatureSets) -> list[Result]:
    assert isinstance(sets.network, Classifier)
    found: dict[str, Estimate | float] = {}
    for what, features in ((SAMPLES, sets.samples), (NOISE, sets.noise), (REAL_AGAINST_REAL, sets.real)):
        n = min(sets.n, len(features))
        order = np.random.default_rng(sets.seed).permutation(len(features))[:n]  # no class stands together
        parts = [softmax(sets.network.logits(features[order[block]]), axis=1) for block in blocks(n)]
        score = inception_score(np.concatenate(parts), SPLITS)
        found[what] = Estimate.normal(score.mean, score.deviation / (SPLITS - 1) ** 0.5)
    note = (
        f"Mean over {SPLITS} splits, whose spread its interval is by; Inception-V3 with TensorFlow 1's resize, without "
        "its bias. Grows with N."
    )
    sizes = {REAL_AGAINST_REAL: min(sets.n, len(sets.real))}
    name = "inception_score_{n}_legacy"
    return [named(name, "Inception score", "higher", note, found, sets.n, sets.network, sizes)]


def clip_scores(network: Extractor, role: str, samples: Features, text: Features) -> tuple[Result, NDArray[np.float64]]:
    """Of features [N, D] of samples and their captions, row by row: the mean, beside that with the next sample's
    caption; and the raw cosine of every sample [N]."""
    found, others = clip_score(samples, text), clip_score(samples, np.roll(text, 1, axis=0))
    name, label = role.removeprefix("clip_"), f"CLIP score, {role.removeprefix('clip_').replace('_', ' ')}"
    note = "Mean raw cosine of image and caption; torchmetrics prints 100 times it, Hessel et al. about 2.5 times."
    values: dict[str, Estimate | float] = {SAMPLES: found.mean, SHUFFLED: others.mean}
    return named(f"clip_score_{{n}}_{name}", label, "higher", note, values, len(samples), network), found.cosines


RELATIVE = ("inception_v3_legacy", "dinov2_vit_l_14", "clip_vit_l_14_336_cmmd")  # of the protocol's, those compared so


def relative(sets: Mapping[str, FeatureSets], roles: Sequence[str]) -> Result:
    """The mean over several feature spaces of the distance relative to real images' own: one can be trained for."""
    spaces = {sets[role].network.name: sets[role] for role in RELATIVE if role in roles}
    first = next(iter(spaces.values()))
    n = min(first.n, len(first.real) // 2)
    between: Callable[[Features, Features], float] = lambda a, b: _frechet(a, Gaussian.of_features(b))  # noqa: E731
    real = {space: s.real for space, s in spaces.items()}
    found: dict[str, Estimate | float] = {
        SAMPLES: relative_to_real(between, {space: s.samples for space, s in spaces.items()}, real, n, first.seed),
        NOISE: relative_to_real(between, {space: s.noise for space, s in spaces.items()}, real, n, first.seed),
        REAL_AGAINST_REAL: 1.0,  # by what it is
    }
    note = (
        f"Fréchet distance of {n} samples to {n} real images, divided by that of {n} other real images to the same, in "
        f"the features of {', '.join(spaces)}: the mean. 1 is as good as real."
    )
    return named("relative_{n}", "Distance relative to real images", "lower", note, found, n, first.network)


Measure = Callable[[FeatureSets], list[Result]]
DISTANCES: dict[str, tuple[str, Measure]] = {  # a protocol's name of the metric: the network's role, what measures
    "fid_clean": ("inception_v3_clean", _fid("clean")),
    "fid_legacy": ("inception_v3_legacy", _fid("legacy")),
    "kid": ("inception_v3_clean", _kid),
    "prdc": ("inception_v3_legacy", _prdc),
    "inception_score": ("inception_v3_legacy", _inception_score),
    "cmmd": ("clip_vit_l_14_336_cmmd", _cmmd),
    "fd_dinov2": ("dinov2_vit_l_14", _fd_dinov2),
}
TEXT_NETWORKS = ("clip_vit_b_32", "clip_vit_b_16", "clip_vit_l_14")  # of the protocol's, those of its CLIP scores


def roles(protocol: protocols.Protocol) -> tuple[list[str], list[str]]:
    """Of the networks that a protocol's metrics ask for: those of real images, noise and samples; those of samples and
    captions. Raises ValueError for a protocol that is measured another way."""
    unknown = [name for name in protocol.metrics if name not in ("clip_score", "relative") and name not in DISTANCES]
    if unknown or not protocol.metrics:
        what = f"measures {', '.join(unknown)}, which measuring/measure.py does" if unknown else "measures nothing"
        raise ValueError(f"protocol {protocol.name} {what}")
    of_pictures = dict.fromkeys(DISTANCES[name][0] for name in protocol.metrics if name in DISTANCES)
    of_captions = [name for name in TEXT_NETWORKS if name in protocol.networks and "clip_score" in protocol.metrics]
    return list(of_pictures), of_captions
