"""Samples taken out of a finished dataset folder, for good, while every other sample keeps its position.

A shard's tar is written anew without them, so their bytes are gone and any webdataset tool reads fewer samples. Its
index keeps their rows, of zeros: a tombstone, so that the order of training and its resume hold. Stored text
embeddings keep their places too; a removed caption becomes the empty one. The manifest's ``digest`` stays that of the
set as made, to which embeddings and checkpoints are tied; ``revision`` counts the removals. What was already made from
the samples (weights, samples' captions, reports) is not touched.

``removed.json`` is written before anything changes and the manifest after everything: between the two the removal is
unfinished, readers refuse the folder, and the same command, or making the shards again, finishes it. It stays, so that
samples that are drawn or fetched again are taken out again: {"revision", "keys": every key ever removed, "at": {key:
the first revision without it}, "digest": of the set that the places are of, "shards": {file: {"sha256": as made,
"places": [...]}}}.

Whoever reads the folder must have left it (mdm/data/leases.py): a reader finds the shards changed, and ends with an
error that names the shard.
"""

import hashlib
import json
import os
import tarfile
from collections import defaultdict
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes

from preprocessing.manifest import (
    as_made,
    file_sha256,
    index_bytes,
    read_json,
    read_manifest,
    read_marker,
    unfinished_removal,
    update_marker,
    write_file,
    write_json,
)
from preprocessing.members import END, index_tar, samples_in

LIST = "removed.json"
READERS = 32  # threads that look for keys: on networked storage each read is a wait

Places = dict[str, list[tuple[str, int]]]  # key -> the shard's file and the place there, of each sample that has it


def remove(folder: Path, keys: Iterable[str]) -> dict[str, Any]:
    """Take samples out of a dataset folder -> its new manifest. Keys that were removed before are passed over.

    Raises ValueError naming keys that the folder does not have, or a shard that is damaged; then nothing has changed.
    """
    finish(folder)
    wanted = set(keys) - removed_keys(folder)
    found = find(folder, wanted)
    refuse_unknown(folder, wanted - set(found))
    return take_out(folder, found)


def find(folder: Path, keys: set[str]) -> Places:
    """Where the keys stand, of those that the folder has."""
    manifest = read_manifest(folder)
    if unfinished_removal(folder, manifest):
        raise ValueError(f"{folder}: an earlier removal is unfinished: run it again first")
    if not keys:
        return {}
    with ThreadPoolExecutor(READERS) as pool:
        names = [shard["file"] for shard in manifest["shards"]]
        lists = pool.map(read_keys, (folder / name for name in names))
        found: Places = defaultdict(list)
        for name, there in zip(names, lists, strict=True):
            for place, key in enumerate(there):
                if key in keys:
                    found[key].append((name, place))
    return dict(found)


def refuse_unknown(folder: Path, unknown: set[str]) -> None:
    """Raises ValueError naming (the first of) the keys, if there are any."""
    if unknown:
        shown = ", ".join(map(repr, sorted(unknown)[:5])) + (", …" if len(unknown) > 5 else "")
        raise ValueError(
            f"{folder.name} has no sample {shown} ({len(unknown)} unknown): nothing was removed. A key is a file's "
            "name without its ending, with _ for each dot in it; a sample's .json has it"
        )


def removed_keys(folder: Path) -> set[str]:
    """Every key that was ever removed here."""
    return set((read_json(folder / LIST) or {"keys": []})["keys"])


def removed_since(folder: Path, revision: int) -> int:
    """How many keys were removed after a revision of the folder. Those of before ``at`` was kept count as the last."""
    record = read_json(folder / LIST) or {"keys": [], "revision": 0}
    at = record.get("at", {})
    return sum(at.get(key, record["revision"]) > revision for key in record["keys"])


