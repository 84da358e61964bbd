"""The images of a folder that generate.py draws: a tar for each batch, or PNG files of their own.

    tars/00768.tar                      the batch that begins with number 768: 00768.64.png, 00768.256.png, 00769.64.png
    00768.png, levels/64/00768.png …    loose, to look at; the highest level stands twice

Shared file systems are slow with many files, and a sweep of eight points would be 720,000. Readers take either.
"""

import functools
import io
import itertools
import os
import re
import tarfile
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mdm.data.pixels import read_rgb
from mdm.data.ranges import to_uint8
from mdm.files import whole_file

DRAWS = "The command that drew the others (`mdm run`, `mdm evaluate`) draws it"
AGAIN = "Delete it: the command that drew the others (`mdm run`, `mdm evaluate`) draws it again"
MEMBER = re.compile(r"(\d{5,})\.(\d+)\.png")  # number and size of an image
SIZE = re.compile(r"[1-9][0-9]*")  # the folder of a level
FILE = re.compile(r"(\d{5,})\.png")
TAR = re.compile(r"\d{5,}\.tar")  # of another name it is none of ours: a copy may hold other images of these numbers
RGB_8 = b"\x08\x02"  # bit depth and colour type in a PNG's header
PNG_END = b"IEND\xaeB`\x82"  # the last bytes of a PNG that was not cut off
Place = tuple[Path, int, int]  # a file; offset and bytes of the image in it


