import json
from pathlib import Path

import pytest

from inputs import png, write_tar
from preprocessing.items import Item
from preprocessing.sources.cc12m import Cc12m, Cc12mMirror, split_of

PAIRS = [(f"http://127.0.0.1:1/{i}.jpg", f"caption {i}") for i in range(8)]
PLAIN = "".join(f"{url}\t{caption}\n" for url, caption in PAIRS).encode()


def read(tmp_path: Path, data: bytes, limit: int = 0) -> tuple[list[Item], list[str]]:
    (tmp_path / "list.tsv").write_bytes(data)
    source = Cc12m(tmp_path / "list.tsv", limit)
    return list(source.items()), source.notes()


def pairs(items: list[Item]) -> list[tuple[str, str]]:
    return [(item.url, item.caption) for item in items if not item.problem]


def test_the_published_form(tmp_path: Path) -> None:
    items, notes = read(tmp_path, PLAIN)
    assert pairs(items) == PAIRS and [item.key for item in items] == [f"{i:09d}" for i in range(8)]
    assert all(item.meta == {"url": item.url} and item.place is None for item in items)
    assert notes == ["list.tsv has 8 lines; CC12M as published has 12,423,374"]


def test_a_quote_is_a_letter(tmp_path: Path) -> None:
    items, _ = read(tmp_path, PLAIN.replace(b"caption 3", b'"caption 3').replace(b"caption 5", b"\xe2\x80\xaegnp.exe"))
    assert len(pairs(items)) == 8 and items[3].caption == '"caption 3' and items[5].caption == "\u202egnp.exe"


def test_the_first_tab_splits(tmp_path: Path) -> None:
    items, _ = read(tmp_path, PLAIN.replace(b"caption 3", b"left\tright"))
    assert len(pairs(items)) == 8 and items[3].caption == "left\tright"


def test_a_header_and_windows_line_ends_are_seen_and_said(tmp_path: Path) -> None:
    items, notes = read(tmp_path, b"\xef\xbb\xbfurl\tcaption\r\n" + PLAIN.replace(b"\n", b"\r\n"))
    assert pairs(items) == PAIRS and items[0].key == "000000000"
    assert notes[:2] == ["list.tsv: line 1 is a header, skipped", "list.tsv: Windows line ends on 9 lines, taken off"]
    with pytest.raises(ValueError, match=r"list\.tsv, line 1: captions stand before addresses"):
        read(tmp_path, b"caption\turl\n" + PLAIN)


def test_lines_that_are_no_pair_are_named_and_their_neighbours_keep_their_captions(tmp_path: Path) -> None:
    long = b"http://h/w.jpg\t" + b"w" * 100_000
    bad = [b"http://h/x.jpg", b"http://h/y.jpg\t ", b"http://h/z.jpg\tcaf\xe9", long, b"", b"\xff\tcaption"]
    lines = PLAIN.splitlines()
    items, _ = read(tmp_path, b"\n".join(lines[:4] + bad + lines[4:]))
    assert pairs(items) == PAIRS and [item.key for item in items] == [f"{i:09d}" for i in range(14)]
    assert [item.problem for item in items[4:10]] == [
        "no tab: line 5",
        "caption empty: line 6",
        "not UTF-8: line 7",
        "caption over 10,000 characters: line 8",
        "no tab: line 9",
        "not UTF-8: line 10, the address",
    ]


def test_a_limit_takes_the_first_lines_and_says_so(tmp_path: Path) -> None:
    items, notes = read(tmp_path, PLAIN, limit=3)
    assert pairs(items) == PAIRS[:3] and notes == ["list.tsv: the first 3 lines only (limit)"]
    items, notes = read(tmp_path, PLAIN, limit=8)
    assert len(items) == 8 and notes == ["list.tsv has 8 lines; CC12M as published has 12,423,374"]


def test_a_list_is_known_by_its_bytes_and_the_limit(tmp_path: Path) -> None:
    one, other = tmp_path / "one.tsv", tmp_path / "other.tsv"
    one.write_bytes(PLAIN)
    other.write_bytes(PLAIN)
    assert Cc12m(one).fingerprint() == Cc12m(other).fingerprint() != Cc12m(one, 3).fingerprint()
    other.write_bytes(PLAIN.replace(b"caption 7", b"caption 8"))
    assert Cc12m(one).fingerprint() != Cc12m(other).fingerprint()


def test_a_list_without_lines_or_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"list\.tsv has no lines"):
        read(tmp_path, b"url\tcaption\n")
    for ask in (lambda: list(Cc12m(tmp_path / "none").items()), Cc12m(tmp_path / "none").fingerprint):
        with pytest.raises(ValueError, match="none cannot be read: No such file"):
            ask()


def test_one_pair_in_a_thousand_is_held_out_by_its_address_wherever_it_stands(tmp_path: Path) -> None:
    urls = [f"http://h/{i}.jpg" for i in range(10_000)]
    held_out = [url for url in urls if split_of(url) == "val"]
    assert 3 <= len(held_out) <= 20
    data = "".join(f"{url}\tx\n" for url in urls).encode()
    assert [item.url for item in read(tmp_path, data)[0] if item.split == "val"] == held_out

    url, other = held_out[0], next(url for url in urls if url not in held_out)
    about = {"url": url, "width": 64, "original_width": 640}
    members = {"1.jpg": png(), "1.txt": b"one", "1.json": json.dumps(about).encode(), "2.jpg": png(), "2.txt": b"two",
               "2.json": json.dumps({"url": other}).encode(), "3.jpg": png(), "3.txt": b"three"}  # fmt: skip
    write_tar(tmp_path / "00000.tar", list(members.items()))
    mirror = Cc12mMirror(tmp_path)
    assert [(item.key, item.split, item.meta) for item in mirror.items()] == [
        ("1", "val", {"url": url, "original_width": 640}),
        ("2", "train", {"url": other}),
        ("3", split_of("3"), {}),
    ]