def take_out(folder: Path, found: Places) -> dict[str, Any]:
    """Remove what ``find`` found -> the new manifest. Raises ValueError as ``remove`` does."""
    manifest = read_manifest(folder)
    if not found:
        return manifest
    known = read_json(folder / LIST) or {"keys": [], "shards": {}}
    shards = dict(known["shards"])
    new: dict[str, dict[int, str]] = defaultdict(dict)  # file -> place -> key
    for key, there in found.items():
        for file, place in there:
            new[file][place] = key
    for entry in manifest["shards"]:
        keys = new.get(entry["file"])
        if keys is None:
            continue
        if file_sha256(folder / entry["file"]) != entry["sha256"]:
            raise ValueError(f"{folder / entry['file']} is altered: delete it and make the shards again")
        _check_names(folder / entry["file"], entry, keys)
        places = sorted([*keys, *entry.get("removed", ())])
        shards[entry["file"]] = {"sha256": as_made(entry)["sha256"], "places": places}
    revision = manifest.get("revision", 0) + 1
    at = {**dict.fromkeys(known["keys"], revision - 1), **known.get("at", {}), **dict.fromkeys(found, revision)}
    record = {"revision": revision, "keys": sorted(at), "at": at}
    write_json(folder / LIST, {**record, "digest": manifest["digest"], "shards": shards})
    return finish(folder)


def _check_names(tar: Path, entry: dict[str, Any], keys: dict[int, str]) -> None:
    """Raises ValueError unless the tar's own names say that the samples at these places have these keys."""
    gone = set(entry.get("removed", ()))
    present = [place for place in range(entry["samples"]) if place not in gone]
    for place, sample in zip(present, samples_in(tar), strict=True):
        if place in keys and sample.key.rpartition("/")[2] != keys[place]:
            raise ValueError(
                f"{tar}: its index points at {keys[place]!r} where {sample.key!r} stands: delete the index and make it "
                "again"
            )


def describe(folder: Path, found: Places) -> dict[str, dict[str, list[str]]]:
    """What pictures can be known by when their bytes are gone: key -> their sha256, and URLs if they came from any."""
    known: dict[str, dict[str, list[str]]] = {}
    for key, places in found.items():
        known[key] = {"sha256": [], "url": []}
        for file, place in places:
            spans = np.load((folder / file).with_suffix(".idx.npy"))[place]
            with (folder / file).open("rb") as tar:
                *images, _, meta = (os.pread(tar.fileno(), int(length), int(offset)) for offset, length in spans)
            known[key]["sha256"] += [hashlib.sha256(image).hexdigest() for image in images]
            known[key]["url"] += [url] if isinstance(url := json.loads(meta).get("url"), str) else []
    return known


def removed_places(manifest: dict[str, Any]) -> set[int]:
    """The numbers, in the whole split, of the samples that were removed."""
    starts = accumulate((shard["samples"] for shard in manifest["shards"]), initial=0)
    numbered = zip(starts, manifest["shards"], strict=False)
    return {start + place for start, shard in numbered for place in shard.get("removed", ())}


def finish(folder: Path) -> dict[str, Any]:
    """Carry out what removed.json says, if that is not done -> the manifest."""
    manifest = read_manifest(folder)
    if unfinished_removal(folder, manifest):
        manifest = reapply(folder, manifest)
        path = folder / "manifest.json"
        times = path.stat()
        write_json(path, manifest)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # a set is as old as when it was made
    return manifest


def reapply(folder: Path, manifest: dict[str, Any], keys: Collection[str] = ()) -> dict[str, Any]:
    """Take out of shards that lie in the folder whatever was ever removed, and the samples with these keys -> their
    manifest, which is not written.
    """
    record = read_json(folder / LIST) or {"revision": 1, "keys": [], "digest": ""}
    if record["digest"] != manifest["digest"]:
        record = _places(folder, manifest, record, {*record["keys"], *keys})
        if not record["shards"]:
            return manifest
        write_json(folder / LIST, record)
    shards = []
    for entry in manifest["shards"]:
        done = entry.get("removed", [])
        places = sorted({*done, *record["shards"].get(entry["file"], {"places": []})["places"]})
        if places != done:
            for embeddings in sorted(folder.glob(f"text-*/{Path(entry['file']).stem}.safetensors")):
                _blank_captions(embeddings, places, entry["samples"])
            entry = _rewrite(folder, entry, places)  # last: its marker says that the embeddings are done too
        shards.append(entry)
    for target in sorted(folder.glob("text-*/manifest.json")):
        _update_set(target)
    return {**manifest, "shards": shards, "revision": record["revision"]}


