import os
import shutil
from pathlib import Path

import pytest
import webdataset

from inputs import png
from preprocessing.items import Item
from preprocessing.sources.folders import Pictures


def fill(folder: Path, count: int = 50, text: bool = True) -> Path:
    """Pictures with captions beside them, some in a subfolder."""
    (folder / "more").mkdir(parents=True)
    for i in range(count):
        stem = folder / ("more" if i % 3 == 0 else "") / f"red_car-{i:02d}"
        stem.with_suffix([".png", ".JPG", ".webp"][i % 3]).write_bytes(png(i))
        if text:
            stem.with_suffix(".txt").write_text(f"car number {i}\n")
    return folder


def listed(source: Pictures) -> dict[str, Item]:
    items = list(source.items())
    assert len({item.key for item in items}) == len(items)
    return {item.key: item for item in items}


def test_pictures_with_captions_beside_them(tmp_path: Path) -> None:
    source = Pictures(fill(tmp_path / "mine"))
    items = listed(source)
    assert list(items) == [f"red_car-{i:02d}" for i in range(50)] and source.notes() == []
    for i, item in enumerate(items.values()):
        assert item.caption == f"car number {i}" and not item.problem
        assert item.place is not None and item.place.read() == png(i)
        assert tmp_path / "mine" / item.meta["file"] == item.place.file
    assert sum(item.split == "val" for item in items.values()) == 8


def test_captions_from_names_are_said(tmp_path: Path) -> None:
    folder = fill(tmp_path, text=False)
    (folder / "0042.png").write_bytes(png())
    (folder / "notes.txt").write_text("no picture's caption")
    source = Pictures(folder)
    items = listed(source)
    assert {item.caption for key, item in items.items() if key != "0042"} == {"red car"}
    assert items["0042"].problem == "caption empty: 0042.png"
    assert source.notes() == ["captions are made from the files' names", "passed over: 1 .txt"]


def test_some_without_txt_are_named_and_not_captioned_otherwise(tmp_path: Path) -> None:
    folder = fill(tmp_path)
    for name in ("red_car-01.txt", "red_car-04.txt"):
        (folder / name).unlink()
    (folder / "red_car-02.txt").write_bytes(b"caf\xe9")
    (folder / "red_car-05.txt").write_text("w" * 100_000)
    source = Pictures(folder)
    problems = {key: item.problem for key, item in listed(source).items() if item.problem}
    assert problems == {
        "red_car-01": "no caption: red_car-01.JPG: no red_car-01.txt beside it",
        "red_car-02": "not UTF-8: red_car-02.txt",
        "red_car-04": "no caption: red_car-04.JPG: no red_car-04.txt beside it",
        "red_car-05": "caption over 10,000 characters: red_car-05.txt",
    }
    assert source.notes() == ["2 pictures without .txt, though others have one: 'red_car-01.JPG', 'red_car-04.JPG'"]


@pytest.mark.parametrize("where", ["found in the folder", "given instead of it", "given beside it"])
def test_a_table_decides_before_anything_beside_the_pictures(tmp_path: Path, where: str) -> None:
    folder = fill(tmp_path / "mine")
    table = (tmp_path if where == "given beside it" else folder) / "captions.csv"
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("red*") if path.suffix != ".txt")
    absolute = [str(folder / files[0]), f"./{files[1]}", *files[2:40]]
    table.write_text("Image,Text\n" + "".join(f'{file}," number {i}"\n' for i, file in enumerate(absolute)))
    source = {
        "found in the folder": Pictures(folder),
        "given instead of it": Pictures(table),
        "given beside it": Pictures(folder, table),
    }[where]
    items = listed(source)
    assert {item.meta["file"]: item.caption for item in items.values()} == {
        file: f"number {i}" for i, file in enumerate(files[:40])
    }
    assert source.notes()[0].startswith("10 pictures that captions.csv does not name, left out: 'red_car-")
    assert source.notes()[1] == "passed over: 50 .txt"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("none.png,x\ngone.png,y", r"line 3 names 'none\.png', which is no file in .* \(and 1 more such lines\)"),
        ("red_car-01.JPG,again", r"line 3 names 'red_car-01\.JPG' again, as line 2 does"),
        (",x", "line 3 names '', which is no file"),
        (f"{'a caption ' * 40},x.png", r"line 3 names 'a caption .*', which is no file"),
        ("caf\udce9,x", "line 3: the file's name is not UTF-8: save the table as UTF-8"),
    ],
)
def test_a_row_that_names_no_picture_of_its_own_is_refused(tmp_path: Path, row: str, told: str) -> None:
    folder = fill(tmp_path)
    (folder / "t.csv").write_bytes(f"file,caption\nred_car-01.JPG,x\n{row}\n".encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=rf"t\.csv, {told}"):
        Pictures(folder).items()


