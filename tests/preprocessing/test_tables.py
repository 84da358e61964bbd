import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from preprocessing.sources.tables import read_captions, read_table

ROWS = [("a.png", "a red, round ball"), ("b.png", 'the "best" café'), ("c.png", "")]


def test_every_kind_of_table_gives_the_same_rows(tmp_path: Path) -> None:
    quoted = "".join(f'{file},"{text.replace(chr(34), 2 * chr(34))}"\r\n' for file, text in ROWS)
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + f"File , Caption\r\n{quoted}\r\n".encode())
    (tmp_path / "t.tsv").write_text("path\ttitle\n" + "".join(f"{file}\t{text}\n" for file, text in ROWS))
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"n": {"x": 1}, "file_name": f, "text": t or None}) + "\n\n" for f, t in ROWS)
    )
    columns = {
        "image": [f for f, _ in ROWS],
        "Name": [t or None for _, t in ROWS],
        "data": [b"\xff"] * 3,
        "n": [1, 2, 3],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet", row_group_size=2)
    lines = {"csv": [2, 3, 4], "tsv": [2, 3, 4], "jsonl": [1, 3, 5], "parquet": [1, 2, 3]}
    for kind, numbers in lines.items():
        read = list(read_captions(tmp_path / f"t.{kind}"))
        assert read == [(n, *row) for n, row in zip(numbers, ROWS, strict=True)], kind


def test_a_value_may_span_lines_and_the_next_row_still_has_its_own_number(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('file,text\na.png,"one\ntwo"\nb.png,three\n')
    assert list(read_captions(tmp_path / "t.csv")) == [(2, "a.png", "one\ntwo"), (4, "b.png", "three")]


def test_what_spreadsheets_and_pandas_write_for_nothing_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,text\na.png,one\n,\n,\n")
    assert list(read_captions(tmp_path / "t.csv")) == [(2, "a.png", "one")]
    (tmp_path / "t.jsonl").write_text('{"file": "a.png", "text": NaN}\n{"file": "b.png", "text": 7}\n')
    assert list(read_captions(tmp_path / "t.jsonl")) == [(1, "a.png", ""), (2, "b.png", "7")]


def test_a_value_of_any_length_is_the_business_of_its_row_alone(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"file,text\na.png,{'x' * 200_000}\nb.png,two\n")
    assert [(name, len(text)) for _, name, text in read_captions(tmp_path / "t.csv")] == [
        ("a.png", 200_000),
        ("b.png", 3),
    ]


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("t.csv", b"file,caf\xe9\na,b\n", "line 1: the header is not UTF-8: save"),
        ("t.csv", "file,text\na,b\n".encode("utf-16"), "line 1: the header is not UTF-8: save"),
        ("t.csv", b"file,text\na,left, right\n", "line 2 has 3 columns, the header has 2: put values"),
        ("t.csv", b'file,text\na,b\nc,"open\nd,e\n', "line 3: unexpected end of data"),
        ("t.csv", b"file,file\na,b\n", "line 1: the header names a column twice"),
        ("t.csv", b"file;text\na;b\n", "line 1: it looks semicolon-separated: save it with commas as .csv, or tabs"),
        ("t.csv", b"file\ttext\na\tb\n", "line 1: it looks tab-separated"),
        ("t.tsv", b"file,text\na,b\n", "line 1: it looks comma-separated"),
        ("t.csv", b"words\na\n", r"has the columns 'words', but none of file, file_name, .*, url: rename one"),
        ("t.csv", b"file,words\na,b\n", r"has the columns 'file', 'words', but none of caption, text, title, name"),
        ("t.csv", b"file,text\n", "has no rows"),
        ("t.tsv", b"file\ttext\na\tb\tc\n", "line 2 has 3 columns"),
        ("t.jsonl", b'{"file": "a", "text": "b"}\n{"file": "a"\n', "line 2: not JSON"),
        ("t.jsonl", b'{"file": "a", "text": "b"}\n[1]\n', "line 2: no JSON object"),
        ("t.jsonl", b'{"file": "a", "text": "b"}\n{"file": "a"}\n', "line 2: no field 'text'"),
        (
            "t.jsonl",
            b'{"file": "a", "text": "b"}\n{"file": "a", "text": ["b", "c"]}\n',
            "line 2: no field 'text' with a text",
        ),
        ("t.jsonl", b'{"file": "a", "text": {"en": "b"}}\n', "has the columns 'file', but none of caption"),
        ("t.csv", b"file,text\ra,b\r", "line 1: a carriage return within a line: save the table"),
        ("t.parquet", b"PAR1 no", "is no parquet file, or is damaged"),
        ("t.xlsx", b"", r"is no table: its name must end in \.csv, "),
        ("none.csv", None, "cannot be read: No such file"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(tmp_path: Path, name: str, data: bytes | None, told: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name}.*{told}"):
        list(read_captions(tmp_path / name))


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    raw = pyarrow.array([b"good", b"caf\xe9"], pyarrow.binary())
    text = pyarrow.StringArray.from_buffers(2, *raw.buffers()[1:])
    parquet.write_table(pyarrow.table({"text": text}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet.* UTF-8 in one of the rows 1 to 1024: save it as UTF-8"):
        list(read_table(tmp_path / "t.parquet"))
