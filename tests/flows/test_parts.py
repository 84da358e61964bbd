import threading
from pathlib import Path
from typing import Any

import pytest

from dozen import opened
from flows.datasets import making, parts
from flows.datasets.making import make_set
from flows.datasets.parts import at_work, in_turn, overlap, part_lock, set_lock
from flows.home import Trouble
from preprocessing.pack import making as shards


def test_parts_overlap_where_they_have_a_shard_in_common() -> None:
    of = {(i, n): set(range(i - 1, 60, n)) for n in range(1, 6) for i in range(1, n + 1)}
    assert all(overlap(one, other) == bool(of[one] & of[other]) for one in of for other in of)


def test_parts_go_on_at_the_same_time_and_whoever_wants_some_of_theirs_is_told_who_makes_it(tmp_path: Path) -> None:
    folder = tmp_path / "cc12m-0123"
    with part_lock(folder, "shards", (1, 2)), part_lock(folder, "shards", (4, 4)), part_lock(folder, "text", (1, 1)):
        for other in ((1, 1), (1, 2), (2, 2), (1, 3), (3, 4)):
            with pytest.raises(Trouble, match=r"part \d/\d of the shards of cc12m-0123 is in use by process \d+"):
                part_lock(folder, "shards", other).__enter__()
        with part_lock(folder, "shards", (2, 4)), set_lock(folder):  # the set itself is held for moments only
            pass
    with part_lock(folder, "shards", (1, 1)), pytest.raises(Trouble, match="part 1/1 of the shards"):
        part_lock(folder, "shards", (2, 7)).__enter__()


def test_who_waits_goes_on_when_it_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LOOK_S", 0.01)
    folder, said, done = tmp_path / "mine-0123", list[str](), list[str]()

    def whole() -> None:
        with in_turn(lambda: part_lock(folder, "shards", (1, 1)), said.append):
            done.append("whole")

    with part_lock(folder, "shards", (2, 3)):
        waiting = threading.Thread(target=whole)
        waiting.start()
        while not said:
            pass
        with in_turn(lambda: part_lock(folder, "shards", (1, 3)), done.append):  # who waits holds nothing
            pass
        done.clear()  # unless just then it looked
        done.append("part")
    waiting.join(10)
    assert done == ["part", "whole"] and len(said) == 1 and said[0].endswith("; going on when it is free")


def test_a_set_is_not_named_while_another_part_looks_at_its_shards(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are there, as after a kill: who ends first leaves the folder as it is, who ends last gives it its name."""
    in_parts, progress, said = opened(), lambda *_: None, list[str]()
    for number in (1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(making, "_finish", lambda *_: None)
            assert make_set(in_parts, progress, print, (number, 2)) is None
    make_part = making._make_part

    def look(*arguments: Any) -> None:
        monkeypatch.setattr(making, "_make_part", make_part)
        assert make_set(in_parts, progress, said.append, (1, 2)) is None
        make_part(*arguments)

    monkeypatch.setattr(making, "_make_part", look)
    monkeypatch.setattr(shards, "pack_shard", None)  # nothing is packed again
    made = make_set(in_parts, progress, print, (2, 2))
    assert made == in_parts.made() is not None and not list(root.glob("*.part"))
    assert said == ["this part is made; part 2/2 at work: whoever ends last finishes the set"]
    assert at_work(in_parts.folder, "shards") == []
