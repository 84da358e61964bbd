"""What a training took, from what it wrote down."""

import json
from pathlib import Path

import pytest

from evaluation.pages.schema import Speed
from evaluation.pages.speed import read_pace, speeds
from mdm.files import write_json
from mdm.presets import PRESETS

TINY = PRESETS["tiny"]


def write_stage(
    folder: Path, rates: list[tuple[int, float, int]], hardware: str = "AMD EPYC, 2 cores, Linux x"
) -> None:
    """Lines (images seen, images/s, returns before)."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {"hardware": hardware, "processes": 2})
    for nimg, rate, returns in rates:
        values = {"speed/images_per_s": rate, "speed/step_s": 16 / rate, "system/peak_memory_megabytes": 900.0}
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"nimg": nimg, "returns": returns, "values": values}) + "\n")


def test_time_is_of_the_branch_that_was_kept(tmp_path: Path) -> None:
    write_stage(tmp_path / "s", [(100, 10.0, 0), (200, 5.0, 0), (150, 50.0, 1), (250, 100.0, 1)])
    write_json(tmp_path / "s" / "returns.json", [{"to": 100, "offset": 0, "from": 200}])
    with (tmp_path / "s" / "metrics.jsonl").open("a") as file:
        file.write('{"nimg": 30')  # being written
    pace = read_pace(tmp_path / "s")
    assert pace is not None
    assert [pace.until(n) for n in (100, 150, 250)] == pytest.approx([10, 11, 12])
    assert (pace.hardware, pace.gpu) == ("AMD EPYC", False)


def test_a_gpu_is_named_and_what_wrote_nothing_has_no_pace(tmp_path: Path) -> None:
    write_stage(tmp_path / "s", [(100, 10.0, 0)], "AMD EPYC, 2 cores, Linux x, NVIDIA A100-SXM4-80GB, CUDA 12.8")
    pace = read_pace(tmp_path / "s")
    assert pace is not None and (pace.hardware, pace.gpu) == ("NVIDIA A100-SXM4-80GB", True)
    assert read_pace(tmp_path / "nothing") is None
    with (tmp_path / "s" / "metrics.jsonl").open("a") as file:
        file.write("no line\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is no metrics line"):
        read_pace(tmp_path / "s")


def test_a_row_per_trained_stage_and_drawing_where_its_machine_is_known(tmp_path: Path) -> None:
    for name in ("16", "64"):
        write_stage(tmp_path / name, [(1600, 32.0, 0)])
    (tmp_path / "samples").mkdir()
    write_json(tmp_path / "samples" / "done.json", {"images": 256, "seconds": 92.16})
    rows = [Speed.model_validate(row) for row in speeds(TINY, tmp_path)]
    assert [(row.stage, row.iterations, row.iteration_s, row.images_per_s) for row in rows] == [
        ("16", 100, 0.5, pytest.approx(32.0)),
        ("64", 200, 0.5, pytest.approx(32.0)),
    ]
    assert [row.call_s for row in rows] == [None, None] and rows[0].memory_mb == 900
    done = {"images": 300, "drawn": 256, "seconds": 92.16, "hardware": "AMD EPYC"}
    write_json(tmp_path / "samples" / "done.json", done)
    last = speeds(TINY, tmp_path)[-1]
    assert (last["call_s"], last["drawn_on"]) == (pytest.approx(92.16 / (128 * 24 * 3)), "AMD EPYC")
