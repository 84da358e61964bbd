"""`mdm report`: a run's page again, several on one, or the newest."""

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from flows.cli import main
from flows.records.pages import refresh_page
from flows.sweep import write_results
from mdm.files import load_json, write_json
from mdm.presets import PRESETS
from mdm.structure import to_dict
from tests.evaluation.example_records import example_records
from tests.evaluation.test_points import row

TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def records() -> dict[str, Any]:
    made = example_records()
    kept = ("title", "format", "preset", "created", "facts", "stages", "curves", "metrics", "grids", "credits")
    made = {name: made[name] for name in kept} | {"run": "elsewhere", "verdict": "old"}  # as before November 2026
    by_name = {metric["name"]: metric for metric in made["metrics"]}
    by_name["text_image_cosine_minilm_effnet_heads"]["values"]["shuffled captions"] = 0.0
    return made


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: dict[str, Any]) -> Path:
    """Two finished runs, so to say; "late" has the newer page."""
    monkeypatch.setenv("MDM_HOME", str(tmp_path))
    for age, name in enumerate(("late", "early")):
        run = tmp_path / "runs" / name
        (run / "report").mkdir(parents=True)
        write_json(run / "config.json", to_dict(TINY) | {"seed": age})
        write_json(run / "report" / "records.json", copy.deepcopy(records))
        os.utime(run / "report" / "records.json", (1e9 - age, 1e9 - age))
    return tmp_path


def test_what_was_evaluated_since_comes_onto_the_page(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = home / "runs" / "late"
    folder = run / "evaluations" / "embedded"
    folder.mkdir(parents=True)
    write_results(folder, [row("aa", "guidance-1", 8320, 20.0), row("aa", "guidance-3", 8320, 30.0)])
    write_results(folder, [row("aa", "guidance-3", 8320, 31.0), row("aa", "early", 4160, 40.0)])
    assert [p["point"] for p in load_json(folder / "results.json")] == ["guidance-1", "guidance-3", "early"]
    assert main(["report"]) == 0  # the newest
    assert capsys.readouterr().out.strip() == str(run / "report" / "index.html")
    page = (run / "report" / "index.html").read_text()
    assert "Checkpoints under protocols" in page and ">31<small" in page and ">30<small" not in page
    kept = load_json(run / "report" / "records.json")
    assert kept["run"] == "late" and kept["verdict"].startswith("Preset tiny on openmoji at 64 px")
    told = (
        "is 27% (kernel distance; the intervals do not overlap) and 38% (Fréchet distance) of an untrained model's or"
    )
    assert f" The samples' distance to real images {told} of noise's, whichever is nearer;" in kept["verdict"]
    assert (run / "report" / "index.csv").read_text().count("aa,") == 9


def test_several_runs_have_a_page_of_their_own(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "late", "early"]) == 0
    page = home / "reports" / "late+early" / "index.html"
    assert capsys.readouterr().out.strip() == str(page)
    found = json.loads(page.with_suffix(".json").read_text())
    assert found["settings"] == [{"name": "seed", "values": ["0", "1"]}] and page.with_suffix(".csv").exists()
    assert main(["report", "late", str(home / "runs" / "late")]) == 1
    assert "runs must differ in name" in capsys.readouterr().err


def test_what_has_no_page_yet_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished = home / "runs" / "unfinished"
    unfinished.mkdir()
    assert main(["report", "unfinished"]) == 1
    assert "the run has not ended (`mdm status unfinished`" in capsys.readouterr().err
    assert refresh_page(unfinished) is None  # an evaluation amid it ends without one
    for name in ("late", "early"):
        (home / "runs" / name / "report" / "records.json").unlink()
    assert main(["report"]) == 1
    assert "no run in" in capsys.readouterr().err
    (home / "runs" / "late" / "report" / "records.json").write_text('{"title')
    for run, says in (("late", r"torn or no JSON .*Delete it: `mdm run`"), ("nobody", "nobody is no run")):
        assert main(["report", run]) == 1
        assert re.search(says, capsys.readouterr().err)


def test_a_page_takes_no_name_of_what_lies_beside_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for runs in (["late"], ["late", "early"]):
        for name in ("page.csv", "page.json", "runs"):
            assert main(["report", *runs, "-o", str(home / name)]) == 1
            assert f"-o {home / name}: no name of a page" in capsys.readouterr().err
    assert sorted(path.name for path in home.iterdir()) == ["runs"]


def test_runs_and_records_that_lie_elsewhere_have_a_page_together(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "records.json"  # of November: without most sections
    elsewhere.write_text((home / "runs" / "early" / "report" / "records.json").read_text())
    assert main(["report", "late", str(elsewhere)]) == 0
    found = load_json(home / "reports" / "late+elsewhere" / "index.json")
    assert [run["run"] for run in found["runs"]] == ["late", "elsewhere"]
    elsewhere.write_text('{"format": 1}')
    assert main(["report", "late", str(elsewhere)]) == 1
    assert f"{elsewhere}: records: title: Field required" in capsys.readouterr().err
