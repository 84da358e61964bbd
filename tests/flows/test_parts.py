import threading
from pathlib import Path

import pytest

from flows.datasets import parts
from flows.datasets.parts import in_turn, overlap, part_lock, set_lock
from flows.home import Trouble


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
