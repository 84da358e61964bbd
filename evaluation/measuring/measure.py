"""Drawn and real images -> results.json: read (reading.py), features (extraction.py), metrics (metrics.py), written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.images.captions import unique
from evaluation.measuring.extraction import kept_features
from evaluation.measuring.metrics import caption_fit, distances
from evaluation.measuring.nearest import nearest_images
from evaluation.measuring.reading import load_drawn, load_real, measured_lines, sample_px
from evaluation.measuring.standard import COSINES, write_cosines
from evaluation.results import SAMPLES, TEXT_IMAGE
from mdm.data.embeddings import TextSource
from mdm.data.shards import Shards
from mdm.data.text import online_encoder
from mdm.files import write_json
from mdm.presets import Evaluation
from mdm.training.compute import pick_device


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

    Writes ``out/results.json`` and the learned heads; the images' features are kept in the folder ``features``.
    ``progress(what, done, total)`` is called all along.
    """
    encoder = online_encoder(text, pick_device("auto"), data)
    px = sample_px(images)
    train, held_out = Shards(data / "train", text, px=px), Shards(data / "val", text, px=px)
    lines = measured_lines(images, held_out, settings.num_samples, labelled=text is None)
    reals = {"train": load_real(train, encoder, settings.num_real), "val": load_real(held_out, encoder)}
    drawn = load_drawn(images, lines, seed)

    torch.set_num_threads(1)  # two threads stall each other as soon as another process wants a core
    sets = {**{split: real.images for split, real in reals.items()}, **drawn}
    found = kept_features(features, sets, settings.feature_px, lambda n, total: progress("features", n, total))

    progress("distances", 0, 1)
    of_drawn = {what: found[what] for what in drawn}
    results = distances(of_drawn, np.concatenate([found["train"], found["val"]]), seed)
    out.mkdir(parents=True, exist_ok=True)
    if text is not None:
        progress("text-image heads", 0, 1)
        place = unique(reals["val"].keys, f"{data / 'val'}")
        own = reals["val"].text[[place[line.key] for line in lines]]  # of each line's caption
        pairs = {split: (found[split], real.text) for split, real in reals.items()}
        fit, cosines = caption_fit(of_drawn, own, pairs["train"], pairs["val"], seed, out)
        results += fit
        write_cosines(out / COSINES, {TEXT_IMAGE.name: cosines}, lines)
    nearest = nearest_images(drawn[SAMPLES], reals["train"].images)
    whole = {
        "metrics": [result.to_record() for result in results],
        "samples": [
            {
                "index": line.index,
                "caption": line.caption,
                "key": line.key,
                "nearest_key": reals["train"].keys[near],
                "nearest_index": reals["train"].numbers[near],
                "nearest_caption": reals["train"].captions[near],
                "nearest_distance": float(distance),
            }
            for line, near, distance in zip(lines, *nearest, strict=True)
        ],
        "real_images": sum(len(real.keys) for real in reals.values()),
        "feature_px": settings.feature_px,
    }
    write_json(out / "results.json", whole)
    return whole
