"""Captioned images -> webdataset tars, each with an index beside it, and a manifest over all.

One shard is one unit of work: its marker ``00000.done.json`` is written last, with a digest of what went in, so that a
killed run goes on with the shards that are missing, and makes the same bytes.
"""

import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.images import encode_png, rasterise_svg
from preprocessing.manifest import digest, file_sha256, read_json, write_file, write_json
from preprocessing.sources import Drawing, OpenMoji

FORMAT = 1
Progress = Callable[[int, int], None]


def write_openmoji(
    source: OpenMoji, split: str, name: str, px: int, folder: Path, per_shard: int, workers: int, progress: Progress
) -> dict[str, Any]:
    """Rasterise one split of the drawings into ``folder`` -> its manifest. Done shards are not made again."""
    drawings = source.split(split)
    inputs = digest([FORMAT, source.version, split, name, px, per_shard, [(d.key, d.caption) for d in drawings]])
    present = read_json(folder / "manifest.json")
    if present is not None and present.get("inputs") == inputs:
        progress(len(drawings), len(drawings))
        return present
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)  # of other inputs: a reader must not mix the two
    parts = [drawings[i : i + per_shard] for i in range(0, len(drawings), per_shard)]
    jobs = [(folder, number, part, px) for number, part in enumerate(parts)]
    shards, done = [], 0
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        for shard in pool.map(_write_shard, jobs):
            shards.append(shard)
            done += shard["samples"]
            progress(done, len(drawings))
    manifest = {
        "format": FORMAT,
        "name": name,
        "split": split,
        "resolution_px": px,
        "image_ext": "png",
        "samples": len(drawings),
        "shards": shards,
        "source": {"openmoji": source.version, "skin_tones": source.skin_tones},
        "licence": source.licence,
        "credit": source.credit,
        "inputs": inputs,
    }
    manifest["digest"] = digest(manifest)
    write_json(folder / "manifest.json", manifest)
    return manifest


def _one_thread() -> None:
    os.environ["VIPS_CONCURRENCY"] = "1"  # the processes are the parallelism


def _write_shard(job: tuple[Path, int, Sequence[Drawing], int]) -> dict[str, Any]:
    folder, number, drawings, px = job
    path = folder / f"{number:05d}.tar"
    inputs = digest([FORMAT, px, [(d.key, d.caption, file_sha256(d.path)) for d in drawings]])
    marker = read_json(path.with_suffix(".done.json"))
    if marker is not None and marker["inputs"] == inputs and path.exists() and file_sha256(path) == marker["sha256"]:
        return marker["shard"]
    samples = []
    for drawing in drawings:
        meta = json.dumps({"key": drawing.key, "px": px}, sort_keys=True).encode()
        samples.append((drawing.key, encode_png(rasterise_svg(drawing.path, px)), drawing.caption.encode(), meta))
    data, spans = pack(samples)
    write_file(path, data)
    index = io.BytesIO()
    np.save(index, spans)
    write_file(path.with_suffix(".idx.npy"), index.getvalue())
    shard = {"file": path.name, "samples": len(samples), "bytes": len(data), "sha256": file_sha256(path)}
    write_json(path.with_suffix(".done.json"), {"inputs": inputs, "sha256": shard["sha256"], "shard": shard})
    return shard


def pack(samples: Sequence[tuple[str, bytes, bytes, bytes]]) -> tuple[bytes, np.ndarray]:
    """(key, png, caption, json) -> tar bytes, and int64 [N, 3, 2]: offset and length of each member's data.

    Members have no time and no owner, so equal samples make equal bytes.
    """
    buffer, spans = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, *members in samples:
            places = []
            for extension, data in zip(("png", "txt", "json"), members, strict=True):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                places.append((tar.offset + tarfile.BLOCKSIZE, len(data)))
                tar.addfile(info, io.BytesIO(data))
            spans.append(places)
    return buffer.getvalue(), np.array(spans, dtype=np.int64).reshape(-1, 3, 2)
