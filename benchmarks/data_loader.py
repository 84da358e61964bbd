"""What the loader costs beyond reading and decoding: a 64² training fed from 256² shards, captions' states included.

    python -m benchmarks.data_loader [--rounds 9]

Pictures with the spectrum of photographs, 256², JPEG q95 4:4:4, 256 different ones; states of 12 to 48 tokens of width
2048 (FLAN-T5 XL), half precision. The ceiling is a loop of ``os.pread`` and Pillow to a uint8 array, and ``os.pread``
of the states' bytes, in the order of the training. All rows take turns, on one core, by CPU time: what else runs on the
machine counts less. ``WebDataset`` reads in the order of the tars, shuffles in a buffer, and has no states to read.
"""

import io
import json
import multiprocessing
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from benchmarks.rows import Row, rounds_asked, show
from mdm.data.batches import TrainingSet
from mdm.data.embeddings import TextSource
from mdm.data.order import Order
from mdm.data.shards import Shards
from mdm.data.workers import batches
from preprocessing.embed import embed_captions
from preprocessing.manifest import digest, write_json
from preprocessing.pack.images import encode_jpeg
from preprocessing.pack.shards import TarFile

PX, DIM, TOKENS, BATCH = 256, 2048, (12, 48), 64
SHARDS, PER_SHARD, DIFFERENT = 8, 256, 256
MEASURED = 12 * BATCH  # samples of a row's turn
WARM = 4  # batches before they count: starting a worker is not the loader's speed
CEILING = "ceiling: read and decode"
LEAST_S, LEAST_SHARE = 1000, 0.9  # images per second and core; of the ceiling
Way = Callable[[range], Iterator[Any]]  # positions -> batches
TEXT = TextSource(encoder="random", encoder_digest="random")


def photograph(random: np.random.Generator) -> NDArray[np.uint8]:
    """Noise of every octave, coarse ones stronger, little colour: about 36 kB as JPEG, as CC12M's crops have."""
    picture = np.zeros((PX, PX, 3), np.float32)
    for cells in (4, 8, 16, 32, 64, 128, 256):
        noise = random.normal(size=(3, cells, cells)).astype(np.float32)
        planes = [Image.fromarray(plane).resize((PX, PX), Image.Resampling.BICUBIC) for plane in noise]
        picture += np.stack([np.asarray(plane) for plane in planes], axis=2) * (60 / cells**0.5)
    grey = picture.mean(axis=2, keepdims=True)
    return np.clip(1.2 * (grey + 0.4 * (picture - grey)) + 128, 0, 255).astype(np.uint8)


def make_set(folder: Path) -> None:
    random = np.random.default_rng(0)
    pictures = [encode_jpeg(photograph(random)) for _ in range(DIFFERENT)]
    shards = []
    for number in range(SHARDS):
        with TarFile(folder / f"{number:05d}.tar") as tar:
            for place in range(PER_SHARD):
                key = f"{number:05d}{place:04d}"
                meta = f'{{"height": 768, "key": "{key}", "sha256": "{0:064}", "url": "https://example.org/{key}.jpg"}}'
                data = pictures[(number * PER_SHARD + place) % DIFFERENT]
                tar.add(key, {"jpg": data, "txt": b"a photograph of a place by the sea", "json": meta.encode()})
            shards.append(tar.finish())
    manifest = {
        **{"format": 1, "name": "bench", "split": "train", "resolution_px": PX, "image_ext": "jpg"},
        **{"samples": SHARDS * PER_SHARD, "shards": shards, "source": {}, "licence": "", "credit": "", "inputs": ""},
    }
    write_json(folder / "manifest.json", {**manifest, "digest": digest(manifest)})

    def encode(captions: list[str]) -> tuple[list[NDArray[np.float32]], int]:
        lengths = random.integers(*TOKENS, len(captions), endpoint=True)
        return [random.normal(size=(length, DIM)).astype(np.float32) for length in lengths], 0

    embed_captions(folder, TEXT.encoder, TEXT.encoder_digest, encode, TOKENS[1])


def ceiling(folder: Path) -> Way:
    """Read and decode, nothing else: what lies where is known before."""
    order, pictures, captions = Order([PER_SHARD] * SHARDS, seed=0), [], []
    for number in range(SHARDS):
        tar = os.open(folder / f"{number:05d}.tar", os.O_RDONLY)
        pictures += [(tar, size, at) for at, size in np.load(folder / f"{number:05d}.idx.npy")[:, 0].tolist()]
        path = folder / TEXT.set_name / f"{number:05d}.safetensors"
        header = int.from_bytes(path.read_bytes()[:8], "little")
        start = 8 + header + json.loads(path.read_bytes()[8 : 8 + header])["tokens"]["data_offsets"][0]
        states = os.open(path, os.O_RDONLY)
        spans = pairwise(load_file(path)["offsets"].tolist())
        captions += [(states, 2 * DIM * (end - begin), start + 2 * DIM * begin) for begin, end in spans]

    def run(positions: range) -> Iterator[None]:
        for i in range(0, len(positions), BATCH):
            for index in map(order.index, positions[i : i + BATCH]):
                with Image.open(io.BytesIO(os.pread(*pictures[index]))) as picture:
                    np.asarray(picture)
                os.pread(*captions[index])
            yield

    return run


def ours(folder: Path, workers: int) -> Way:
    shards = Shards(folder, TEXT, px=64)
    data = TrainingSet(shards, seed=0, null=shards.null_tokens(), dropout=0.1)
    return lambda positions: batches(data, ([*range(i, i + BATCH)] for i in positions[::BATCH]), workers)


def theirs(folder: Path) -> Way:
    url = f"{folder}/{{00000..{SHARDS - 1:05d}}}.tar"
    stream = webdataset.WebDataset(url, shardshuffle=SHARDS, seed=0).shuffle(BATCH).decode("rgb8")
    return lambda _: iter(stream.to_tuple("jpg", "txt", "json").batched(BATCH))


def cpu_s() -> float:
    """Of this process and of its workers."""
    workers = (Path(f"/proc/{worker.pid}/schedstat").read_text() for worker in multiprocessing.active_children())
    return time.process_time() + sum(int(line.split()[0]) for line in workers) / 1e9


def measure(rounds: int) -> list[Row]:
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_set(folder)
        ways = {
            CEILING: ceiling(folder),
            "the loader, in the training's process": ours(folder, 0),
            "the loader, one worker process": ours(folder, 1),
            "`wds.WebDataset`, without states": theirs(folder),
        }
        for turn in range(rounds + 1):  # the first warms up
            for way, run in ways.items():
                stream = run(range(2 * MEASURED))
                deque(islice(stream, WARM), maxlen=0)
                began = cpu_s()
                deque(islice(stream, MEASURED // BATCH), maxlen=0)  # as a training does, it keeps none
                if turn:
                    found.setdefault(way, []).append(MEASURED / (cpu_s() - began))
                del stream  # which ends its workers
    rows = [Row("64² training from 256² shards", CEILING, found[CEILING], "images/s per core")]
    for way, rates in list(found.items())[1:]:
        shares = [rate / most for rate, most in zip(rates, found[CEILING], strict=True)]
        limits = (None, None) if "wds" in way else (LEAST_S, LEAST_SHARE)
        rows.append(Row("", way, rates, "images/s per core", least=limits[0]))
        rows.append(Row("", f"{way}: of the ceiling", shares, "", least=limits[1]))
    return rows


if __name__ == "__main__":
    show(measure(rounds_asked(__doc__, 9)))