def test_a_caption_of_a_table_that_is_not_utf8_is_the_problem_of_its_picture_alone(tmp_path: Path) -> None:
    folder = fill(tmp_path)
    files = sorted(item.meta["file"] for item in listed(Pictures(folder)).values())
    bad = files.index("red_car-01.JPG")
    rows = [f"{name},".encode() + (b"caf\xe9" if i == bad else b"good") for i, name in enumerate(files)]
    (folder / "t.csv").write_bytes(b"\n".join([b"file,caption", *rows, b""]))
    found = {item.meta["file"]: item.problem for item in Pictures(folder).items()}
    assert found.pop("red_car-01.JPG") == f"not UTF-8: t.csv, line {bad + 2}" and set(found.values()) == {""}


def test_two_tables_are_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path)
    (folder / "a.csv").touch()
    (folder / "b.jsonl").touch()
    with pytest.raises(ValueError, match=r"more than one table of captions \(a\.csv, b\.jsonl\): give the path"):
        Pictures(folder).items()


def test_two_files_that_would_have_one_key_are_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path)
    (folder / "red_car-00.gif").write_bytes(png())
    with pytest.raises(ValueError, match=r"'more/red_car-00\.png' and 'red_car-00\.gif' would both have the key"):
        Pictures(folder).items()
    (folder / "red_car-00.gif").rename(folder / "a_b.gif")
    (folder / "a.b.gif").write_bytes(png())
    with pytest.raises(ValueError, match=r"'a\.b\.gif' and 'a_b\.gif' would both have the key 'a_b'"):
        Pictures(folder).items()


@pytest.mark.parametrize("name", ["a ", " a", "a\nb", "a\u2028b", "a\x1b[2J"])
def test_a_name_that_no_list_of_keys_can_hold_is_refused(tmp_path: Path, name: str) -> None:
    (fill(tmp_path) / f"{name}.png").write_bytes(png())
    with pytest.raises(ValueError, match=r"has a space at an end, or characters that are not text.*: rename '"):
        Pictures(tmp_path).items()


def test_odd_names_come_back_from_a_tar_as_they_are(tmp_path: Path) -> None:
    folder = fill(tmp_path / "mine")
    odd = ["track 2.0", "50% off?", "a#b&c", "été", "雪", "'quoted\" ;$(x)", "at 3.04\u202fPM", "*", "b\\c", "-x", "~"]
    for name in odd:
        (folder / f"{name}.png").write_bytes(png())
        (folder / f"{name}.txt").write_text(f"of {name}")
    keys = {item.caption: key for key, item in listed(Pictures(folder)).items() if item.caption.startswith("of ")}
    assert keys == {f"of {name}": name.replace(".", "_") for name in odd}
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as writer:
        for caption, key in keys.items():
            writer.write({"__key__": key, "txt": caption})
    theirs = webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False)
    read = {sample["txt"].decode(): sample["__key__"] for sample in theirs}
    assert read == keys