class ImageFolder:
    """What is there when it is opened, and what this process adds. An image is known by its number and its size in px.

    Raises ValueError naming a tar that cannot be read, or two that hold one image.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.places: dict[tuple[int, int], Place] = {}
        for path in sorted((self.folder / "tars").glob("*.tar")):
            found = _members(path, path.stat().st_mtime_ns) if TAR.fullmatch(path.name) else {}
            if twice := found.keys() & self.places.keys():
                other, image = self.places[min(twice)][0], min(twice)[0]
                raise ValueError(f"{other} and {path} both hold image {image}: delete the one that is a copy")
            self.places |= found
        whole = {file.name for file in self.folder.glob("*.png") if FILE.fullmatch(file.name)}
        levels = [level for level in (self.folder / "levels").glob("*/") if SIZE.fullmatch(level.name)]
        for level in levels:
            files = [file for file in level.iterdir() if file.name in whole]
            self.places |= {(int(file.stem), int(level.name)): (file, 0, -1) for file in files}

    @property
    def count(self) -> int:
        """Of the images, each of them at several resolutions."""
        return len({index for index, _ in self.places})

    @property
    def resolutions(self) -> list[int]:
        return sorted({px for _, px in self.places})

    def has(self, index: int, resolutions: Collection[int]) -> bool:
        """Whether an image is there at every resolution."""
        return all((index, px) in self.places for px in resolutions)

    def where(self, index: int, px: int) -> str:
        """A file, or a tar and its member."""
        path, _, _ = self.places.get((index, px), (self.folder / "levels" / str(px) / f"{index:05d}.png", 0, 0))
        return str(path) if path.suffix == ".png" else f"{path}: {index:05d}.{px}.png"

    def read(self, index: int, px: int) -> bytes:
        """The bytes of a PNG, of which is looked at what shows without decoding. Raises ValueError naming it."""
        where = self.where(index, px)
        if (index, px) not in self.places:
            raise ValueError(f"{where} is missing. {DRAWS}")
        path, offset, size = self.places[index, px]
        try:
            with path.open("rb") as file:
                data = file.read() if size < 0 else os.pread(file.fileno(), size, offset)
            with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
                found, extra = picture.size, picture.info.keys() & {"transparency", "exif", "loop"}
        except Exception as error:  # Pillow raises whatever it stumbles over
            why = getattr(error, "strerror", None) or f"it is no PNG that can be read ({type(error).__name__})"
            raise ValueError(f"{where}: {why}. {AGAIN}") from error
        if data[24:26] != RGB_8 or extra:
            raise ValueError(f"{where}: not plain RGB of 8 bits, as what was drawn is. {AGAIN}")
        if found != (px, px):
            raise ValueError(f"{where}: {found[0]}x{found[1]} px, not {px}x{px}. {AGAIN}")
        if not data.endswith(PNG_END):
            raise ValueError(f"{where}: it is cut off. {AGAIN}")
        return data

    def load(self, indices: Sequence[int], px: int) -> NDArray[np.uint8]:
        """The images of these numbers, in their order: uint8 [N, 3, px, px]. Raises ValueError naming one."""
        images = np.empty((len(indices), 3, px, px), np.uint8)
        for image, index in zip(images, indices, strict=True):
            try:
                image[...] = read_rgb(self.read(index, px)).transpose(2, 0, 1)
            except ValueError as error:
                where = self.where(index, px)
                raise error if where in str(error) else ValueError(f"{where}: {error}. {AGAIN}") from error
        return images

    def save(self, xs: Sequence[Tensor], indices: Sequence[int], missing: Collection[int], loose: bool = False) -> None:
        """Add those of a batch that are missing: levels of [B, 3, H_r, H_r] in [-1, 1], of these numbers."""
        images = {
            (index, x.shape[-1]): _png(picture.permute(1, 2, 0).numpy())
            for x in xs
            for index, picture in zip(indices, to_uint8(x), strict=True)
            if index in missing
        }
        if not loose:
            self._pack(self.folder / "tars" / f"{indices[0]:05d}.tar", images)
            return
        for (index, px), data in images.items():
            level = self.folder / "levels" / str(px) / f"{index:05d}.png"
            for path in [level, *([self.folder / level.name] if px == xs[-1].shape[-1] else [])]:
                path.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(path) as file:
                    file.write(data)
            self.places[index, px] = level, 0, -1

    def forget(self, indices: Collection[int]) -> None:
        """Delete the images of these numbers, at every resolution."""
        gone = {key: path for key, (path, _, _) in self.places.items() if key[0] in indices}
        self.places = {key: place for key, place in self.places.items() if key not in gone}
        for path in set(gone.values()):
            if path.suffix == ".tar":
                self._pack(path, {})
            else:
                path.unlink(missing_ok=True)
        for index in indices:
            (self.folder / f"{index:05d}.png").unlink(missing_ok=True)

    def _pack(self, path: Path, images: dict[tuple[int, int], bytes]) -> None:
        """Write a tar of what it has and these, in the order of their numbers; none where that is nothing."""
        images = {key: self.read(*key) for key, place in self.places.items() if place[0] == path} | images
        if not images:
            path.unlink()
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for (index, px), data in sorted(images.items()):
                member = tarfile.TarInfo(f"{index:05d}.{px}.png")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        self.places |= _members(path, path.stat().st_mtime_ns)

    def refuse_strays(self, known: Collection[int]) -> None:
        """Raises ValueError naming what lies among the images and is none of those with these numbers."""
        if strays := self.strays(known):
            raise ValueError(f"{strays[0]} is no image of {self.folder / 'captions.jsonl'}: move it away")

    def strays(self, known: Collection[int]) -> list[str]:
        """What lies among the images and is none of those with these numbers."""
        others = [self.where(*key) for key in self.places if key[0] not in known]
        below = ((self.folder / part).rglob("*") for part in ("levels", "tars"))
        found = itertools.chain(self.folder.iterdir(), *below)
        # A kill leaves .tmp; what begins with a dot is some program's own.
        seen = (path for path in found if not path.name.startswith(".") and path.suffix != ".tmp")
        return sorted(others + [str(path) for path in seen if not self._ours(path, known)])

    def _ours(self, path: Path, known: Collection[int]) -> bool:
        """Whether this is a place where ``save`` would write, of one of these numbers."""
        parts = path.relative_to(self.folder).parts
        if parts[0] == "tars":
            return len(parts) == 1 or (len(parts) == 2 and TAR.fullmatch(parts[1]) is not None)
        if parts[0] == "levels" and len(parts) < 3:
            return path.is_dir() and parts[-1] in ("levels", *map(str, self.resolutions))
        if len(parts) == 3 or parts[0].endswith(".png"):
            return FILE.fullmatch(path.name) is not None and int(path.stem) in known
        return parts == ("captions.jsonl",)


def _png(picture: NDArray[np.uint8]) -> bytes:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, format="png")
    return data.getvalue()


@functools.cache
def _members(path: Path, _changed_ns: int) -> dict[tuple[int, int], Place]:
    """The images of a tar, as long as it stays as it is."""
    try:
        with tarfile.open(path, "r:") as tar:
            named = [(MEMBER.fullmatch(member.name), member) for member in tar]
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"{path} cannot be read ({error}). {AGAIN}") from error
    return {(int(m[1]), int(m[2])): (path, member.offset_data, member.size) for m, member in named if m is not None}
