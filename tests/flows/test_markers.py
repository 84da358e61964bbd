"""Done means done from these inputs; nothing is overwritten."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.markers import once, read_done


def test_done_work_is_not_done_again_and_other_inputs_move_the_old_aside(tmp_path: Path) -> None:
    said: list[str] = []
    calls: list[int] = []
    folder = tmp_path / "stage"

    def work() -> dict[str, int]:
        calls.append(1)
        (folder / "result").write_text(str(len(calls)))
        return {"answer": len(calls)}

    first = once(folder, {"a": 1}, work, said.append)
    again = once(folder, {"a": 1}, work, said.append)
    assert (first["answer"], first["reused"], again["answer"], again["reused"]) == (1, False, 1, True)
    other = once(folder, {"a": 2}, work, said.append)
    assert other["answer"] == 2
    (aside,) = tmp_path.glob("stage.old-*")
    assert (aside / "result").read_text() == "1"
    assert "moved to" in said[0]
    for i in range(3):  # within a second
        once(folder, {"a": 3 + i}, work, said.append)
    assert len(list(tmp_path.glob("stage.old-*"))) == 4


def test_interrupted_work_is_resumed_in_place(tmp_path: Path) -> None:
    folder = tmp_path / "stage"

    def die() -> dict[str, int]:
        (folder / "half").write_text("kept")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        once(folder, {"a": 1}, die, print)
    assert not (folder / "done.json").exists()
    done = once(folder, {"a": 1}, lambda: {"half": (folder / "half").read_text()}, print)
    assert done["half"] == "kept"


def test_a_torn_marker_is_no_marker(tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    once(folder, 1, dict, print)
    (folder / "done.json").write_text(json.dumps({"inputs": "x"})[:-3])
    assert once(folder, 1, dict, print)["reused"] is False


@dataclass(frozen=True)
class Inputs:
    rate: float
    later: int = 3  # a field that came after the run


def test_fields_that_came_later_have_their_defaults_and_other_shapes_are_translated(tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    once(folder, {"rate": 1}, dict, print)
    written = (folder / "inputs.json").read_text()
    assert once(folder, Inputs(1.0), dict, print)["reused"]
    assert read_done(folder, Inputs(1.0, later=4)) is None
    once(tmp_path / "first", {"speed": 1}, dict, print)
    assert read_done(tmp_path / "first", Inputs(1.0)) is None
    assert read_done(tmp_path / "first", Inputs(1.0), lambda folder, found: Inputs(found["speed"])) is not None
    assert (folder / "inputs.json").read_text() == written


def test_half_done_work_of_another_shape_is_resumed_and_stays_known(tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    once(folder, {"speed": 1}, lambda: {}, print)
    (folder / "done.json").unlink()
    (folder / "half").write_text("kept")

    def translate(folder: Path, found: dict[str, int]) -> Inputs:
        return Inputs(found["speed"])

    done = once(folder, Inputs(1), lambda: {"half": (folder / "half").read_text()}, print, translate)
    assert done["half"] == "kept"
    assert once(folder, Inputs(1), dict, print, translate)["reused"]


def test_what_was_lost_since_is_made_again_in_place(tmp_path: Path) -> None:
    folder = tmp_path / "stage"

    def work() -> dict[str, int]:
        (folder / "picture").touch()
        return {}

    def go() -> bool:
        return once(folder, 1, work, print, whole=(folder / "picture").exists)["reused"]

    assert (go(), go()) == (False, True)
    (folder / "picture").unlink()
    assert (go(), go()) == (False, True)
    assert "torch" in json.loads((folder / "done.json").read_text())["versions"]