def test_other_files_are_counted(tmp_path: Path) -> None:
    folder = fill(tmp_path)
    for name in ("a.heic", "b.HEIC", ".hidden.png", "README", ".thumbs/x.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "link").symlink_to(folder / "more")
    source = Pictures(folder)
    assert len(listed(source)) == 50
    assert source.notes() == [
        "links to folders are not followed: 'link'",
        "2 .heic cannot be read, left out: export them as JPEG or PNG to have them in",
        "passed over: 1 hidden, 1 without extension",
    ]


def test_what_is_held_out(tmp_path: Path) -> None:
    """One in twenty; what is held out of many is held out of fewer, and eight at least."""
    folder = fill(tmp_path, 400, text=False)
    items = listed(Pictures(folder))
    held_out = {key for key, item in items.items() if item.split == "val"}
    assert 10 <= len(held_out) <= 35 and len(items) == 400
    few = listed(Pictures(folder, limit=40))
    assert len(few) == 40 and max(few) > "red_car-380" and sum(item.split == "val" for item in few.values()) == 8
    assert {key for key in few if key in held_out} <= {key for key, item in few.items() if item.split == "val"}
    with pytest.raises(
        ValueError, match=r"has 8 pictures with captions: 8 are held out, so at least 9 .*: add at least 1 more"
    ):
        Pictures(folder, limit=8).items()


def test_too_few_says_what_is_wrong_with_the_others(tmp_path: Path) -> None:
    folder = fill(tmp_path, 9)
    (folder / "red_car-01.txt").write_text("")
    with pytest.raises(ValueError, match=r"has 8 pictures .*; not usable: caption empty: red_car-01\.txt"):
        Pictures(folder).items()


def test_a_folder_without_pictures_or_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.heic").touch()
    with pytest.raises(
        ValueError, match=r"no pictures: looked for \*\.png, .* and for a table.*; 1 \.heic cannot be read"
    ):
        Pictures(tmp_path).items()
    with pytest.raises(ValueError, match="none cannot be read: No such file"):
        Pictures(tmp_path / "none").items()


def test_a_link_to_a_picture_that_is_gone_is_named(tmp_path: Path) -> None:
    folder = fill(tmp_path)
    (folder / "x.png").symlink_to(folder / "gone.png")
    with pytest.raises(ValueError, match=r"x\.png is no file, but a pipe, or a link"):
        Pictures(folder).items()


def test_a_caption_that_is_a_pipe_is_named_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo((folder := fill(tmp_path, text=False)) / "pipe.txt")
    shutil.copy(next(folder.rglob("*.png")), folder / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.txt is no file, but a pipe"):
        Pictures(folder).items()


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, scandir = fill(tmp_path), os.scandir

    def denied(path: str) -> object:
        if str(path).endswith("more"):  # by hand: root may read everything
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(ValueError, match=r"more cannot be read: Permission denied"):
        Pictures(folder).items()


def test_a_set_is_known_by_its_files(tmp_path: Path) -> None:
    folder = fill(tmp_path / "a")
    before = Pictures(folder).fingerprint()
    folder = folder.rename(tmp_path / "b")
    assert Pictures(folder).fingerprint() == before != Pictures(folder, limit=40).fingerprint()
    (folder / "red_car-01.txt").write_text("another")
    changed = Pictures(folder).fingerprint()
    (folder / "red_car-01.JPG").write_bytes(png(99))
    assert len({str(f) for f in (before, changed, Pictures(folder).fingerprint())}) == 3


def test_all_pairs_of_one_key_are_counted(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.c.png", "b_c.png", "d.gif", "d.bmp", "e.png"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"'a.jpg' and 'a.png' would both have the key 'a' \(and 2 more such pairs\)"):
        Pictures(tmp_path).items()


def test_a_table_that_is_not_utf8_or_names_other_kinds_of_pictures_says_what_to_do(tmp_path: Path) -> None:
    folder = fill(tmp_path, 12, text=False)
    (folder / "IMG_1.HEIC").touch()
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("red_car-*"))
    rows = [f"{name},caf\xe9" if place == 3 else f"{name},tea" for place, name in enumerate(names)]
    (folder / "t.csv").write_bytes("\n".join(["file,caption", *rows, "IMG_1.HEIC,a telephone's"]).encode("latin-1"))
    source = Pictures(folder)
    problems = [item.problem for item in source.items() if item.problem]
    odd = "kind of picture that cannot be read: IMG_1.HEIC: export it as JPEG or PNG"
    assert sorted(problems) == [odd, "not UTF-8: t.csv, line 5"]
    assert (
        "1 captions that are not UTF-8, left out (t.csv, line 5): save the table as UTF-8 to have them in"
        in source.notes()
    )
