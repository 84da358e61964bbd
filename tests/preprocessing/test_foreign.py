"""Foreign tars: each case a tar as other people write them, with the samples that must come out of it."""

import gzip
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from inputs import Members, png, write_tar
from preprocessing.items import Item, Split
from preprocessing.sources.foreign import ForeignTars

KEYS = [f"{i:03d}" for i in range(6)]
CAPTIONS = {key: f"caption {key}" for key in KEYS}


def sample(key: str, caption: bytes | None, shade: int = 7, **more: bytes) -> Members:
    members: Members = [(f"{key}.png", png(shade))]
    if caption is not None:
        members.append((f"{key}.txt", caption))
    return members + [(f"{key}.{extension}", data) for extension, data in more.items()]


PICTURES = {key: png(40 * i) for i, key in enumerate(KEYS)}
WHOLE = [sample(key, CAPTIONS[key].encode(), 40 * i, json=b'{"a": 1}') for i, key in enumerate(KEYS)]


@dataclass
class AllTraining(ForeignTars):
    """No split: these sets are too small to hold eight samples out."""

    def rule(self) -> Callable[[Item], Split]:
        return lambda item: "train"


def listed(tmp_path: Path, members: Members) -> tuple[dict[str, str], list[str]]:
    """Key -> caption of the samples, with the right pictures; and the problems of the others."""
    items = list(AllTraining(write_tar(tmp_path / "x.tar", members)).items())
    for item in items:
        if not item.problem and (name := item.key.rpartition("_")[2]) in PICTURES:
            assert item.place is not None and item.place.read() == PICTURES[name]
    assert len({item.key for item in items}) == len(items)
    return {i.key: i.caption for i in items if not i.problem}, [i.problem for i in items if i.problem]


def flat(samples: list[Members]) -> Members:
    return [member for one in samples for member in one]


@pytest.mark.parametrize(
    "order", ["img2dataset's", "from sample to sample", "interleaved", "shuffled", "a member more"]
)
def test_members_stand_in_any_order(tmp_path: Path, order: str) -> None:
    members = {
        "img2dataset's": flat([sorted(one, key=lambda m: m[0][-4:]) for one in WHOLE]),
        "from sample to sample": flat([one[:: -1 if i % 2 else 1] for i, one in enumerate(WHOLE)]),
        "interleaved": [one[i] for i in range(3) for one in WHOLE],
        "shuffled": random.Random(0).sample(flat(WHOLE), k=18),
        "a member more": flat([[(f"{key}.cls", b"3"), *one] for key, one in zip(KEYS, WHOLE, strict=True)]),
    }[order]
    assert listed(tmp_path, members) == (CAPTIONS, [])


def test_a_missing_caption_is_named_and_the_neighbours_do_not_shift(tmp_path: Path) -> None:
    members = [member for member in flat(WHOLE) if member[0] != "002.txt"]
    found, problems = listed(tmp_path, members)
    assert found == {key: text for key, text in CAPTIONS.items() if key != "002"}
    assert problems == ["no caption: '002' in x.tar"]


def test_folders_in_keys_become_part_of_ours(tmp_path: Path) -> None:
    members = [("a/", None), *((f"a/{name}", data) for name, data in flat(WHOLE))]
    assert listed(tmp_path, members) == ({f"a_{key}": text for key, text in CAPTIONS.items()}, [])
    members = [(f"./v1.0/{name}", data) for name, data in flat(WHOLE)]
    assert listed(tmp_path, members) == ({f"v1_0_{key}": text for key, text in CAPTIONS.items()}, [])
    with pytest.raises(ValueError, match=r"x\.tar: the keys 'a/1' and 'a_1' would both become 'a_1'"):
        listed(tmp_path, sample("a/1", b"one") + sample("a_1", b"two"))


def test_a_key_with_a_dot_is_refused_by_name(tmp_path: Path) -> None:
    members = (
        sample("001", b"one", 40, **{"seg.png": png()}) + sample("track 2.0", b"two") + sample("track 2.1", b"three")
    )
    found, problems = listed(tmp_path, members)
    assert found == {"001": "one"}
    assert problems == [
        "dot in key: 'track 2' in x.tar: 'track 2.0.png' has a dot in its key, where webdataset ends it"
    ]


def test_a_key_that_no_list_of_keys_can_hold_is_a_problem(tmp_path: Path) -> None:
    captions, problems = listed(tmp_path, flat([*WHOLE, sample("a\u2028b", b"x")]))
    assert captions == CAPTIONS
    assert len(problems) == 1 and problems[0].startswith(r"odd key: 'a\u2028b' in x.tar: the key 'a\u2028b' has")


def test_two_samples_of_one_key_are_both_refused(tmp_path: Path) -> None:
    members = sample("001", b"first") + sample("001", b"second") + sample("002", b"third", 80)
    assert listed(tmp_path, members) == (
        {"002": "third"},
        ["key twice: '001' in x.tar: '001.png', '001.txt' again"],
    )