def _places(folder: Path, manifest: dict[str, Any], record: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    """The record of a removal of those of the keys that a newly made set has."""
    there: set[str] = set()
    shards = {}
    for entry in manifest["shards"] if keys else ():
        made, known = as_made(entry)["sha256"], record.get("shards", {}).get(entry["file"])
        if known is None or known["sha256"] != made:
            found = {place: key for place, key in enumerate(read_keys(folder / entry["file"])) if key in keys}
            there.update(found.values())
            known = {"sha256": made, "places": list(found)}
        if known["places"]:
            shards[entry["file"]] = known
    listed = sorted({*record["keys"], *there})
    at = {key: record.get("at", {}).get(key, record["revision"]) for key in listed}
    return {"revision": record["revision"], "keys": listed, "at": at, "digest": manifest["digest"], "shards": shards}


def read_keys(tar: Path) -> list[str | None]:
    """The keys of a shard's samples, through its index; None for a removed one. Raises ValueError naming the shard."""
    try:
        spans = np.load(tar.with_suffix(".idx.npy"))
        with tar.open("rb") as file:
            metas = [os.pread(file.fileno(), int(length), int(offset)) for offset, length in spans[:, -1]]
        return [json.loads(meta)["key"] if meta else None for meta in metas]
    except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
        raise ValueError(f"{tar} or its index cannot be read ({error}): make the shards again") from error


def _rewrite(folder: Path, entry: dict[str, Any], places: list[int]) -> dict[str, Any]:
    """Tar, index and marker without the samples at these places -> the shard's new entry. Again: it changes nothing."""
    path, made = folder / entry["file"], as_made(entry)
    before, gone = set(entry.get("removed", ())), set(places)
    present = [i for i in range(entry["samples"]) if i not in before]
    count = len(index_tar(path))
    if count != entry["samples"] - len(gone):  # else the tar is written already, and a kill came after
        if count != len(present):
            raise ValueError(f"{path} holds {count} samples, not {len(present)}: delete it and make the shards again")
        write_file(path, _without(path, [i for i, place in enumerate(present) if place in gone]))
    write_file(path.with_suffix(".idx.npy"), index_bytes(index_tar(path, places)))
    new = {**entry, "bytes": path.stat().st_size, "sha256": file_sha256(path), "removed": places}
    new["made"] = {"bytes": made["bytes"], "sha256": made["sha256"]}
    update_marker(path, new)
    return new


def _without(path: Path, numbers: list[int]) -> bytes:
    """A tar's bytes without some of its samples. Headers stay as they are.

    It ends without padding, so that it is shorter than before in any case: readers with an older index notice by size.
    """
    with tarfile.open(path) as tar:
        last = list(tar)[-1]
    end = -(-(last.offset_data + last.size) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    starts = [sample.start for sample in samples_in(path)]
    data, gone = path.read_bytes(), set(numbers)
    kept = [data[a:b] for i, (a, b) in enumerate(pairwise([*starts, end])) if i not in gone]
    return data[: starts[0]] + b"".join(kept) + END


def _blank_captions(path: Path, places: list[int], samples: int) -> None:
    """Give the captions at these places the states of the empty caption, in a shard's file of embeddings."""
    try:
        file, null = load_file(path), load_file(path.with_name("null.safetensors"))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}): delete it, remove again, then embed again") from error
    offsets = file.pop("offsets")
    if len(offsets) != samples + 1:  # of other shards: such a set is refused by its digest, and made again
        return
    gone, spans = set(places), pairwise(offsets)
    parts = [null if i in gone else {n: v[a:b] for n, v in file.items()} for i, (a, b) in enumerate(spans)]
    blank = {name: np.concatenate([part[name] for part in parts]) for name in file}
    blank["offsets"] = np.cumsum([0] + [len(part["tokens"]) for part in parts], dtype=np.int64)
    data = to_bytes(blank)
    if data != path.read_bytes():
        write_file(path, data)
    marker = read_marker(path)
    if marker is not None:
        update_marker(path, {**marker["shard"], "sha256": file_sha256(path)})


def _update_set(path: Path) -> None:
    """The manifest of a set of embeddings: the files' new digests. Its own digest stays that of the set as made."""
    manifest = read_json(path)
    if manifest is None:
        return
    markers = [read_marker(path.parent / shard["file"]) for shard in manifest["shards"]]
    shards = [marker["shard"] if marker else shard for shard, marker in zip(manifest["shards"], markers, strict=True)]
    if shards != manifest["shards"]:
        write_json(path, {**manifest, "shards": shards})
