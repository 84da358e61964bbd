"""Captions of a dataset -> the frozen encoder's token states, a safetensors file for each shard.

``tokens`` [T, D] holds all samples' states end to end (ragged: no padding is stored), ``offsets`` int64 [N+1] where
each begins. In half precision (``text-NAME/``) the tokens are float16; a GPU's bfloat16 states lose nothing by that. In
8 bits (``text-NAME-8bit/``) they are int8, and ``scales`` float32 [T] has the number that each token is multiplied by.
One shard is one unit of work. Other images, another encoder, tokenizer or precision are another set, never mixed: its
shards are made again.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as to_bytes

from preprocessing.manifest import (
    all_there,
    as_made,
    digest,
    file_sha256,
    finished,
    make_folder,
    mark_finished,
    read_json,
    read_manifest,
    read_marker,
    unfinished_removal,
    write_file,
    write_json,
)
from preprocessing.remove import read_keys

Encode = Callable[[list[str]], tuple[list[Any], int]]  # captions -> (states [L_i, D] each, how many were cut)
StatesFormat = Literal["half", "8bit"]
BATCH = 32
UNFIT = "states that are not finite or too large for half precision"


def embed_captions(
    folder: Path,
    encoder_name: str,
    encoder_digest: str,
    encode: Encode,
    max_tokens: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    precision: StatesFormat = "half",
) -> dict[str, Any]:
    """Fill ``set_folder`` -> its manifest. As ``embed_part``, of the whole."""
    embed_part(folder, encoder_name, encoder_digest, encode, max_tokens, progress, precision)
    manifest = finished_set(folder, encoder_name, encoder_digest, max_tokens, precision)
    if manifest is None:
        raise ValueError(f"{set_folder(folder, encoder_name, precision)} changed while it was made: run this again")
    return manifest


def embed_part(
    folder: Path,
    encoder_name: str,
    encoder_digest: str,
    encode: Encode,
    max_tokens: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    precision: StatesFormat = "half",
    part: tuple[int, int] = (1, 1),
) -> int:
    """Every N-th shard of ``set_folder``, from the I-th on -> how many are missing then; none: the manifest is there.

    Shards that are done for this data, encoder and precision are kept. Of a part that several processes make at once
    each writes the same. A removed sample's caption is the empty one. Raises ValueError naming a shard whose captions
    cannot be read, a caption whose states are not finite, or an encoder whose results are not one per caption.
    """
    data, target = read_manifest(folder), set_folder(folder, encoder_name, precision)
    if unfinished_removal(folder, data):
        raise ValueError(f"{folder}: a removal of samples is unfinished: run it again first")
    mine = data["shards"][part[0] - 1 :: part[1]]
    total = sum(shard["samples"] for shard in mine)
    if finished_set(folder, encoder_name, encoder_digest, max_tokens, precision) is not None:
        progress(total, total)
        return 0
    inputs = _inputs(data, encoder_digest, max_tokens, precision)
    made_of = {shard["file"]: digest([inputs, as_made(shard)["sha256"]]) for shard in data["shards"]}
    make_folder(target)
    (target / "manifest.json").unlink(missing_ok=True)
    null, done = stored_states(encode([""])[0], precision), 0
    write_file(target / "null.safetensors", to_bytes(null), shared=True)
    for shard in mine:
        _embed_shard(folder, target, shard, made_of[shard["file"]], encode, precision)
        done += shard["samples"]
        progress(done, total)
    entries = [_written(_states_file(target, shard), made_of[shard["file"]]) for shard in data["shards"]]
    shards = [entry for entry in entries if entry is not None]
    if len(shards) < len(entries):
        return len(entries) - len(shards)
    manifest = {
        "format": 1,
        "encoder": encoder_name,
        "encoder_digest": encoder_digest,
        "precision": precision,
        "dim": int(null["tokens"].shape[1]),
        "max_tokens": max_tokens,
        "truncated": sum(shard["truncated"] for shard in shards),
        "data_digest": data["digest"],
        "inputs": inputs,
        "shards": shards,
    }
    manifest["digest"] = digest(manifest)
    write_json(target / "manifest.json", manifest, shared=True)
    return 0


def set_folder(folder: Path, encoder_name: str, precision: StatesFormat) -> Path:
    """Where a dataset folder's embeddings by an encoder lie."""
    return folder / (f"text-{encoder_name}" + ("-8bit" if precision == "8bit" else ""))


