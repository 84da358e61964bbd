"""Lists of items: what a shard costs does not grow with the set."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pyarrow.parquet as pq
import pytest

from drawn import PIXELS, recipe
from inputs import write_tar
from made import make_pictures
from preprocessing.items import Item, Source
from preprocessing.manifest import file_sha256, make_folder
from preprocessing.pack.lists import PLAN, read_items, write_lists
from preprocessing.pack.shards import Shard, pack_shard
from preprocessing.sources.coco import CAPTIONS, Coco
from preprocessing.sources.folders import Pictures
from preprocessing.sources.foreign import ForeignTars
from preprocessing.sources.imagenet import ImageNet
from preprocessing.sources.videos import Videos, WebVid


@dataclass
class Numbers:
    captions: str

    def fingerprint(self) -> dict[str, Any]:
        return {}

    def items(self) -> Iterator[Item]:
        yield from (Item(f"{i}", f"{self.captions} {i}", url="https://example.org") for i in range(6))

    def root(self) -> Path:
        return Path()

    def notes(self) -> list[str]:
        return []


def test_a_list_is_opened_once_for_all_its_shards_and_again_when_it_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    plain = pq.ParquetFile

    def counting(path: Path) -> pq.ParquetFile:
        opened.append(path)
        return plain(path)

    monkeypatch.setattr(pq, "ParquetFile", counting)
    for captions in ("first", "second"):
        (tmp_path / PLAN).unlink(missing_ok=True)
        write_lists(Numbers(captions), tmp_path, per_shard=2, least_val=0)
        found = [item.caption for number in range(3) for item in read_items(tmp_path, Path(), "train", number)]
        assert found == [f"{captions} {i}" for i in range(6)]
    assert len(opened) == 2


NINE = {f"b{i}": f"a b {i}" for i in range(9)}


def test_a_picture_exchanged_after_it_was_listed_is_named_and_not_packed(tmp_path: Path) -> None:
    source = Pictures(pictures := make_pictures(tmp_path / "pictures", NINE))
    shard = Shard(tmp_path, recipe(source), "train", 0)
    make_folder(tmp_path / "train")
    write_lists(source, tmp_path, per_shard=9, least_val=0)
    (item,) = read_items(tmp_path, pictures, "train", 0)
    assert item.place is not None
    data = item.place.file.read_bytes()
    item.place.file.write_bytes(data[:-1] + b"?")  # as long
    with pytest.raises(ValueError, match=rf"{item.place} cannot be read any more \(other bytes than were listed"):
        pack_shard(shard, tmp_path, pictures, PIXELS)
    assert shard.entries() is None and list((tmp_path / "train").iterdir()) == []
    item.place.file.write_bytes(data)
    pack_shard(shard, tmp_path, pictures, PIXELS)
    assert shard.entries() is not None


def test_what_has_another_length_than_was_listed_is_not_read(tmp_path: Path) -> None:
    data = b"a file of a source is looked into when it is packed"
    captions = {
        "images": [{"id": 1, "file_name": "b.png"}],
        "annotations": [{"id": 1, "image_id": 1, "caption": "a b"}],
    }
    for name in ("imagenet/n01", "coco/val2014", "zip", "videos", "webvid"):
        make_folder(tmp_path / name)
    for name in ("coco/val2014/b.png", "videos/1.mp4", "webvid/1.mp4", *(f"imagenet/n01/{key}.png" for key in NINE)):
        (tmp_path / name).write_bytes(data)
    for name in ("coco", "zip"):
        (tmp_path / name / CAPTIONS).write_text(json.dumps(captions))
    (tmp_path / "videos.csv").write_text("file,caption\n1,one\n")
    (tmp_path / "webvid.csv").write_text("videoid,page_dir,name\n1,p,one\n")
    write_tar(tmp_path / "0.tar", [(f"{key}.{kind}", data) for key in NINE for kind in ("png", "txt")])

    def zip_of(more: bytes) -> None:
        with ZipFile(tmp_path / "zip" / "val2014.zip", "w") as archive:
            archive.writestr("b.png", data + more)

    zip_of(b"")
    sources: list[Source] = [
        ImageNet(tmp_path / "imagenet"),
        Coco(tmp_path / "coco"),
        Coco(tmp_path / "zip"),
        Videos(tmp_path / "videos", tmp_path / "videos.csv"),
        WebVid(tmp_path / "webvid", tmp_path / "webvid.csv"),
        ForeignTars(tmp_path / "0.tar"),
    ]
    places = [item.place for source in sources for item in source.items() if item.place is not None]
    assert {place.read() for place in places} == {data} and len(places) >= len(sources)
    zip_of(b"!")
    for place in places:
        if place.file.suffix == ".tar":
            place.file.write_bytes(place.file.read_bytes()[: place.offset + 9])
        elif place.file.suffix != ".zip":
            place.file.write_bytes(data + b"!")
    for place in places:
        with pytest.raises(OSError, match="bytes, it was listed with 51"):
            place.read()


def test_what_has_one_fingerprint_has_one_list_in_whatever_layout(tmp_path: Path) -> None:
    """The same pictures elsewhere below the source's root are another recipe: half a set made from tars cannot be
    finished from folders, nor by another machine that has these.
    """
    synset, data, about = "n01440764", b"a picture", {"images": [{"id": 1, "file_name": "b.png"}]}
    about["annotations"] = [{"id": 1, "image_id": 1, "caption": "a b"}]
    names = [f"{synset}_{key}.JPEG" for key in NINE]
    for folder in ("plain", "sub/train", "other"):
        make_folder(tmp_path / folder / synset)
        for name in names:
            (tmp_path / folder / synset / name).write_bytes(data)
    for folder in ("tar", "tar-2"):
        make_folder(tmp_path / folder)
        part = write_tar(tmp_path / "part.tar", [(name, data) for name in names])
        write_tar(tmp_path / folder / "ILSVRC2012_img_train.tar", [(f"{synset}.tar", part.read_bytes())])
    for folder in ("own", "own/below"):
        make_pictures(tmp_path / folder, dict.fromkeys(NINE, "red"))
    (tmp_path / "own" / "below").rename(tmp_path / "below")
    make_folder(tmp_path / "own-2")
    (tmp_path / "below").rename(tmp_path / "own-2" / "below")
    for folder, member in (("zip", "val2014/b.png"), ("zip-2", "b.png"), ("zip-3", "b.png")):
        make_folder(tmp_path / folder)
        (tmp_path / folder / CAPTIONS).write_text(json.dumps(about))
        with ZipFile(tmp_path / folder / "val2014.zip", "w") as archive:
            archive.writestr(member, data)
    tar = tmp_path / "tar" / "ILSVRC2012_img_train.tar"
    roots = (tmp_path / "plain", tmp_path / "other", tmp_path / "sub", tmp_path / "sub/train", tmp_path / "tar-2", tar)
    sources: list[Source] = [ImageNet(root) for root in roots]
    sources += [Pictures(tmp_path / name) for name in ("own", "own-2")]
    sources += [Coco(tmp_path / name) for name in ("zip", "zip-2", "zip-3")]
    lists: dict[str, set[tuple[str, ...]]] = {}
    for number, source in enumerate(sources):
        make_folder(tmp_path / "lists" / str(number))
        write_lists(source, tmp_path / "lists" / str(number), 100, 0)
        listed = tuple(file_sha256(path) for path in sorted((tmp_path / "lists" / str(number)).glob("*.parquet")))
        lists.setdefault(json.dumps(source.fingerprint()), set()).add(listed)
    assert [len(of_one) for of_one in lists.values()] == [1] * 7
