"""Which source a path is taken for."""

from pathlib import Path

import pytest

from inputs import png, write_tar
from preprocessing.catalogue import Options, find, tars_in
from preprocessing.sources.cc12m import Cc12m, Cc12mMirror
from preprocessing.sources.folders import Pictures


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