def finished_set(
    folder: Path, encoder_name: str, encoder_digest: str, max_tokens: int, precision: StatesFormat
) -> dict[str, Any] | None:
    """The manifest of a dataset folder's embeddings, if they are whole and of these images and this encoder."""
    target = set_folder(folder, encoder_name, precision)
    present, data = read_json(target / "manifest.json"), read_manifest(folder)
    # Sets of before token ids were looked at know their encoder by its files alone.
    wanted = [
        _inputs(data, known, max_tokens, precision) for known in (encoder_digest, encoder_digest.partition("-")[0])
    ]
    whole = present is not None and present.get("inputs") in wanted and all_there(target, present, ".safetensors")
    return present if whole else None


def _inputs(data: dict[str, Any], encoder_digest: str, max_tokens: int, precision: StatesFormat) -> str:
    return digest([data["digest"], encoder_digest, max_tokens, precision])


def _states_file(target: Path, shard: dict[str, Any]) -> Path:
    return target / Path(shard["file"]).with_suffix(".safetensors").name


def _written(path: Path, inputs: str) -> dict[str, Any] | None:
    """The entry of a shard that some part wrote, by its marker alone: to read the files of all parts takes hours."""
    marker = read_marker(path)
    return marker["shard"] if marker is not None and marker["inputs"] == inputs and path.exists() else None


def _embed_shard(
    folder: Path, target: Path, shard: dict[str, Any], inputs: str, encode: Encode, precision: StatesFormat
) -> None:
    path, tar = _states_file(target, shard), folder / shard["file"]
    if finished(path, inputs) is not None:
        return
    captions, states, truncated = read_captions(tar), list[Any](), 0
    for start in range(0, len(captions), BATCH):
        asked = captions[start : start + BATCH]
        part, cut = encode(asked)
        if len(part) != len(asked):
            raise ValueError(f"the text encoder gave {len(part)} results for {len(asked)} captions of {shard['file']}")
        for place, state in enumerate(part, start):
            if not _fits(np.asarray(state, np.float32)):
                raise ValueError(
                    f"{tar}: the caption of {read_keys(tar)[place]!r} has {UNFIT}: take the sample out (`mdm data NAME "
                    "--remove FILE`) or take another encoder; the shards before it stay"
                )
        states += part
        truncated += cut
    offsets = np.cumsum([0] + [len(s) for s in states], dtype=np.int64)
    write_file(path, to_bytes({**stored_states(states, precision), "offsets": offsets}))
    entry = {"file": path.name, "samples": len(captions), "truncated": truncated, "sha256": file_sha256(path)}
    mark_finished(path, inputs, entry)


def read_captions(tar: Path) -> list[str]:
    """The captions of a shard, in order, through its index; "" for a removed sample.

    Raises ValueError naming the shard that is damaged.
    """
    try:
        spans = np.load(tar.with_suffix(".idx.npy"))
        with tar.open("rb") as file:
            return [os.pread(file.fileno(), int(length), int(offset)).decode() for offset, length in spans[:, -2]]
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{tar} or its index cannot be read ({error}): make the shards again") from error


def stored_states(states: list[Any], precision: StatesFormat) -> dict[str, np.ndarray]:
    """Token states [L_i, D], end to end, as they are stored. Raises ValueError for numbers that half precision lacks.

    8 bits: a token's largest entry becomes 127, so that no entry is off by more than that largest one / 254.
    """
    whole = np.concatenate([np.asarray(s, dtype=np.float32) for s in states])  # [T, D]
    if not _fits(whole):
        raise ValueError(f"the text encoder gave {UNFIT}")
    if precision == "half":
        return {"tokens": whole.astype(np.float16)}
    largest = np.abs(whole).max(axis=1)  # [T]
    scales = np.where(largest > 0, largest, 1) / np.float32(127)
    return {"tokens": np.rint(whole / scales[:, None]).astype(np.int8), "scales": scales.astype(np.float32)}


def _fits(states: NDArray[np.float32]) -> bool:
    return bool((np.abs(states) <= np.finfo(np.float16).max).all())  # not so for NaN either
