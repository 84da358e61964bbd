"""Features -> numbers: how far each set is from real images, and how well it fits its captions."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.frechet import Gaussian, frechet_estimate
from evaluation.kid import kid
from evaluation.measuring.heads import retrieval, train_heads
from evaluation.results import (
    FRECHET,
    KID,
    NOISE,
    REAL,
    RETRIEVAL_R1,
    RETRIEVAL_R10,
    SAMPLES,
    SHUFFLED,
    TEXT_IMAGE,
    UNTRAINED,
    Metric,
    Result,
)
from evaluation.statistics.estimates import Estimate

Features = NDArray[np.float32]


def distances(sets: Mapping[str, Features], reference: Features, seed: int, about: str) -> list[Result]:
    """Of sets of equal N from one reference, features [N, D] and [M, D]: each beside the others. ``about``: what the
    reference is."""
    count, real = len(sets[SAMPLES]), Gaussian.of_features(reference, "reference")
    found: dict[Metric, Mapping[str, Estimate | float]] = {
        FRECHET: {what: frechet_estimate(features, real, seed) for what, features in sets.items()},
        KID: {what: kid(features, reference, seed) for what, features in sets.items()},
    }
    return [Result.of(replace(metric, note=f"{metric.note} {about}"), count, of) for metric, of in found.items()]


def caption_fit(
    sets: Mapping[str, Features], text: Features, train: tuple[Features, Features], seed: int, out: Path
) -> tuple[list[Result], NDArray[np.float64]]:
    """How well the sets fit their captions, under heads learned from the training pairs and written to ``out``; and
    the cosine of each of the samples [N].

    ``text`` [N, D]: the captions' features, row by row those of the sets' images, real ones among them; ``train``:
    features of training images, and of their captions.
    """
    heads = train_heads(*train, seed)
    heads.save(out / "heads.safetensors")
    found = {what: retrieval(heads, features, text) for what, features in sets.items()}
    cosines = {
        SAMPLES: found[SAMPLES]["matched"],
        SHUFFLED: found[SAMPLES]["shuffled"],
        UNTRAINED: found[UNTRAINED]["matched"],
        NOISE: found[NOISE]["matched"],
        REAL: found[REAL]["matched"],
    }
    n = len(text)
    results = [
        Result.of(TEXT_IMAGE, n, {what: Estimate.mean_of(values) for what, values in cosines.items()}),
        Result.of(RETRIEVAL_R1, n, {REAL: Estimate.mean_of(found[REAL]["r1"]), "chance": 1 / n}),
        Result.of(RETRIEVAL_R10, n, {REAL: Estimate.mean_of(found[REAL]["r10"]), "chance": min(10, n) / n}),
    ]
    return results, cosines[SAMPLES]
