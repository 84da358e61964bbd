"""Tables of files and captions, as people keep them: CSV, TSV with a header, JSONL, parquet. Read row by row.

What is not UTF-8 in a value comes as lone surrogates, by which one item is known to be unusable; in a header, and in
parquet, it is an error. Not the list of CC12M, which has no header and no quoting (preprocessing/sources/cc12m.py).
"""

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE_COLUMNS = (  # the first that is there
    "file", "file_name", "filename", "path", "image", "image_path", "video", "video_path", "url",
)  # fmt: skip
CAPTION_COLUMNS = ("caption", "text", "title", "name")
LONGEST = 1 << 30  # characters of a CSV's value: what is too long for a caption, the caption's rule says
MARKS = {";": "semicolon", "\t": "tab", ",": "comma", "|": "bar"}  # in a header that should have more columns than one
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")

Row = tuple[int, dict[str, str]]  # the line's number in the file (of parquet: the row's), from 1; column -> text


def read_captions(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, file, caption) of each row of a table. Raises ValueError naming file, line and what is wrong."""
    columns: list[str] = []
    for line, row in read_table(path):
        columns = columns or [find_column(path, row, FILE_COLUMNS), find_column(path, row, CAPTION_COLUMNS)]
        lacking = next((column for column in columns if column not in row), None)
        if lacking is not None:
            raise ValueError(f"{path}, line {line}: no field {lacking!r} with a text in it")
        yield line, row[columns[0]], row[columns[1]]
    if not columns:
        raise ValueError(f"{path} has no rows")


def find_column(path: Path, row: dict[str, str], names: tuple[str, ...]) -> str:
    """The table's name of the first of these columns that it has, in whatever case. Raises ValueError."""
    there = {column.lower(): column for column in row}
    for name in names:
        if name in there:
            return there[name]
    raise ValueError(f"{path} has the columns {', '.join(map(repr, row))}, but none of {', '.join(names)}: rename one")


def read_table(path: Path) -> Iterator[Row]:
    """The rows of a table. Raises ValueError naming file and line where it is not as its name says."""
    readers = {".csv": _csv, ".tsv": _tsv, ".jsonl": _jsonl, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} is no table: its name must end in {', '.join(readers)}")
    try:
        yield from reader(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            yield (raw.removeprefix(codecs.BOM_UTF8) if line == 1 else raw).decode(errors="surrogateescape")


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(LONGEST)
    return _with_header(path, csv.reader(_lines(path), strict=True), "put values that hold commas in double quotes")


def _tsv(path: Path) -> Iterator[Row]:
    lines = (line.rstrip("\r\n") for line in _lines(path))  # a quote is a letter: nothing spans lines
    return _with_header(path, csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), "a value holds no tab")


def _with_header(path: Path, rows: Any, advice: str) -> Iterator[Row]:
    header: list[str] = []
    while True:
        line = rows.line_num + 1  # where the row begins: a quoted value may span lines
        try:
            values = next(rows, None)
        except csv.Error as error:
            if "new-line" in str(error):  # in Python's words, a matter of how the file was opened
                raise ValueError(
                    f"{path}, line {line}: a carriage return within a line: save the table with line ends of "
                    "Unix or Windows"
                ) from error
            raise ValueError(f"{path}, line {line}: {error}: {advice}") from error
        if values is None:
            return
        if not any(values):  # an empty line, also as spreadsheets write it: commas alone
            continue
        if not header:
            header = [value.strip() for value in values]
            if not all(value.replace("\t", " ").isprintable() for value in header):
                raise ValueError(f"{path}, line {line}: the header is not UTF-8: save the table as UTF-8")
            if len(header) == 1 and (other := next((name for mark, name in MARKS.items() if mark in header[0]), "")):
                raise ValueError(
                    f"{path}, line {line}: it looks {other}-separated: save it with commas as .csv, or tabs as .tsv"
                )
            if len(set(header)) < len(header):
                raise ValueError(f"{path}, line {line}: the header names a column twice: {', '.join(header)}")
            continue
        if len(values) != len(header):
            raise ValueError(f"{path}, line {line} has {len(values)} columns, the header has {len(header)}: {advice}")
        yield line, dict(zip(header, values, strict=True))


def _jsonl(path: Path) -> Iterator[Row]:
    for line, text in enumerate(_lines(path), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {line}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {line}: no JSON object")
        yield line, _texts(row)


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    line = 0
    try:
        with parquet.ParquetFile(path) as file:
            # Leaves alone: a picture's bytes that lie in the table are not read.
            leaves = [f.name for f in file.schema_arrow if not (pyarrow.types.is_nested(f.type) or _binary(f.type))]
            for batch in file.iter_batches(batch_size=1024, columns=leaves):
                for row in batch.to_pylist():
                    line += 1
                    yield line, _texts(row)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is no parquet file, or is damaged after row {line}: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 in one of the rows {line + 1} to {line + 1024}: save it as UTF-8"
        ) from error


def _binary(kind: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def _texts(row: dict[str, Any]) -> dict[str, str]:
    """Numbers become texts; nothing the empty text, and so does what pandas writes for it, NaN. Lists and objects are
    left out: five captions in one field are no caption.
    """
    plain = {column: value for column, value in row.items() if not isinstance(value, list | dict)}
    return {column: "" if value is None or value != value else str(value) for column, value in plain.items()}
