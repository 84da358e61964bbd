"""Files that other processes read: written whole or not at all, on the disk when a name says so, known by digest.

And files that say by a lock that their owner lives.
"""

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import IO, Any


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


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file until it is closed or its process ends -> whether nobody else holds it.

    Raises LocksRefused where the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise LocksRefused(
            f"{file.name} cannot be locked ({error.strerror}): its file system has no locks, and two programs could "
            "write the same folder unseen. Use a folder on another one, or have it mounted with locks"
        ) from error
    return True


def is_locked(path: Path) -> bool:
    """Whether some living process holds the lock file. Raises LocksRefused where the file system has no locks."""
    if not path.exists():
        return False
    with path.open("a") as file:
        return not try_lock(file)


class LocksRefused(ValueError):
    """A file system without locks: who owns a folder there cannot be known."""
