"""Files that other processes read: written whole or not at all, on the disk when a name says so, known by digest."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically: a reader sees the old one or the new one. An OSError leaves nothing behind."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def sha256(file: int | Path) -> str:
    """sha256 of a file: a path, or a descriptor that stands at its beginning and stays open."""
    with open(file, "rb", closefd=not isinstance(file, int)) as whole:
        return hashlib.file_digest(whole, "sha256").hexdigest()


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
