"""Files that other processes read: written whole or not at all, on the disk when a name says so, known by digest.

And files that say by a lock that their owner lives.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from mdm.structure import from_dict

T = TypeVar("T")


@contextlib.contextmanager
def whole_file(path: Path, own: str = "") -> Iterator[IO[bytes]]:
    """Open a file to be written atomically: a reader sees the old one or the new one, which is on the disk by then.

    What breaks off in between leaves nothing behind, a kill one file ``.tmp``. ``own`` is this writer's part of that
    file's name, where several processes write the same file.
    """
    temporary = path.with_name(f"{path.name}{own}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to be filled, which gets its name at the end: the same promise for many files."""
    temporary = path.with_name(path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole (``whole_file``)."""
    with whole_file(path) as file:
        file.write(json.dumps(value, indent=1).encode())


def load_json(path: Path) -> Any:
    """A JSON file's value. Raises ValueError naming the file that is missing, torn or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or a thousand brackets deep
        raise ValueError(f"{path} is torn or no JSON ({error})") from None


def load_as(cls: type[T], path: Path) -> T:
    """A JSON file as a dataclass. Raises ValueError naming the file, and the field that is wrong."""
    value = load_json(path)
    try:
        return from_dict(cls, value)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


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
