"""Features -> numbers: how far each set is from real images, and how well it fits its captions."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.frechet import frechet_distance
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
    Result,
)

Features = NDArray[np.float32]


def distances(drawn: Mapping[str, Features], reference: Features, seed: int) -> list[Result]:
    """Of sets of equal N from the reference, features [N, D] and [M, D]."""
    count = len(drawn[SAMPLES])
    kids = {what: kid(features, reference, seed) for what, features in drawn.items()}
    return [
        Result(FRECHET, count, {what: frechet_distance(features, reference) for what, features in drawn.items()}),
        Result(KID, count, {w: k.value for w, k in kids.items()}, {w: (k.low, k.high) for w, k in kids.items()}),
    ]


def caption_fit(
    drawn: Mapping[str, Features],
    drawn_text: Features,
    train: tuple[Features, Features],
    held_out: tuple[Features, Features],
    seed: int,
    out: Path,
) -> tuple[list[Result], NDArray[np.float64]]:
    """How well the sets fit their captions, under heads learned from the training pairs and written to ``out``; and
    the cosine of each of the samples [N].

    ``drawn_text`` [N, D]: the captions' features, row by row those of the sets' images; ``train``, ``held_out``:
    features of real images, and of their captions.
    """
    heads = train_heads(*train, seed)
    heads.save(out / "heads.safetensors")
    matching = {what: retrieval(heads, features, drawn_text) for what, features in drawn.items()}
    real = retrieval(heads, *held_out)
    cosines = {
        SAMPLES: matching[SAMPLES]["matched"],
        SHUFFLED: matching[SAMPLES]["shuffled"],
        UNTRAINED: matching[UNTRAINED]["matched"],
        NOISE: matching[NOISE]["matched"],
        REAL: real["matched"],
    }
    number = len(held_out[0])
    results = [
        Result(TEXT_IMAGE, len(drawn_text), cosines),
        Result(RETRIEVAL_R1, number, {REAL: real["r1"], "chance": real["chance_r1"]}),
        Result(RETRIEVAL_R10, number, {REAL: real["r10"], "chance": real["chance_r10"]}),
    ]
    return results, heads.cosine(drawn[SAMPLES], drawn_text).astype(np.float64)
