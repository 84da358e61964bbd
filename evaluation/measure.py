"""Sets of images -> every metric of the run, as results.json: samples, an untrained model's, and noise, at equal N."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.features import EfficientNetLite0, load_folder
from evaluation.frechet import frechet_distance
from evaluation.heads import pool_tokens, retrieval, train_heads
from evaluation.kid import kid
from evaluation.nearest import nearest_images
from evaluation.protocols import FRECHET, KID, RETRIEVAL_R1, RETRIEVAL_R10, TEXT_IMAGE, Result
from mdm.data.embeddings import TextSource
from mdm.data.order import hash64
from mdm.data.pixels import to_uint8
from mdm.data.shards import Shards
from mdm.data.text import TextEncoder, caption_states, online_encoder
from mdm.files import write_json
from mdm.training.compute import pick_device

SAMPLES, UNTRAINED, NOISE, REAL, SHUFFLED = (
    "samples",
    "untrained model",
    "noise",
    "held-out images",
    "shuffled captions",
)


def noise_images(count: int, px: int, seed: int) -> NDArray[np.uint8]:
    """Gaussian noise as images, uint8 [N, 3, H, H]: what a sampler starts from."""
    generator = torch.Generator().manual_seed(hash64(seed, "noise images"))
    return to_uint8(torch.randn(count, 3, px, px, generator=generator)).numpy()


def load_real(
    shards: Shards, encoder: TextEncoder | None, limit: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.float32], list[str], list[int]]:
    """Images uint8 [N, 3, H, H], pooled caption features [N, D], captions, places in the set; evenly spread
    if limited.

    For a set that is opened without captions' states the features are [N, 0].
    """
    indices = shards.spread(limit or len(shards))
    samples = [shards[i] for i in indices]
    pooled = np.zeros((len(samples), 0), np.float32)
    if shards.states is not None or encoder is not None:
        tokens = [states.numpy() for states in caption_states(shards, indices, encoder)[0]]
        pooled = pool_tokens(np.concatenate(tokens), np.cumsum([0] + [len(t) for t in tokens]))
    return np.stack([s.image.numpy() for s in samples]), pooled, [s.caption for s in samples], indices


def measure(
    images: Path,
    data: Path,
    text: TextSource | None,
    out: Path,
    feature_px: int,
    num_real: int,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Measure ``images/samples`` and ``images/untrained`` (as generate.py writes them) against a dataset folder.

    Writes ``out/results.json`` and the learned heads. ``progress(what, done, total)`` is called all along.
    """
    encoder = online_encoder(text, pick_device("auto"), data)
    train_images, train_text, train_captions, train_places = load_real(Shards(data / "train", text), encoder, num_real)
    val_images, val_text, _, _ = load_real(Shards(data / "val", text), encoder)
    drawn = {SAMPLES: load_folder(images / "samples"), UNTRAINED: load_folder(images / "untrained")}
    count, px = len(drawn[SAMPLES]), drawn[SAMPLES].shape[-1]
    drawn[NOISE] = noise_images(count, px, seed)
    captions = [json.loads(line) for line in (images / "samples" / "captions.jsonl").read_text().splitlines()]
    if len(drawn[UNTRAINED]) != count or len(captions) != count:
        raise ValueError(f"{images}: the sets differ in size; delete the folder and draw them again")

    torch.set_num_threads(1)  # two threads stall each other as soon as another process wants a core
    extractor = EfficientNetLite0(input_px=feature_px)
    features: dict[str, NDArray[np.float32]] = {}
    done, total = 0, len(train_images) + len(val_images) + 3 * count

    def show(n: int) -> None:
        progress("features", done + n, total)

    for name, pictures in {"train": train_images, "val": val_images, **drawn}.items():
        features[name] = extractor.extract(pictures, progress=show)
        done += len(pictures)

    out.mkdir(parents=True, exist_ok=True)
    reference = np.concatenate([features["train"], features["val"]])
    progress("distances", 0, 1)
    kids = {name: kid(features[name], reference, seed) for name in drawn}
    results = [
        Result(FRECHET, count, {name: frechet_distance(features[name], reference) for name in drawn}),
        Result(KID, count, {n: k.value for n, k in kids.items()}, {n: (k.low, k.high) for n, k in kids.items()}),
    ]
    if text is not None:
        progress("text-image heads", 0, 1)
        results += match_captions(features, train_text, val_text, count, seed, out)
    nearest, distances = nearest_images(drawn[SAMPLES], train_images)
    whole = {
        "metrics": [result.to_record() for result in results],
        "samples": [
            {
                "index": line["index"],
                "caption": line["caption"],
                "key": line["key"],
                "nearest_index": int(train_places[near]),
                "nearest_caption": train_captions[near],
                "nearest_distance": float(distance),
            }
            for line, near, distance in zip(captions, nearest, distances, strict=True)
        ],
        "real_images": len(reference),
        "feature_px": feature_px,
    }
    write_json(out / "results.json", whole)
    return whole


def match_captions(
    features: dict[str, NDArray[np.float32]],
    train_text: NDArray[np.float32],
    val_text: NDArray[np.float32],
    count: int,
    seed: int,
    out: Path,
) -> list[Result]:
    """How well the sets fit their captions, under heads learned from the training pairs and written to ``out``."""
    heads = train_heads(features["train"], train_text, seed)
    heads.save(out / "heads.safetensors")
    # Samples were drawn for the first captions of the held-out split, in its order.
    matching = {name: retrieval(heads, features[name], val_text[:count]) for name in (SAMPLES, UNTRAINED, NOISE)}
    held_out = retrieval(heads, features["val"], val_text)
    cosines = {
        SAMPLES: matching[SAMPLES]["matched"],
        SHUFFLED: matching[SAMPLES]["shuffled"],
        UNTRAINED: matching[UNTRAINED]["matched"],
        NOISE: matching[NOISE]["matched"],
        REAL: held_out["matched"],
    }
    number = len(features["val"])
    return [
        Result(TEXT_IMAGE, count, cosines),
        Result(RETRIEVAL_R1, number, {REAL: held_out["r1"], "chance": held_out["chance_r1"]}),
        Result(RETRIEVAL_R10, number, {REAL: held_out["r10"], "chance": held_out["chance_r10"]}),
    ]
