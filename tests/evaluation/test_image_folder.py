"""A folder of drawn images: in tars or loose, read alike; what is wrong with one is named."""

import io
import shutil
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from torch import Tensor

from evaluation.images.image_folder import ImageFolder
from mdm.data.ranges import to_uint8


def levels(count: int, seed: int = 0) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.rand(count, 3, px, px, generator=random) * 2 - 1 for px in (4, 8)]


def test_tars_and_files_hold_the_same(tmp_path: Path) -> None:
    xs = levels(3)
    for name, loose in (("tars", False), ("loose", True)):
        ImageFolder(tmp_path / name).save(xs, [4, 5, 6], {4, 6}, loose)
        images = ImageFolder(tmp_path / name)  # as another process sees it
        assert images.resolutions == [4, 8] and images.count == 2 and not images.strays({4, 6})
        assert images.has(4, [4, 8]) and not images.has(5, [4]) and not images.has(4, [16])
        for x in xs:
            np.testing.assert_array_equal(images.load([6, 4], x.shape[-1]), to_uint8(x[[2, 0]]).numpy())
    assert [path.name for path in (tmp_path / "tars" / "tars").iterdir()] == ["00004.tar"]
    assert (tmp_path / "loose" / "00004.png").read_bytes() == ImageFolder(tmp_path / "tars").read(4, 8)


def test_what_is_missing_joins_what_is_there_and_what_is_forgotten_goes(tmp_path: Path) -> None:
    images = ImageFolder(tmp_path)
    images.save(levels(4), range(4), {0, 1, 3})
    images.save(levels(4), range(4), {2})
    images.save(levels(2, seed=1), [4, 5], {4, 5})
    whole = (tmp_path / "tars" / "00000.tar").read_bytes()
    ImageFolder(tmp_path / "once").save(levels(4), range(4), range(4))
    assert (tmp_path / "once" / "tars" / "00000.tar").read_bytes() == whole  # in one go or two: the same bytes
    images.forget({1, 4, 5})
    assert ImageFolder(tmp_path).places == images.places and {index for index, _ in images.places} == {0, 2, 3}
    assert not (tmp_path / "tars" / "00004.tar").exists()
    images.save(levels(4), range(4), {1})
    assert (tmp_path / "tars" / "00000.tar").read_bytes() == whole


