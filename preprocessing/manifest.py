"""manifest.json: what a finished folder of shards holds. Written last: where it is, everything is there."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

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


def digest(value: Any) -> str:
    """sha256 of canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_file(path, json.dumps(value, indent=1).encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is none or it is torn."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return value if isinstance(value, dict) else None


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a dataset folder. Raises ValueError naming the file and the field that is wrong."""
    path = folder / "manifest.json"
    manifest = read_json(path)
    if manifest is None:
        raise ValueError(f"{path} is missing or not JSON: {folder} is no finished dataset")
    for field, kind in FIELDS.items():
        if not isinstance(manifest.get(field), kind):
            raise ValueError(f"{path}: field {field!r} is missing or no {kind.__name__}")
    if manifest["samples"] != sum(shard["samples"] for shard in manifest["shards"]):
        raise ValueError(f"{path}: field 'samples' is not the sum over the shards")
    return manifest


def verify_dataset(folder: Path) -> None:
    """Compare every shard with the manifest. Raises ValueError naming the first shard that differs."""
    for shard in read_manifest(folder)["shards"]:
        path = folder / shard["file"]
        if not path.exists():
            raise ValueError(f"{path} is missing: make the shards again")
        if path.stat().st_size != shard["bytes"] or file_sha256(path) != shard["sha256"]:
            raise ValueError(f"{path} is truncated or altered: delete it and make the shards again")