def test_captions_that_are_none_are_named(tmp_path: Path) -> None:
    members = (
        sample("1", b"caf\xe9") + sample("2", b" \n") + sample("3", b"w" * 100_000) + sample("4", b"\xef\xbb\xbfok\n")
    )
    found, problems = listed(tmp_path, members)
    assert found == {"4": "ok"}
    assert problems == [
        "not UTF-8: '1' in x.tar",
        "caption empty: '2' in x.tar",
        "caption over 10,000 characters: '3' in x.tar",
    ]


def test_a_sample_has_one_picture(tmp_path: Path) -> None:
    members = [*sample("1", b"one", jpg=png()), ("2.txt", b"two"), ("README", b""), ("._3.png", b"")]
    assert listed(tmp_path, members) == (
        {},
        ["several images: '1' in x.tar: it has 'jpg', 'png', 'txt'", "no image: '2' in x.tar: it has 'txt'"],
    )


def test_captions_and_what_is_kept_of_the_json(tmp_path: Path) -> None:
    about = {"caption": "one", "url": "http://h/\ud800", "label": True, "original_width": 9, "exif": "{}"}
    members = sample("1", None, json=json.dumps(about).encode()) + sample(
        "2", None, json=b'{"text": "two"}', cls=b"3\n"
    )
    members += (
        sample("3", b"three", json=b"{") + sample("4", None, json=b'{"caption": 4}') + sample("5", b"5", PNG=png())
    )
    source = AllTraining(write_tar(tmp_path / "x.tar", members))
    items = list(source.items())
    assert [(i.key, i.caption, i.meta) for i in items if not i.problem] == [
        ("1", "one", {"url": "http://h/?", "original_width": 9}),
        ("2", "two", {"label": 3}),
        ("3", "three", {}),
    ]
    assert [i.problem for i in items[3:]] == ["no caption: '4' in x.tar", "key twice: '5' in x.tar: '5.PNG' again"]
    assert source.notes() == ["1 .json cannot be read as an object: '3' in x.tar"]


def test_a_truncated_tar_is_named_before_anything_is_done(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "cut.tar", flat(WHOLE))
    whole = path.read_bytes()
    AllTraining(path).fingerprint()
    path.write_bytes(whole + b"more")
    AllTraining(path).fingerprint()
    for size in (len(whole) * 2 // 3, 0):
        path.write_bytes(whole[:size])
        for ask in (AllTraining(path).fingerprint, lambda: list(AllTraining(path).items())):
            with pytest.raises(ValueError, match=r"cut\.tar is truncated or damaged"):
                ask()
    path.write_bytes(gzip.compress(whole))
    with pytest.raises(ValueError, match=r"cut\.tar is compressed: unpack it"):
        AllTraining(path).fingerprint()


def test_tars_that_number_their_samples_anew(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("0.tar", "b/1.tar"):
        write_tar(tmp_path / name, flat(WHOLE[:2]))
    source = AllTraining(tmp_path)
    assert [item.key for item in source.items()] == ["0_000", "0_001", "b_1_000", "b_1_001"]
    assert source.notes() == ["the tars number their samples anew: each key has its tar's name before it"]
    assert [item.key for item in AllTraining(str(tmp_path / "*.tar")).items()] == ["000", "001"]


def test_a_key_of_an_earlier_tar_is_a_problem_of_the_later_sample(tmp_path: Path) -> None:
    for name, samples in (("0.tar", WHOLE[:2]), ("1.tar", WHOLE[2:4]), ("2.tar", WHOLE[1:6:4])):
        write_tar(tmp_path / name, flat(samples))
    source = AllTraining(tmp_path)
    items = list(source.items())
    assert source.notes() == ["1 samples have a key of a tar before theirs, whose sample is kept"]
    assert [item.key for item in items if not item.problem] == ["000", "001", "002", "003", "005"]
    assert [(i.key, i.problem) for i in items if i.problem] == [
        ("2_001", "key twice: '001' in 2.tar, and in a tar before it")
    ]


def test_one_in_twenty_is_held_out_and_at_least_eight(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", flat([sample(f"{i:04d}", b"x") for i in range(400)]))
    items = list(ForeignTars(path).items())
    held_out = {item.key for item in items if item.split == "val"}
    assert len(items) == 400 and 10 <= len(held_out) <= 35
    few = list(ForeignTars(path, limit=50).items())
    assert [item.key for item in few] == [item.key for item in items[:50]]
    assert sum(item.split == "val" for item in few) == 8
    with pytest.raises(ValueError, match=r"x\.tar has 5 pictures with captions: 8 are held out, so at least 9"):
        list(ForeignTars(path, limit=5).items())


def test_a_set_is_known_by_its_tars(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    path = write_tar(folder / "0.tar", flat(WHOLE))
    before = ForeignTars(folder).fingerprint()
    moved = folder.rename(tmp_path / "b")
    os.utime(moved / path.name, (1, 1))
    assert ForeignTars(moved).fingerprint() == before != ForeignTars(moved, limit=3).fingerprint()
    write_tar(moved / "1.tar", flat(WHOLE))
    assert ForeignTars(moved).fingerprint() != before


def test_a_place_without_tars_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \*\.tar there; give a folder"):
        ForeignTars(tmp_path).fingerprint()
