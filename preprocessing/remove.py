"""Samples taken out of a finished dataset folder, for good, while every other sample keeps its position.

A shard's tar is written anew without them, so their bytes are gone and any webdataset tool reads fewer samples. Its
index keeps their rows, of zeros: a tombstone, so that the order of training and its resume hold. Stored text
embeddings keep their places too; a removed caption becomes the empty one. The manifest's ``digest`` stays that of the
set as made, to which embeddings and checkpoints are tied; ``revision`` counts the removals. What was already made from
the samples (weights, samples' captions, reports) is not touched.

``removed.json`` is written before anything changes and the manifest after everything: between the two the removal is
unfinished, readers refuse the folder, and the same command, or making the shards again, finishes it. It stays, so that
samples that are drawn or fetched again are taken out again: {"revision", "keys": every key ever removed, "at": {key:
the first revision without it}, "known": {key: what else it can be known by}, "digest": of the set that the places are
of, "shards": {file: {"sha256": as made, "places": [...]}}}.

Whoever reads the folder must have left it (mdm/data/leases.py): a reader finds the shards changed, and ends with an
error that names the shard.
"""

import json
import os
import tarfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
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

IDENTITY = ("sha256", "url")  # fields of a sample's .json: of the bytes as they came, and where from
Removed = dict[str, dict[str, list[str]]]  # key -> what else its pictures can be known by: values of those fields
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


def find(folder: Path, keys: Collection[str], removed: Removed = {}) -> Places:  # noqa: B006
    """Where the samples stand that have these keys, or were removed from another set."""
    manifest = read_manifest(folder)
    if unfinished_removal(folder, manifest):
        raise ValueError(f"{folder}: an earlier removal is unfinished: run it again first")
    if not keys and not removed:
        return {}
    goes = removal_rule(keys, removed)
    with ThreadPoolExecutor(READERS) as pool:
        names = [shard["file"] for shard in manifest["shards"]]
        lists = pool.map(_read_metas, (folder / name for name in names))
        found: Places = defaultdict(list)
        for name, there in zip(names, lists, strict=True):
            for place, meta in enumerate(there):
                if meta and goes(meta):
                    found[meta["key"]].append((name, place))
    return dict(found)


def removal_rule(keys: Collection[str], removed: Removed) -> Callable[[dict[str, Any]], bool]:
    """Whether a sample, by its .json, has one of the keys or is what was removed from another set of its name.

    Another set may number its samples otherwise: what was removed is known by its bytes or its address, and by its key
    only where these are not known of both.
    """
    gone = {field: {value for known in removed.values() for value in known.get(field, ())} for field in IDENTITY}

    def goes(meta: dict[str, Any]) -> bool:
        own = {field: meta[field] for field in IDENTITY if isinstance(meta.get(field), str)}
        if meta["key"] in keys or any(value in gone[field] for field, value in own.items()):
            return True
        known = removed.get(meta["key"])
        return known is not None and not any(known.get(field) for field in own)

    return goes


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
    about = {**known.get("known", {}), **describe(folder, found)}
    record = {"revision": revision, "keys": sorted(at), "at": at, "known": about}
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


def describe(folder: Path, found: Places) -> Removed:
    """What samples can be known by in other sets, as far as their .json says it."""
    metas: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for key, places in found.items():
        for file, place in places:
            offset, length = np.load((folder / file).with_suffix(".idx.npy"))[place, -1]
            with (folder / file).open("rb") as tar:
                metas[key].append(json.loads(os.pread(tar.fileno(), int(length), int(offset))))
    return {key: _identity(of_key) for key, of_key in metas.items()}


def _identity(metas: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {field: sorted({m[field] for m in metas if isinstance(m.get(field), str)}) for field in IDENTITY}


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


def reapply(
    folder: Path,
    manifest: dict[str, Any],
    keys: Collection[str] = (),
    removed: Removed = {},  # noqa: B006
) -> dict[str, Any]:
    """Take out of shards that lie in the folder whatever was ever removed from it, the samples with these keys, and
    what was removed from other sets -> their manifest, which is not written.
    """
    record = read_json(folder / LIST) or {"revision": 1, "keys": [], "digest": ""}
    if record["digest"] != manifest["digest"]:
        record = _places(folder, manifest, record, {*record["keys"], *keys}, removed)
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


def _places(
    folder: Path, manifest: dict[str, Any], record: dict[str, Any], keys: set[str], removed: Removed
) -> dict[str, Any]:
    """The record of a removal of what a newly made set has of it."""
    there: dict[str, dict[str, list[str]]] = {}
    shards, goes = {}, removal_rule(keys, removed)
    for entry in manifest["shards"] if keys or removed else ():
        made, known = as_made(entry)["sha256"], record.get("shards", {}).get(entry["file"])
        if known is None or known["sha256"] != made:
            metas = enumerate(_read_metas(folder / entry["file"]))
            found = {place: meta for place, meta in metas if meta and goes(meta)}
            there |= {meta["key"]: _identity([meta]) for meta in found.values()}
            known = {"sha256": made, "places": list(found)}
        if known["places"]:
            shards[entry["file"]] = known
    listed = sorted({*record["keys"], *there})
    at = {key: record.get("at", {}).get(key, record["revision"]) for key in listed}
    about = {"keys": listed, "at": at, "known": {**record.get("known", {}), **there}}
    return {"revision": record["revision"], **about, "digest": manifest["digest"], "shards": shards}


def read_keys(tar: Path) -> list[str | None]:
    """The keys of a shard's samples, through its index; None for a removed one. Raises ValueError naming the shard."""
    return [None if meta is None else meta["key"] for meta in _read_metas(tar)]


def _read_metas(tar: Path) -> list[dict[str, Any] | None]:
    """Their .json, likewise."""
    try:
        spans = np.load(tar.with_suffix(".idx.npy"))
        with tar.open("rb") as file:
            texts = [os.pread(file.fileno(), int(length), int(offset)) for offset, length in spans[:, -1]]
        metas = [json.loads(text) if text else None for text in texts]
        return [None if meta is None else {**meta, "key": meta["key"]} for meta in metas]
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
