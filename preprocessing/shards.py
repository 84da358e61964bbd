"""Captioned images -> webdataset tars, each with an index beside it, and a manifest over all.

One shard is one unit of work: its marker ``00000.done.json`` is written last, with a digest of what went in, so that a
killed run goes on with the shards that are missing, and makes the same bytes.
"""

import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.images import encode_png, rasterise_svg
from preprocessing.manifest import (
    all_there,
    as_made,
    data_digest,
    digest,
    file_sha256,
    finished,
    index_bytes,
    make_folder,
    mark_finished,
    read_json,
    write_file,
    write_json,
)
from preprocessing.members import check_key
from preprocessing.remove import finish, reapply
from preprocessing.sources import Drawing, OpenMoji

FORMAT = 1
Progress = Callable[[int, int], None]


def write_openmoji(
    source: OpenMoji,
    split: str,
    name: str,
    px: int,
    folder: Path,
    per_shard: int,
    workers: int,
    progress: Progress,
    removed: Collection[str] = (),
) -> dict[str, Any]:
    """Rasterise one split of the drawings into ``folder`` -> its manifest. Done shards are not made again.

    The samples with the keys ``removed``, and those that were removed from the folder (preprocessing/remove.py), are
    taken out before the manifest is written. In a finished set only what is missing is made again, and only if it
    becomes what it was. Raises ValueError where it does not or the folder holds a finished set of other settings, where
    the split is empty, a drawing cannot be drawn, or the folder cannot be written.
    """
    if px < 1 or per_shard < 1 or workers < 1:
        raise ValueError(f"px, per_shard and workers must be at least 1, got {px}, {per_shard}, {workers}")
    drawings = source.split(split)
    if not drawings:
        raise ValueError(f"no drawings in the split {split!r}: raise data.val_fraction or data.limit")
    inputs = split_inputs(source, split, name, px, per_shard)
    present = read_json(folder / "manifest.json")
    if present is not None and present.get("inputs") != inputs:
        raise ValueError(f"{folder} holds a finished data set of other settings, which is never made into another")
    if present is not None and all_there(folder, present, ".tar", ".idx.npy") and _of_right_size(folder, present):
        progress(len(drawings), len(drawings))
        return finish(folder)
    make_folder(folder)
    parts = [drawings[i : i + per_shard] for i in range(0, len(drawings), per_shard)]
    known = ["" for _ in parts] if present is None else [as_made(shard)["sha256"] for shard in present["shards"]]
    jobs = [(folder, number, part, px, made) for number, (part, made) in enumerate(zip(parts, known, strict=True))]
    shards, done = [], 0
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        for shard in pool.map(_write_shard, jobs):
            shards.append(shard)
            done += shard["samples"]
            progress(done, len(drawings))
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"a process that wrote shards into {folder} was killed (out of memory?): run the same command again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, don't write the rest first
    _remove_leftovers(folder, {Path(shard["file"]).stem for shard in shards})
    manifest = {
        "format": FORMAT,
        "name": name,
        "split": split,
        "resolution_px": px,
        "image_ext": "png",
        "samples": len(drawings),
        "shards": shards,
        "source": {
            "openmoji": source.version,
            "drawings": "faces, people, hands and hearts" if source.people else "all",
            "skin tones": "all" if source.skin_tones else "none",
        },
        "licence": source.licence,
        "credit": source.credit,
        "inputs": inputs,
    }
    manifest["digest"] = data_digest(manifest)
    manifest = reapply(folder, manifest, removed)
    write_json(folder / "manifest.json", manifest)
    return manifest


def _of_right_size(folder: Path, manifest: dict[str, Any]) -> bool:
    """Not so where a shard was being made again when a kill came: it may hold samples that had been removed."""
    return all((folder / shard["file"]).stat().st_size == shard["bytes"] for shard in manifest["shards"])


def split_inputs(source: OpenMoji, split: str, name: str, px: int, per_shard: int) -> str:
    """What a split is known by, in its manifest."""
    listed = [(d.key, d.caption) for d in source.split(split)]
    return digest([FORMAT, source.version, split, name, px, per_shard, listed])


def _start_worker() -> None:
    os.environ["VIPS_CONCURRENCY"] = "1"  # the processes are the parallelism
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A pool's workers outlive a parent that was killed, and wait for ever."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _remove_leftovers(folder: Path, stems: set[str]) -> None:
    """Half-written files, and shards that something else left: nothing lies beside the shards of the manifest."""
    for pattern in ("[0-9]*.tar", "[0-9]*.idx.npy", "[0-9]*.done.json", "*.tmp"):
        for path in folder.glob(pattern):
            if path.name.split(".")[0] not in stems or path.suffix == ".tmp":
                path.unlink()


def _write_shard(job: tuple[Path, int, Sequence[Drawing], int, str]) -> dict[str, Any]:
    folder, number, drawings, px, made = job
    path = folder / f"{number:05d}.tar"
    inputs = digest([FORMAT, px, [(d.key, d.caption, file_sha256(d.path)) for d in drawings]])
    index = path.with_suffix(".idx.npy")
    if index.exists() and (entry := finished(path, inputs)) is not None:
        return entry
    samples = []
    for drawing in drawings:
        meta = json.dumps({"key": drawing.key, "px": px}, sort_keys=True).encode()
        samples.append((drawing.key, encode_png(rasterise_svg(drawing.path, px)), drawing.caption.encode(), meta))
    data, spans = pack(samples)
    if made not in ("", hashlib.sha256(data).hexdigest()):
        raise ValueError(
            f"{path}: this machine draws other bytes than those that are lost (another version of pyvips or Pillow?): "
            f"copy it from elsewhere, or move {folder.parent} away to have the whole set made anew"
        )
    write_file(path, data)
    write_file(index, index_bytes(spans))
    shard = {"file": path.name, "samples": len(samples), "bytes": len(data), "sha256": file_sha256(path)}
    mark_finished(path, inputs, shard)
    return shard


def pack(samples: Sequence[tuple[str, bytes, bytes, bytes]]) -> tuple[bytes, np.ndarray]:
    """(key, png, caption, json) -> tar bytes, and int64 [N, 3, 2]: offset and length of each member's data.

    Members have no time and no owner, so equal samples make equal bytes.
    """
    buffer, spans = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, *members in samples:
            check_key(key)
            places = []
            for extension, data in zip(("png", "txt", "json"), members, strict=True):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                places.append((tar.offset + tarfile.BLOCKSIZE, len(data)))
                tar.addfile(info, io.BytesIO(data))
            spans.append(places)
    return buffer.getvalue(), np.array(spans, dtype=np.int64).reshape(-1, 3, 2)
