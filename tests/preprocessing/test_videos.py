import os
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from preprocessing.items import Place, Source
from preprocessing.sources.videos import Videos, WebVid


def folder_of(root: Path, *names: str) -> Path:
    folder = root / "videos"
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())  # a source lists files: it looks into none
    return folder


def table_of(root: Path, *rows: str | bytes, header: str = "file,caption") -> Path:
    path = root / "captions.csv"
    path.write_bytes(b"".join((row if isinstance(row, bytes) else row.encode()) + b"\n" for row in (header, *rows)))
    return path


def problem_of(source: Source) -> str:
    with pytest.raises(ValueError) as caught:
        list(source.items())
    return str(caught.value)


def test_videos_come_in_the_order_of_the_table_by_name_or_stem(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.mp4", "b.MOV", "sub/c.webm", "sub/d.mkv", "notes.txt")
    table = table_of(tmp_path, "d,dee", 'sub/c.webm,"see, here"', "b.MOV,bee", "a,ay")
    items = list(Videos(folder, table).items())
    assert [(item.key, item.caption) for item in items] == [("d", "dee"), ("c", "see, here"), ("b", "bee"), ("a", "ay")]
    assert items[1].place == Place(folder / "sub" / "c.webm", length=10) and not any(item.problem for item in items)


def test_a_video_without_a_caption_is_named_and_counted(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.mp4", *(f"x{i}.mp4" for i in range(7)))
    source = Videos(folder, table_of(tmp_path, "a,one"))
    assert len(list(source.items())) == 1
    assert len(list(source.items())) == 1  # listed again, nothing is counted twice
    (note,) = source.notes()
    assert note.startswith("7 videos without a caption, left out: 'x0.mp4', ") and note.endswith(" and 4 more")


def test_a_table_that_names_missing_files_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.mp4")
    said = problem_of(Videos(folder, table_of(tmp_path, "a,one", "gone.mp4,two", "b,three", "c,four")))
    assert "line 3: 'gone.mp4' is not in" in said and "and 2 more" in said and str(folder) in said


@pytest.mark.parametrize(
    ("names", "rows", "said"),
    [
        (("a.b.mp4",), ("a.b.mp4,x",), "line 2: the key 'a.b' cannot be stored"),
        (("a.mp4", "s/a.mp4"), ("a.mp4,x", "s/a.mp4,y"), "write its path"),
        (("a.mp4", "a.webm"), ("a.mp4,x", "a.webm,y"), "line 3: the key 'a' is that of line 2, too"),
        (("a.mp4",), ("a,x", "a.mp4,y"), "line 3: the key 'a' is that of line 2, too"),
        (("a.mp4", "a.webm"), ("a,x",), "line 2: 'a' may be"),
        (("a\n.mp4",), ('"a\n.mp4",x',), "not text"),
        (("a.mp4",), ("a,x,y",), "line 2 has 3 columns"),
        (("a.mp4",), (), "has no rows"),
        ((), ("a,x",), "is no folder"),
        (("a.txt",), ("a,x",), "holds no videos"),
    ],
)
def test_what_a_folder_and_its_table_cannot_be(
    tmp_path: Path, names: tuple[str, ...], rows: tuple[str, ...], said: str
) -> None:
    assert said in problem_of(Videos(folder_of(tmp_path, *names), table_of(tmp_path, *rows)))


def test_a_table_without_its_columns_is_refused_by_name(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.mp4")
    said = problem_of(Videos(folder, table_of(tmp_path, "a,x", header="clip,text")))
    assert "captions.csv has the columns 'clip', 'text', but none of file, " in said
    assert "cannot be read" in problem_of(Videos(folder, tmp_path / "none.csv"))
    with pytest.raises(ValueError, match="cannot be read"):
        Videos(folder, tmp_path / "none.csv").fingerprint()


def test_captions_that_cannot_be_used_are_problems_of_their_items(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, *(f"{name}.mp4" for name in "abcde"))
    table = table_of(tmp_path, "a,", "b,  ", b"c,caf\xe9", f"d,{'x' * 10_001}", f"e,café {'x' * 9_000}")
    problems = [item.problem for item in Videos(folder, table).items()]
    assert problems == [
        "caption empty: line 2",
        "caption empty: line 3",
        "not UTF-8: line 4",
        "caption over 10,000 characters: line 5",
        "",
    ]


def test_every_kind_of_table_will_do(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.mp4", "b.mp4")
    tables = [tmp_path / f"t.{kind}" for kind in ("csv", "tsv", "jsonl", "parquet")]
    tables[0].write_text("video,caption\n./a.mp4,one\nb,two\n")
    tables[1].write_text("File\ttext\na\tone\nb\ttwo\n")
    tables[2].write_text('{"path": "a", "caption": "one"}\n{"path": "b.mp4", "caption": "two"}\n')
    parquet.write_table(pyarrow.table({"file": ["a", "b"], "text": ["one", "two"]}), tables[3])
    for table in tables:
        items = list(Videos(folder, table).items())
        assert [(item.key, item.caption) for item in items] == [("a", "one"), ("b", "two")], table


def test_a_limit_is_one(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, *(f"{i}.mp4" for i in range(9)))
    videos = [Videos(folder, table_of(tmp_path, *(f"{i},x" for i in range(9))), limit=limit) for limit in (0, 3)]
    assert [[item.key for item in source.items()] for source in videos] == [list("012345678"), list("036")]
    assert videos[0].fingerprint() != videos[1].fingerprint()
    table = table_of(tmp_path, *(f"{i},u,d,p,x" for i in (0, 0, 1, 2)), header=WEBVID)
    assert [item.key for item in WebVid(folder, table, limit=2).items()] == ["0", "1"]


def test_the_split_is_that_of_the_key_alone(tmp_path: Path) -> None:
    names = [f"{i:04d}" for i in range(400)]
    folder = folder_of(tmp_path, *(f"{name}.mp4" for name in names))
    of = {
        item.key: item.split
        for item in Videos(folder, table_of(tmp_path, *(f"{n},x" for n in names)), held_out=0.1).items()
    }
    assert 20 < list(of.values()).count("val") < 60
    some = Videos(folder, table_of(tmp_path, *(f"{n},y" for n in reversed(names[:100]))), held_out=0.1)
    assert all(of[item.key] == item.split for item in some.items())
    assert {item.split for item in Videos(folder, some.table, held_out=0).items()} == {"train"}


def test_a_fingerprint_tells_of_settings_table_and_files(tmp_path: Path) -> None:
    folder, table = folder_of(tmp_path, "a.mp4", "b.mp4"), table_of(tmp_path, "a,x")
    prints = [Videos(folder, table).fingerprint(), Videos(folder, table, held_out=0.2).fingerprint()]
    assert prints[0] == Videos(folder, table).fingerprint()
    (folder / "b.mp4").write_bytes(b"longer than before")
    prints.append(Videos(folder, table).fingerprint())
    table_of(tmp_path, "a,another")
    prints.append(Videos(folder, table).fingerprint())
    (folder / "b.mp4").rename(folder / "c.mp4")
    prints.append(Videos(folder, table).fingerprint())
    assert len({str(p) for p in prints}) == len(prints)


WEBVID = "videoid,contentUrl,duration,page_dir,name"


def test_webvid_lists_its_csv(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "000_050/21179416.mp4", "1.mp4", "000_050/3.mp4", "other/9.mp4")
    rows = (
        '21179416,https://a/b.mp4,PT00H00M11S,000_050,"Aerial shot, winter forest"',
        "1,https://a/1.mp4,PT00H00M30S,050_100,A flat folder",
        "2,https://a/2.mp4,PT00H00M30S,050_100,Not downloaded",
        "1,https://a/1.mp4,PT00H00M30S,000_050,The same video again",
        "3,https://a/3.mp4,PT00H00M30S,000_050,",
        "2,https://a/2.mp4,PT00H00M30S,000_050,Again",
    )
    source = WebVid(folder, table_of(tmp_path, *rows, header=WEBVID))
    items = list(source.items())
    assert [(item.key, item.caption, item.problem) for item in items] == [
        ("21179416", "Aerial shot, winter forest", ""),
        ("1", "A flat folder", ""),
        ("2", "Not downloaded", "no such video"),
        ("3", "", "caption empty: line 6"),
    ]
    assert [item.place for item in items[:3]] == [
        Place(folder / "000_050" / "21179416.mp4", length=20),
        Place(folder / "1.mp4", length=5),
        None,
    ]
    assert items[0].meta == {"contentUrl": "https://a/b.mp4", "duration": "PT00H00M11S", "page_dir": "000_050"}
    assert source.notes() == ["2 rows repeat a videoid: left out, one clip a video"]


def test_webvid_stays_in_its_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "1.mp4")
    for page in ("../x", "/etc", "a/../../x"):
        said = problem_of(WebVid(folder, table_of(tmp_path, f"1,u,d,{page},x", header=WEBVID)))
        assert "line 2: page_dir" in said
    for key in ("../1", "1.2", "", "a/b"):
        assert "line 2: the key" in problem_of(WebVid(folder, table_of(tmp_path, f"{key},u,d,p,x", header=WEBVID)))
    long = table_of(tmp_path, f"1,u,d,{'p' * 300},x", header=WEBVID)  # longer than a name can be
    assert [item.problem for item in WebVid(folder, long).items()] == [""]
    assert "line 2: no column 'videoid', 'page_dir', 'name'" in problem_of(WebVid(folder, table_of(tmp_path, "a,x")))
    assert "names no videos" in problem_of(WebVid(folder, table_of(tmp_path, header=WEBVID)))


def test_webvids_fingerprint_tells_of_videos_that_came_and_changed(tmp_path: Path) -> None:
    folder, row = folder_of(tmp_path, "1.mp4"), b"%d,u,d,caf\xe9,name"
    table = table_of(tmp_path, row % 1, row % 2, header=WEBVID)
    source, prints = WebVid(folder, table), []
    prints.append(source.fingerprint())
    (folder / os.fsdecode(b"caf\xe9")).mkdir()
    (folder / os.fsdecode(b"caf\xe9") / "2.mp4").write_bytes(b"x")
    prints.append(source.fingerprint())
    (folder / "1.mp4").write_bytes(b"another length")
    prints.append(source.fingerprint())
    (folder / "unrelated.mp4").write_bytes(b"x")
    assert source.fingerprint() == prints[-1] and len({str(p) for p in prints}) == 3
    with pytest.raises(ValueError, match="is no folder"):
        WebVid(tmp_path / "none", table).fingerprint()
