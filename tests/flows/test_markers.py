"""Done means done from these inputs; nothing is overwritten."""

import json
from pathlib import Path

import pytest

from flows.markers import once


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
