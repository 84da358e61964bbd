"""Which source a path is taken for."""

import os
from pathlib import Path

import pytest

from inputs import png, write_tar
from preprocessing.catalogue import Options, find, tars_in
from preprocessing.sources.cc12m import Cc12m, Cc12mMirror
from preprocessing.sources.folders import Pictures
from preprocessing.sources.openmoji import OpenMoji


def test_a_list_in_its_place_is_found_and_a_mirror_is_told_from_it(tmp_path: Path) -> None:
    row, folder = find("cc12m"), tmp_path / "cc12m"
    folder.mkdir()
    with pytest.raises(ValueError, match="there are 0 lists"):
        row.open(folder, Options())
    (folder / "cc12m.tsv").write_text("http://127.0.0.1:1/a.jpg\ta\n")
    source = row.open(folder, Options())
    assert isinstance(source, Cc12m) and [item.caption for item in source.items()] == ["a"]
    (tmp_path / "mirror" / "a").mkdir(parents=True)
    write_tar(tmp_path / "mirror" / "a" / "0.tar", [("k.png", png(1)), ("k.txt", b"one")])
    assert isinstance(row.open(tmp_path / "mirror", Options()), Cc12mMirror)
    assert isinstance(row.open(tmp_path / "mirror" / "*" / "*.tar", Options()), Cc12mMirror)


def test_a_tar_below_a_folder_of_pictures_hides_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for number in range(9):
        (tmp_path / f"p{number}.png").write_bytes(png(number))
    assert isinstance(find("mine").open(tmp_path, Options()), Pictures)
    write_tar(tmp_path / "old" / "backup.tar", [("k.png", png(1)), ("k.txt", b"one")])
    with pytest.raises(ValueError, match=r"holds tars \(backup.tar\) and loose pictures \(p\d.png\)"):
        tars_in(tmp_path)


@pytest.mark.parametrize("name", ["a.tar", "a.mp4", "a.png"])
def test_a_folder_that_cannot_be_read_leaves_nothing_out_unsaid(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path, tmp_path / "sub"):
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
    scandir = os.scandir

    def denied(path: object) -> object:
        if str(path).endswith("sub"):  # by hand: root may read everything
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(ValueError, match="sub cannot be read: Permission denied"):
        find("mine", tmp_path).open(tmp_path, Options())


def test_what_macos_hides_beside_every_file_is_no_tar_and_no_video(tmp_path: Path) -> None:
    members = [(f"s{i}.{kind}", data) for i in range(9) for kind, data in (("png", png(i)), ("txt", b"a caption"))]
    (tmp_path / "tars").mkdir()
    tar = write_tar(tmp_path / "tars" / "a.tar", members)
    (tmp_path / "tars" / "._a.tar").write_bytes(b"\0\5\x16\7")
    assert len(list(find("mine", tar.parent).open(tar.parent, Options()).items())) == 9
    (tmp_path / "videos").mkdir()
    for name in ("v.mp4", "._v.mp4"):
        (tmp_path / "videos" / name).write_bytes(b"x")
    (tmp_path / "videos" / "t.csv").write_text("file,caption\nv.mp4,a clip\n")
    source = find("clips", tmp_path / "videos").open(tmp_path / "videos", Options())
    assert [item.key for item in source.items()] == ["v"] and not source.notes()


def test_a_list_that_is_a_pipe_is_refused_since_it_is_read_twice(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cc12m.tsv")
    with pytest.raises(ValueError, match=r"cc12m\.tsv is no file, but a pipe"):
        find("cc12m").open(tmp_path / "cc12m.tsv", Options())


@pytest.mark.parametrize("name", ["cc12m", "coco2014-val", "imagenet"])
def test_a_share_that_a_set_does_not_take_is_refused_not_forgotten(name: str) -> None:
    source = OpenMoji(limit=13)  # any: what it lists does not matter
    assert find(name).recipe(source, Options()).name == name
    with pytest.raises(ValueError, match=f"{name} holds out .*: leave out --held-out"):
        find(name).recipe(source, Options(held_out=0.1))