def test_webdataset_reads_the_tars(tmp_path: Path) -> None:
    xs = levels(2)
    ImageFolder(tmp_path).save(xs, [0, 1], [0, 1])
    tar = str(tmp_path / "tars" / "00000.tar")
    found = list(webdataset.WebDataset(tar, shardshuffle=False, empty_check=False).decode("rgb8"))
    assert [sample["__key__"] for sample in found] == ["00000", "00001"]
    np.testing.assert_array_equal(found[1]["8.png"], to_uint8(xs[1])[1].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("loose", [True, False])
def test_a_wrong_image_is_named(tmp_path: Path, loose: bool) -> None:
    ImageFolder(tmp_path).save(levels(2), [0, 1], [0, 1], loose)
    named = r"levels/8/00001\.png" if loose else r"tars/00000\.tar: 00001\.8\.png"
    with pytest.raises(ValueError, match=r"00007\.png is missing\. The command that drew the others"):
        ImageFolder(tmp_path).load([7], 8)

    def damaged(data: bytes) -> ImageFolder:
        if loose:
            (tmp_path / "levels" / "8" / "00001.png").write_bytes(data)
            return ImageFolder(tmp_path)
        folder = tmp_path / str(zlib.crc32(data))
        shutil.copytree(tmp_path / "tars", folder / "tars")
        images = ImageFolder(folder)
        path, offset, _ = images.places[1, 8]
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)
        images.places[1, 8] = path, offset, len(data)
        return images

    good = ImageFolder(tmp_path).read(1, 8)
    small = tmp_path / "small.png"
    Image.new("RGB", (4, 8)).save(small)
    for data, says in (
        (good[:-5], "it is cut off"),
        (b"no picture", "it is no PNG that can be read"),
        (good[:8] + chunk(b"IHDR", struct.pack(">II", 60_000, 60_000) + good[24:29]) + good[33:], r".*Decompression"),
        (
            good[:33] + chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**21))) + good[33:],
            "it is no PNG that can be read",
        ),
        (small.read_bytes(), "4x8 px, not 8x8"),
        (good[:45] + b"?" + good[46:], "it cannot be decoded"),
    ):
        with pytest.raises(ValueError, match=rf"{named}: {says}.* Delete it: the command"):
            damaged(data).load([0, 1], 8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(picture: Image.Image, **options: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, format="png", **options)
    return data.getvalue()


def test_a_picture_that_is_not_as_ours_is_refused(tmp_path: Path) -> None:
    images, rgb = ImageFolder(tmp_path), Image.new("RGB", (8, 8), (10, 20, 30))
    images.save(levels(1), [0], [0], loose=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    for data in (
        *(png(rgb.convert(mode)) for mode in ("L", "P", "1", "RGBA", "I;16")),
        png(rgb, transparency=(10, 20, 30)),
        png(rgb, exif=turned),
        png(rgb, save_all=True, append_images=[Image.new("RGB", (8, 8))]),
    ):
        (tmp_path / "levels" / "8" / "00000.png").write_bytes(data)
        with pytest.raises(
            ValueError, match=r"levels/8/00000\.png: not plain RGB of 8 bits, as what was drawn is\. Delete"
        ):
            ImageFolder(tmp_path).load([0], 8)


def test_what_lies_among_loose_images_is_named_wherever_it_lies(tmp_path: Path) -> None:
    images = ImageFolder(tmp_path)
    images.save(levels(2), [0, 1], [0, 1], loose=True)
    (tmp_path / "captions.jsonl").write_text("")
    for hidden in (".DS_Store", "levels/.DS_Store", "levels/8/.DS_Store", "levels/8/00001.png.tmp"):
        (tmp_path / hidden).write_bytes(b"")
    assert not images.strays({0, 1})
    for stray in ("notes.txt", "99999.png", "levels/8/99999.png", "levels/512/", "levels/abc", "levels/8/holiday.jpg"):
        path = tmp_path / stray
        path.mkdir() if stray.endswith("/") else path.write_bytes(b"")
        assert ImageFolder(tmp_path).strays({0, 1}) == [str(path)], stray
        path.rmdir() if path.is_dir() else path.unlink()


def test_a_tar_that_is_none_and_what_lies_about_are_named(tmp_path: Path) -> None:
    images = ImageFolder(tmp_path)
    images.save(levels(2), [0, 1], [0, 1])
    shutil.copy(tmp_path / "tars" / "00000.tar", tmp_path / "tars" / "copy.tar")  # whose images would win?
    assert ImageFolder(tmp_path).places == images.places
    assert images.strays({0, 1}) == [str(tmp_path / "tars" / "copy.tar")]
    (tmp_path / "tars" / "copy.tar").unlink()
    with tarfile.open(tmp_path / "tars" / "00002.tar", "w") as tar:
        tar.add(tmp_path / "tars" / "00000.tar", "notes.txt")
    assert ImageFolder(tmp_path).places == images.places
    assert [Path(s).name for s in images.strays({0})] == ["00000.tar: 00001.4.png", "00000.tar: 00001.8.png"]
    others = ImageFolder(tmp_path.with_name(f"{tmp_path.name}-other"))
    others.save(levels(2, seed=1), [0, 1], [0, 1])
    copy = shutil.copy(others.folder / "tars" / "00000.tar", tmp_path / "tars" / "zz-copy.tar")
    assert ImageFolder(tmp_path).places == images.places and images.strays({0, 1}) == [str(copy)]
    Path(copy).rename(tmp_path / "tars" / "00001.tar")  # under a name that a batch may have
    with pytest.raises(ValueError, match=r"00000\.tar and .*00001\.tar both hold image 0: delete the one"):
        ImageFolder(tmp_path)
    (tmp_path / "tars" / "00001.tar").unlink()
    (tmp_path / "tars" / "holiday.jpg").write_bytes(b"")
    assert images.strays({0, 1}) == [str(tmp_path / "tars" / "holiday.jpg")]
    (tmp_path / "tars" / "00003.tar").write_bytes(b"?" * 1000)
    with pytest.raises(ValueError, match=r"00003\.tar cannot be read .* Delete it"):
        ImageFolder(tmp_path)
