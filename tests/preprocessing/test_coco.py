import json
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from inputs import png
from preprocessing import items as items_module
from preprocessing.items import Item
from preprocessing.sources.coco import Coco

NUMBERS = [73, 42, 400, 133]  # the first two stand in another order than sorted


def name(number: int) -> str:
    return f"COCO_val2014_{number:012d}.jpg"


def captions(**changes: Any) -> bytes:
    about = {
        "images": [{"id": n, "file_name": name(n), "width": 16} for n in NUMBERS],
        "annotations": [
            {"image_id": n, "id": 1000 * k + n, "caption": f" caption {k} of {n}.\n"}
            for k in (4, 1, 3, 0, 2)
            for n in NUMBERS
        ],
    }
    return json.dumps({**about, **changes}).encode()


def write(folder: Path, zipped: bool = True, about: bytes | None = None, numbers: list[int] = NUMBERS) -> Path:
    about = captions() if about is None else about
    if zipped:
        with ZipFile(folder / "val2014.zip", "w") as archive:
            archive.writestr("val2014/", b"")
            for number in numbers:
                archive.writestr(f"val2014/{name(number)}", png(number % 256))
        with ZipFile(folder / "annotations_trainval2014.zip", "w") as archive:
            archive.writestr("annotations/captions_val2014.json", about)
        return folder
    for part in ("val2014", "annotations"):
        (folder / part).mkdir()
    for number in numbers:
        (folder / "val2014" / name(number)).write_bytes(png(number % 256))
    (folder / "annotations" / "captions_val2014.json").write_bytes(about)
    return folder


def by_number(source: Coco) -> list[Item]:
    """The items in the order of their pictures' numbers; the source's own order is drawn by its seed."""
    items = list(source.items())
    assert len({item.key for item in items}) == len(items)
    return sorted(items, key=lambda item: item.meta["image_id"])


def test_the_first_of_them_are_drawn_by_the_seed(tmp_path: Path) -> None:
    write(tmp_path)
    orders = {tuple(item.key for item in Coco(tmp_path, seed).items()) for seed in range(8)}
    assert len(orders) > 3
    few = Coco(tmp_path, limit=2)
    assert [item.key for item in few.items()] == [item.key for item in Coco(tmp_path).items()][:2]


def texts(items: list[Item]) -> list[str]:
    return [item.caption for item in items]


@pytest.mark.parametrize("zipped", [True, False])
def test_one_caption_per_image_all_held_out(tmp_path: Path, zipped: bool) -> None:
    source = Coco(write(tmp_path, zipped))
    items = by_number(source)
    assert [item.meta["image_id"] for item in items] == sorted(NUMBERS)
    for item in items:
        number, caption = item.meta["image_id"], item.meta["caption_id"]
        assert item.split == "val" and item.key == name(number).removesuffix(".jpg")
        assert item.caption == f"caption {caption // 1000} of {number}." and caption % 1000 == number
        assert item.place is not None and item.place.read() == png(number % 256)
    assert source.notes() == ["4 pictures; COCO 2014's validation split has 40,504"]


def test_the_caption_depends_on_the_seed_and_the_image_alone(tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    write(tmp_path)
    about = json.loads(captions())
    kept = {
        "images": about["images"][:2],
        "annotations": [a for a in reversed(about["annotations"]) if a["image_id"] < 100],
    }
    few = Coco(write(tmp_path / "few", about=json.dumps(kept).encode()))
    assert texts(by_number(few)) == texts(by_number(Coco(tmp_path)))[:2]
    choices = {tuple(texts(by_number(Coco(tmp_path, seed)))) for seed in range(5)}
    assert len(choices) > 1
    assert len({str(Coco(tmp_path, seed).fingerprint()) for seed in (0, 0, 1)}) == 2


def test_a_zip_that_lacks_a_picture_is_refused_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"val2014\.zip lacks 'COCO_val2014_000000000133\.jpg', of 4 that .*: get it"):
        Coco(write(tmp_path, numbers=[73, 42, 400])).items()


def test_pictures_without_captions_or_that_nobody_names_are_said(tmp_path: Path) -> None:
    about = json.loads(captions())
    kept = [annotation for annotation in about["annotations"] if annotation["image_id"] != 42]
    kept = [{**a, "caption": " "} if a["image_id"] == 73 else a for a in kept]
    source = Coco(write(tmp_path, about=captions(annotations=kept), numbers=[*NUMBERS, 7]))
    items = by_number(source)
    assert items[0].problem == f"no caption: {name(42)}" and items[1].problem.startswith(f"caption empty: {name(73)}")
    assert source.notes()[1:] == [
        f"1 pictures that captions_val2014.json does not name, left out: '{name(7)}'",
        f"1 pictures without a caption: '{name(42)}'",
    ]


@pytest.mark.parametrize(
    ("about", "told"),
    [
        (b"{", "does not hold COCO's captions"),
        (b"[" * 200_000, "does not hold COCO's captions"),
        (captions(images=3), "does not hold COCO's captions"),
        (captions(annotations=[{"id": 1}]), "does not hold COCO's captions: KeyError"),
        (captions(annotations=[{"id": 1, "image_id": 5, "caption": "x"}]), "'annotations' names the pictures 5"),
        (captions(images=[{"id": 1, "file_name": "a"}] * 2), "has a picture's id twice"),
    ],
)
def test_captions_that_are_none_are_refused_by_name(tmp_path: Path, about: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=rf"captions_val2014\.json.*{told}"):
        Coco(write(tmp_path, about=about)).items()


def test_what_is_not_there_or_cut_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no annotations/captions_val2014\.json, "):
        Coco(tmp_path).items()
    write(tmp_path)
    zipped = (tmp_path / "val2014.zip").read_bytes()
    (tmp_path / "val2014.zip").write_bytes(zipped[: len(zipped) // 2])
    with pytest.raises(ValueError, match=r"val2014\.zip is truncated or damaged"):
        Coco(tmp_path).fingerprint()
    (tmp_path / "val2014.zip").unlink()
    with pytest.raises(ValueError, match=r"no val2014\.zip and no folder val2014"):
        Coco(tmp_path).items()


def test_a_zip_is_opened_once_however_many_members_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [item.place for item in by_number(Coco(write(tmp_path)))]
    opened = []

    def opening(file: Path) -> ZipFile:
        opened.append(file)
        return ZipFile(file)

    monkeypatch.setattr(items_module, "ZipFile", opening)
    assert [place.read() for place in places if place] == [png(n % 256) for n in sorted(NUMBERS)]
    assert opened == [tmp_path / "val2014.zip"]
