"""COCO 2014's validation pictures with one caption each: the prompts and reference of FID-30K.

Lin et al., "Microsoft COCO" (ECCV 2014). Every picture has five captions or more; which one is taken depends on the
seed and the picture's number alone.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from preprocessing.items import Item, Place
from preprocessing.manifest import digest
from preprocessing.sources.listing import Problem, first, hashed, read_caption

PICTURES = 40_504
CAPTIONS = "captions_val2014.json"


@dataclass
class Coco:
    """The folder that holds val2014.zip or val2014/, and annotations_trainval2014.zip, annotations/ or the captions'
    JSON itself. All pictures are held out.
    """

    source: Path
    seed: int = 0
    limit: int = 0  # so many pictures; 0: all

    _notes: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def fingerprint(self) -> dict[str, Any]:
        """By the captions, and by the pictures' names, sizes and, of a zip, members and checksums."""
        sizes = sorted((name, size, crc, place.member) for name, (size, crc, place) in self._pictures.items())
        captions = digest([self._about, sorted(self._captions.items())])
        return {"kind": "COCO 2014", "captions": captions, "pictures": digest(sizes), "seed": self.seed,
                "limit": self.limit}  # fmt: skip

    def root(self) -> Path:
        return self.source

    def notes(self) -> list[str]:
        return self._notes

    def items(self) -> Iterator[Item]:
        self._notes.clear()
        about, pictures = self._about, self._pictures
        if missing := [name for _, name in about if name not in pictures]:
            raise ValueError(
                f"{self._where} lacks {first(missing)}, of {len(about):,} that {self._json} names: get it again"
            )
        if len(about) != PICTURES:
            self._notes.append(f"{len(about):,} pictures; COCO 2014's validation split has {PICTURES:,}")
        if unnamed := sorted(set(pictures) - {name for _, name in about}):
            self._notes.append(f"{len(unnamed):,} pictures that {CAPTIONS} does not name, left out: {first(unnamed)}")
        if without := [name for number, name in about if number not in self._captions]:
            self._notes.append(f"{len(without):,} pictures without a caption: {first(without)}")
        # In an order drawn by the seed, so that the first 30,000 are a sample of all.
        drawn = sorted(about, key=lambda picture: hashed(f"{self.seed} order {picture[0]}"))
        return map(self._item, drawn[: self.limit or None])

    def _item(self, picture: tuple[int, str]) -> Item:
        number, name = picture
        key, place, captions = Path(name).stem.replace(".", "_"), self._pictures[name][2], self._captions.get(number)
        if captions is None:
            return Item(key, "", "val", place, meta={"image_id": number}, problem=Problem.NO_CAPTION.at(name))
        caption_id, text = captions[hashed(f"{self.seed} {number}") % len(captions)]
        caption, problem = read_caption(text.strip(), f"{name}, caption {caption_id}")
        return Item(key, caption, "val", place, meta={"image_id": number, "caption_id": caption_id}, problem=problem)

    @cached_property
    def _json(self) -> Place:
        for file in (self.source / "annotations" / CAPTIONS, self.source / CAPTIONS):
            if file.is_file():
                return Place(file)
        if (archive := self.source / "annotations_trainval2014.zip").is_file():
            return Place(archive, member=f"annotations/{CAPTIONS}")
        raise ValueError(f"{self.source}: no annotations/{CAPTIONS}, {CAPTIONS} or annotations_trainval2014.zip")

    @cached_property
    def _read(self) -> tuple[list[tuple[int, str]], dict[int, list[tuple[int, str]]]]:
        captions = defaultdict(list)
        try:
            read = json.loads(self._json.read())
            about = sorted((int(image["id"]), str(image["file_name"])) for image in read["images"])
            for annotation in read["annotations"]:
                captions[int(annotation["image_id"])].append((int(annotation["id"]), str(annotation["caption"])))
        except OSError as error:
            raise ValueError(f"{self._json} cannot be read: {error}") from error
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{self._json} does not hold COCO's captions: {error!r}") from error
        if len({number for number, _ in about}) < len(about):
            raise ValueError(f"{self._json}: field 'images' has a picture's id twice")
        if unknown := sorted(set(captions) - {number for number, _ in about}):
            raise ValueError(
                f"{self._json}: field 'annotations' names the pictures {first(unknown)}, 'images' does not"
            )
        return about, {number: sorted(texts) for number, texts in captions.items()}

    @property
    def _about(self) -> list[tuple[int, str]]:
        """The pictures: number and file, by number."""
        return self._read[0]

    @property
    def _captions(self) -> dict[int, list[tuple[int, str]]]:
        """Picture's number -> its captions: number and text, by number."""
        return self._read[1]

    @cached_property
    def _where(self) -> Path:
        for path in (self.source / "val2014", self.source / "val2014.zip"):
            if path.exists():
                return path
        raise ValueError(f"{self.source}: no val2014.zip and no folder val2014")

    @cached_property
    def _pictures(self) -> dict[str, tuple[int, int, Place]]:
        """File name -> bytes, the zip's checksum, where it is."""
        where = self._where
        if where.is_dir():
            sizes = {path: path.stat().st_size for path in where.iterdir() if path.is_file()}
            return {path.name: (size, 0, Place(path, length=size)) for path, size in sizes.items()}
        try:
            with ZipFile(where) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
        except (OSError, BadZipFile) as error:
            raise ValueError(f"{where} is truncated or damaged: {error}: get it again") from error
        places = {m: Place(where, length=m.file_size, member=m.filename) for m in members}
        return {Path(m.filename).name: (m.file_size, m.CRC, place) for m, place in places.items()}
