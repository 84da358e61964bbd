"""Captions of a dataset -> the frozen encoder's token states, a safetensors file beside each shard.

``tokens`` float16 [T, D] holds all samples' states end to end (ragged: no padding is stored), ``offsets`` int64 [N+1]
where each begins. One shard is one unit of work.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as to_bytes

from preprocessing.manifest import (
    all_there,
    digest,
    file_sha256,
    finished,
    make_folder,
    mark_finished,
    read_json,
    read_manifest,
    write_file,
    write_json,
)

Encode = Callable[[list[str]], tuple[list[Any], int]]  # captions -> (states [L_i, D] each, how many were cut)
BATCH = 32


def embed_captions(
    folder: Path,
    encoder_name: str,
    encoder_digest: str,
    encode: Encode,
    max_tokens: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Fill ``folder/text-NAME/`` -> its manifest. Shards that are done for this data and encoder are not made again.

    Raises ValueError naming a shard whose captions cannot be read, or an encoder whose results are not one per caption.
    """
    data = read_manifest(folder)
    target = folder / f"text-{encoder_name}"
    inputs = digest([data["digest"], encoder_digest, max_tokens])
    present = read_json(target / "manifest.json")
    if present is not None and present.get("inputs") == inputs and all_there(target, present, ".safetensors"):
        progress(data["samples"], data["samples"])
        return present
    make_folder(target)
    (target / "manifest.json").unlink(missing_ok=True)
    null = _states(encode([""])[0])
    write_file(target / "null.safetensors", to_bytes({"tokens": null}))
    shards, done = [], 0
    for shard in data["shards"]:
        shards.append(_embed_shard(folder, target, shard, digest([inputs, shard["sha256"]]), encode))
        done += shard["samples"]
        progress(done, data["samples"])
    manifest = {
        "format": 1,
        "encoder": encoder_name,
        "encoder_digest": encoder_digest,
        "dim": int(null.shape[1]),
        "max_tokens": max_tokens,
        "truncated": sum(shard["truncated"] for shard in shards),
        "data_digest": data["digest"],
        "inputs": inputs,
        "shards": shards,
    }
    manifest["digest"] = digest(manifest)
    write_json(target / "manifest.json", manifest)
    return manifest


def _embed_shard(folder: Path, target: Path, shard: dict[str, Any], inputs: str, encode: Encode) -> dict[str, Any]:
    path = target / Path(shard["file"]).with_suffix(".safetensors").name
    if (entry := finished(path, inputs)) is not None:
        return entry
    captions, states, truncated = read_captions(folder / shard["file"]), [], 0
    for start in range(0, len(captions), BATCH):
        asked = captions[start : start + BATCH]
        part, cut = encode(asked)
        if len(part) != len(asked):
            raise ValueError(f"the text encoder gave {len(part)} results for {len(asked)} captions of {shard['file']}")
        states += part
        truncated += cut
    offsets = np.cumsum([0] + [len(s) for s in states], dtype=np.int64)
    write_file(path, to_bytes({"tokens": _states(states), "offsets": offsets}))
    entry = {"file": path.name, "samples": len(captions), "truncated": truncated, "sha256": file_sha256(path)}
    mark_finished(path, inputs, entry)
    return entry


def read_captions(tar: Path) -> list[str]:
    """The captions of a shard, in order, through its index. Raises ValueError naming the shard that is damaged."""
    try:
        spans = np.load(tar.with_suffix(".idx.npy"))
        with tar.open("rb") as file:
            return [os.pread(file.fileno(), int(length), int(offset)).decode() for offset, length in spans[:, 1]]
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{tar} or its index cannot be read ({error}): make the shards again") from error


def _states(states: list[Any]) -> np.ndarray:
    return np.concatenate([np.asarray(s, dtype=np.float32) for s in states]).astype(np.float16)
