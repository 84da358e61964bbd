"""Drawn and real images -> results.json: read (reading.py), features (extraction.py), metrics (metrics.py), written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from evaluation.measuring.extraction import kept_features
from evaluation.measuring.metrics import caption_fit, distances
from evaluation.measuring.nearest import nearest_images
from evaluation.measuring.reading import (
    load_drawn,
    load_pictures,
    load_real,
    measured_lines,
    places,
    sample_px,
)
from evaluation.measuring.standard import COSINES, write_cosines
from evaluation.results import REAL, SAMPLES, TEXT_IMAGE
from evaluation.statistics.arrays import blocks
from mdm.data.embeddings import TextSource
from mdm.data.shards import Shards
from mdm.data.text import online_encoder
from mdm.files import write_json
from mdm.presets import Evaluation
from mdm.training.compute import pick_device

SEARCHED = 20_000  # training images at most among which the nearest is looked for: more take hours to decode
AT_ONCE = 64  # of them


def measure(
    images: Path,
    data: Path,
    text: TextSource | None,
    out: Path,
    features: Path,
    settings: Evaluation,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Measure ``images/samples`` and ``images/untrained`` (as generate.py writes them) against a dataset folder.

    The reference of every distance are training images, ``settings.num_real`` of them. Beside the samples stand, equal
    in number and measured against the same: the held-out images of their captions, which are the floor, and noise.
    Writes ``out/results.json`` and the learned heads; the images' features are kept in the folder ``features``.
    ``progress(what, done, total)`` is called all along.
    """
    encoder = online_encoder(text, pick_device("auto"), data)
    px = sample_px(images)
    train, held_out = Shards(data / "train", text, px=px), Shards(data / "val", text, px=px)
    lines = measured_lines(images, held_out, settings.num_samples, labelled=text is None)
    compared = train.spread(settings.num_real or len(train))
    reals = {"train": load_real(train, encoder, compared), REAL: load_real(held_out, encoder, places(held_out, lines))}
    drawn = load_drawn(images, px, lines, seed)

    torch.set_num_threads(1)  # two threads stall each other as soon as another process wants a core
    pictures = {what: real.images for what, real in reals.items()} | drawn
    found = kept_features(features, pictures, settings.feature_px, lambda n, total: progress("features", n, total))

    progress("distances", 0, 1)
    sets = {what: found[what] for what in (*drawn, REAL)}
    there = len(train.present())
    about = (
        f"Against {len(compared):,} of the {there:,} training images, at {px} px; {REAL}: those of the {len(lines):,} "
        "captions that the samples are of, which the training has not seen: the floor."
    )
    results = distances(sets, found["train"], seed, about)
    out.mkdir(parents=True, exist_ok=True)
    if text is not None:
        progress("text-image heads", 0, 1)
        fit, cosines = caption_fit(sets, reals[REAL].text, (found["train"], reals["train"].text), seed, out)
        results += fit
        write_cosines(out / COSINES, {TEXT_IMAGE.name: cosines}, lines)
    progress("nearest training images", 0, 1)
    searched = train.spread(SEARCHED)
    portions = (load_pictures(train, searched[block]) for block in blocks(len(searched), AT_ONCE))
    nearest = nearest_images(drawn[SAMPLES], portions)
    whole = {
        "metrics": [result.to_record() for result in results],
        "samples": [
            {
                "index": line.index,
                "caption": line.caption,
                "key": line.key,
                "nearest_key": train.key(searched[near]),
                "nearest_index": searched[near],
                "nearest_caption": train.caption(searched[near]),
                "nearest_distance": float(distance),
            }
            for line, near, distance in zip(lines, *nearest, strict=True)
        ],
        "nearest_among": {"images": len(searched), "of": there},
        "real_images": len(compared),
        "feature_px": settings.feature_px,
    }
    write_json(out / "results.json", whole)
    return whole
