"""manifest.json: what a finished folder of shards holds. Written last: where it is, everything is there."""

import contextlib
import errno
import hashlib
import io
import json
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.members import index_tar

FIELDS: dict[str, type] = {
    "format": int,
    "name": str,
    "split": str,
    "resolution_px": int,
    "image_ext": str,
    "samples": int,
    "shards": list,
    "source": dict,
    "licence": str,
    "credit": str,
    "inputs": str,
    "digest": str,
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SHARD_FIELDS: dict[str, type] = {"file": str, "samples": int, "bytes": int, "sha256": str}


def digest(value: Any) -> str:
    """sha256 of canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(path: Path, data: bytes, shared: bool = False) -> None:
    """Write a file so that it is there whole or not at all. Raises ValueError where it cannot be written.

    ``shared``: other processes, on other machines perhaps, may be writing the same, each under a name of its own.
    """
    own = f".{secrets.token_hex(4)}" if shared else ""
    temporary = path.with_name(f"{path.name}{own}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> ValueError:
    advice = "Free some space" if error.errno in FULL else "Let this user write there,"
    return ValueError(
        f"{path} cannot be written: {error.strerror or error}. {advice} or use another folder (MDM_HOME), "
        "then run the same command again"
    )


def make_folder(folder: Path) -> None:
    """Raises ValueError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder {folder} cannot be made: {error.strerror}") from error


def write_json(path: Path, value: Any, shared: bool = False) -> None:
    write_file(path, json.dumps(value, indent=1).encode(), shared)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is none or it is torn."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):  # neither UTF-8 nor JSON
        return None
    return value if isinstance(value, dict) else None


def mark_finished(path: Path, inputs: str, entry: dict[str, Any]) -> None:
    """Say that a shard is whole: written after it, with the digest of what it was made from."""
    write_json(path.with_suffix(".done.json"), {"inputs": inputs, "sha256": entry["sha256"], "shard": entry})


def read_marker(path: Path) -> dict[str, Any] | None:
    """What ``mark_finished`` wrote of a shard, or None where there is no marker or it is torn."""
    marker = read_json(path.with_suffix(".done.json"))
    return marker if marker and "inputs" in marker and isinstance(marker.get("shard"), dict) else None


def update_marker(path: Path, entry: dict[str, Any]) -> None:
    """Say that a shard that was made is whole in its new form, if there was a marker."""
    marker = read_marker(path)
    if marker is not None:
        mark_finished(path, marker["inputs"], entry)


def finished(path: Path, inputs: str) -> dict[str, Any] | None:
    """The manifest's entry of a file that was made from these inputs and is as long as it was, or None.

    Its bytes are not compared: among thousands of files that takes hours (``verify_dataset`` does it).
    """
    marker = read_marker(path)
    if marker is None or marker["inputs"] != inputs or not path.exists():
        return None
    entry: dict[str, Any] = marker["shard"]
    whole = path.stat().st_size == entry["bytes"] if "bytes" in entry else file_sha256(path) == marker.get("sha256")
    return entry if whole else None


def all_there(folder: Path, manifest: dict[str, Any], *suffixes: str) -> bool:
    """Whether every shard of a manifest has its files: one that was deleted as damaged is made again."""
    return all((folder / s["file"]).with_suffix(x).exists() for s in manifest["shards"] for x in suffixes)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a dataset folder. Raises ValueError naming the file and the field that is wrong."""
    path = folder / "manifest.json"
    manifest = read_json(path)
    if manifest is None:
        raise ValueError(f"{path} is missing or not JSON: {folder} is no finished dataset")
    _check_fields(path, "", manifest, FIELDS)
    _check_fields(path, "", {"revision": 0, **manifest}, {"revision": int})
    if manifest["format"] != 1:
        raise ValueError(f"{path}: field 'format' is {manifest['format']}; this version reads 1")
    for i, shard in enumerate(manifest["shards"]):
        if not isinstance(shard, dict):
            raise ValueError(f"{path}: field 'shards[{i}]' is no object")
        _check_fields(path, f"shards[{i}].", shard, SHARD_FIELDS)
        if Path(shard["file"]).name != shard["file"]:
            raise ValueError(f"{path}: field 'shards[{i}].file' is no plain file name: {shard['file']!r}")
        if "removed" in shard:
            _check_fields(path, f"shards[{i}].", shard, {"removed": list, "made": dict})
            _check_fields(path, f"shards[{i}].made.", shard["made"], {"bytes": int, "sha256": str})
    if manifest["samples"] != sum(shard["samples"] for shard in manifest["shards"]):
        raise ValueError(f"{path}: field 'samples' is not the sum over the shards")
    return manifest


def _check_fields(path: Path, prefix: str, value: dict[str, Any], fields: dict[str, type]) -> None:
    for field, kind in fields.items():
        if type(value.get(field)) is not kind:  # exactly: True is no int
            raise ValueError(f"{path}: field {prefix + field!r} is missing or no {kind.__name__}")


def as_made(entry: dict[str, Any]) -> dict[str, Any]:
    """A shard's entry as it was before samples were removed from it."""
    return {k: v for k, v in {**entry, **entry.get("made", {})}.items() if k not in ("made", "removed")}


def samples_left(manifest: dict[str, Any]) -> int:
    """How many samples a folder still has; ``samples`` counts those that were removed, too, which keep their places."""
    return int(manifest["samples"]) - sum(len(shard.get("removed", ())) for shard in manifest["shards"])


def data_digest(manifest: dict[str, Any]) -> str:
    """What a manifest's ``digest`` must be: that of the set as made, whatever samples were removed from it since."""
    whole = {k: v for k, v in manifest.items() if k not in ("digest", "revision")}
    return digest({**whole, "shards": [as_made(shard) for shard in manifest["shards"]]})


def unfinished_removal(folder: Path, manifest: dict[str, Any]) -> bool:
    """Whether samples are being removed, or were when the process that did it died (preprocessing/remove.py)."""
    removed = read_json(folder / "removed.json")
    return removed is not None and removed["revision"] != manifest.get("revision", 0)


def verify_dataset(folder: Path) -> None:
    """Compare manifest, tars and indexes with one another. Raises ValueError naming the first file that differs."""
    manifest = read_manifest(folder)
    if unfinished_removal(folder, manifest):
        raise ValueError(f"{folder / 'removed.json'}: a removal of samples is unfinished: run it again")
    if data_digest(manifest) != manifest["digest"]:
        raise ValueError(f"{folder / 'manifest.json'}: field 'digest' does not fit the rest: make the shards again")
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        if not path.exists():
            raise ValueError(f"{path} is missing: make the shards again")
        if path.stat().st_size != shard["bytes"] or file_sha256(path) != shard["sha256"]:
            raise ValueError(f"{path} is truncated or altered: delete it and make the shards again")
        index = path.with_suffix(".idx.npy")
        if not index.exists():
            raise ValueError(f"{index} is missing: make the shards again")
        if index.read_bytes() != index_bytes(index_tar(path, shard.get("removed", ()))):
            raise ValueError(f"{index} does not fit {path.name}: delete it and make the shards again")


def index_bytes(spans: np.ndarray) -> bytes:
    """The index file of a shard."""
    buffer = io.BytesIO()
    np.save(buffer, spans)
    return buffer.getvalue()
