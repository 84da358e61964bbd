"""Bytes of samples out of a dataset folder's tars, through the index beside each, with few files open.

Whatever is wrong with a shard comes out as ``DamagedShard`` with the shard's name. Shards are looked at twice: all of
them at the start (``check``: is each there, as long as the manifest says?), and each one when it is opened.
"""

import errno
import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mdm.files import load_json, sha256
from mdm.stage import Storage
from mdm.structure import digest

TEXT, META = -2, -1  # a sample's members, in the order of the index; before them its picture, or its frames
LOOKERS = 32  # threads of the first look: on networked storage each look is a wait


class DamagedShard(ValueError):
    """A shard, or a sample in it, cannot be read. The message begins with the file's path and says what to do."""


class Tars:
    """The tars of a dataset folder (``manifest``: its manifest.json) -> members of samples.

    At most ``storage.max_open_files`` tars are open, the one longest unused is closed first. ``storage.check`` =
    digest: a tar is read whole and compared with the manifest when this process first opens it.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], storage: Storage) -> None:
        self.folder, self.storage = folder, storage
        self.shards: list[dict[str, Any]] = manifest["shards"]
        self.files: OrderedDict[int, int] = OrderedDict()  # shard -> descriptor, the longest unused first
        self.verdicts: dict[int, str] = {}  # shard -> what its digest said, "" for well

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "files": OrderedDict()}  # a process that this is sent to opens its own

    def path(self, shard: int) -> Path:
        return self.folder / self.shards[shard]["file"]

    def read(self, shard: int, place: int, members: Sequence[int] | None = None) -> list[bytes]:
        """The asked members of a sample (none: all), in one read. Raises DamagedShard."""
        file, spans = self._open(shard), self._index(shard)[place].tolist()  # M pairs of offset and length
        spans = spans if members is None else [spans[member] for member in members]
        begin, end = min(offset for offset, _ in spans), max(map(sum, spans))
        try:
            data = os.pread(file, end - begin, begin)
        except OSError as error:
            raise self._trouble(self.path(shard), error) from None
        if len(data) != end - begin:
            raise DamagedShard(f"{self.path(shard)} is truncated: make it again")
        return [data[offset - begin : offset - begin + length] for offset, length in spans]

    def check(self) -> list[str]:
        """A line for every shard that is missing, of another size than the manifest's, or without its index.

        Reads no shard. One process calls it, not all: it asks the file system about every file.
        """
        names = set(os.listdir(self.folder))
        with ThreadPoolExecutor(LOOKERS) as pool:
            found = list(pool.map(self._size, range(len(self.shards))))
        lines = []
        for number, (shard, size) in enumerate(zip(self.shards, found, strict=True)):
            path = self.path(number)
            if size is None:
                lines.append(f"{path} is missing")
            elif size != shard["bytes"]:
                lines.append(f"{path} is truncated or altered: {size:,} bytes, not {shard['bytes']:,}")
            elif path.with_suffix(".idx.npy").name not in names:
                lines.append(f"{path.with_suffix('.idx.npy')} is missing")
        return lines

    def _size(self, shard: int) -> int | None:
        try:
            return self.path(shard).stat().st_size
        except OSError:
            return None

    def _open(self, shard: int) -> int:
        if shard in self.files:
            self.files.move_to_end(shard)
            return self.files[shard]
        path, entry = self.path(shard), self.shards[shard]
        while len(self.files) >= self.storage.max_open_files:
            os.close(self.files.popitem(last=False)[1])
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise self._trouble(path, error) from None
        # Every removal of samples makes a tar shorter: whoever still has the old manifest and index sees it here.
        size = os.fstat(file).st_size
        problem = "" if size == entry["bytes"] else f"is truncated or altered: {size:,} bytes, not {entry['bytes']:,}"
        if not problem and self.storage.check == "digest":
            if shard not in self.verdicts:
                self.verdicts[shard] = "" if sha256(file) == entry["sha256"] else "is altered: wrong sha256"
            problem = self.verdicts[shard]
        if problem:
            os.close(file)
            raise DamagedShard(f"{path} {problem}: make it again")
        self.files[shard] = file
        return file

    @lru_cache(maxsize=1024)  # noqa: B019 (about 50 MB at 1000 samples a shard; one Tars lives as long as its process)
    def _index(self, shard: int) -> np.ndarray:
        """int64 [N, F + 2, 2]: offset and length, in bytes, of each sample's members; a removed sample has zeros."""
        path, entry = self.path(shard).with_suffix(".idx.npy"), self.shards[shard]
        try:
            spans = np.load(path)
        except OSError as error:
            raise self._trouble(path, error) from None
        except (ValueError, EOFError):
            raise DamagedShard(f"{path} is no index: make it again") from None
        inside = spans.min(initial=0) >= 0 and spans.sum(-1).max(initial=0) <= entry["bytes"]
        if spans.ndim != 3 or len(spans) != entry["samples"] or spans.shape[1] < 3 or not inside:
            raise DamagedShard(f"{path} does not fit {self.path(shard).name}: make it again")
        return spans

    def _trouble(self, path: Path, error: OSError) -> Exception:
        """What an error of the file system means; too many open files say nothing about the shard."""
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            return error
        if error.errno == errno.ENOENT:
            return DamagedShard(f"{path} is missing: make it again")
        return DamagedShard(f"{path} cannot be read: {error.strerror}")


def revision_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Which state of a split this is: its digest as it was made, how often samples were removed, and, where some were,
    a digest of which: as many others leave other data."""
    removed = [shard.get("removed", []) for shard in manifest["shards"]]
    which = {"removed": digest(removed)[:12]} if any(removed) else {}
    return {"digest": manifest["digest"], "revision": manifest.get("revision", 0), **which}


def load_manifest(folder: Path, pinned: str = "") -> dict[str, Any]:
    """The manifest of a dataset folder, whose digest must be the ``pinned`` one, if any.

    Raises ValueError where it is not, where there is none, or where a removal is changing it.
    """
    if not (folder / "manifest.json").exists():
        raise ValueError(f"{folder} is no finished dataset: manifest.json is missing")
    manifest = load_json(folder / "manifest.json")
    if pinned not in ("", manifest["digest"]):
        raise ValueError(
            f"{folder} holds other data (digest {manifest['digest'][:12]}) than this job was made for ({pinned[:12]}): "
            "put that set back (`mdm data` lists what there is), or make the job anew"
        )
    removed = folder / "removed.json"  # written before the first shard changes, the manifest after the last one
    if removed.exists() and load_json(removed)["revision"] != manifest.get("revision", 0):
        raise ValueError(f"{folder}: a removal of samples is unfinished: run `mdm data PRESET --remove FILE` again")
    return manifest
