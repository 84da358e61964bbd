"""Several runs on one page: what compares stands side by side, what does not is said."""

import copy
import csv
import re
from pathlib import Path
from typing import Any

import pytest

from evaluation.measuring.identity import drawn_by, way_of
from evaluation.pages.compare import compare
from evaluation.pages.schema import Comparison
from evaluation.report import render_comparison
from mdm.config import Sampling
from tests.evaluation.example_records import HOSTILE, example_records
from tests.evaluation.test_report import Elements


def run(name: str, **fields: Any) -> dict[str, Any]:
    records = copy.deepcopy(example_records())
    picture = records["grids"][0]["items"][0]["image"]
    samples = [{"key": key, "seed": 1, "caption": HOSTILE, "image": picture} for key in ("a", "b")]
    curve = records["curves"][0]
    loss = {**curve, "title": "Loss at 64 × 64"}
    loss["series"] = [
        {"name": f"{kind}, stage 64", "x": [1, 2], "y": [2, 1]} for kind in ("training", "held out (EMA)")
    ]
    return records | {
        "run": name,
        "digest": "aaaa",
        "drawn": way_of(drawn_by(Sampling(), 0))._asdict(),
        "settings": {"seed": "0", "data.name": '"openmoji"', "sampling.steps": "24"},
        "samples": samples,
        "curves": [loss],
        **fields,
    }


def test_alike_runs_share_tables_charts_and_prompts() -> None:
    a, b = run("a"), run("b", settings={"seed": "1", "data.name": '"openmoji"', "sampling.steps": "24"})
    b["samples"][1]["seed"] = 2  # the same prompt from other noise
    found = compare([a, b])
    Comparison.model_validate(found)
    assert found["apart"] == []
    assert found["settings"] == [{"name": "seed", "values": ["0", "1"]}]
    (own,) = found["own"]
    assert own["runs"] == ["a", "b"] and all(row[0] == row[1] for row in own["metrics"])
    assert [item["caption"] for grid in found["prompts"] for item in grid["items"]] == ["a", "b"]
    (table,) = found["evaluations"]
    assert len(table["rows"]) == 2 * len(a["evaluations"][0]["rows"])
    assert {(row["run"], row["stage"]) for row in table["rows"]} == {(name, "tiny, stage 64") for name in "ab"}
    assert [s["name"] for s in found["curves"][0]["series"]] == ["a", "b"]  # held out alone
    along = next(curve for curve in found["curves"] if "along the training" in curve["title"])
    assert [s["name"][:3] for s in along["series"]] == ["a: ", "b: "]


def test_other_digests_are_said_and_not_compared(tmp_path: Path) -> None:
    a, b = run("a"), run("b", digest="bbbb")
    b["evaluations"][0]["digest"] = "another"
    b["figures"] = []
    b["samples"] = [{**sample, "seed": 5} for sample in b["samples"]]
    found = compare([a, b])
    assert [own["runs"] for own in found["own"]] == [["a"], ["b"]]
    assert [table["digest"] for table in found["evaluations"]] == [a["evaluations"][0]["digest"], "another"]
    ways, digests, seeds = found["apart"]
    assert "a (aaaa); b (bbbb)" in ways and "do not compare" in ways
    assert "another: b" in digests and "seeds differ" in seeds
    page = render_comparison(found, tmp_path / "index.html")
    elements = Elements(page.read_text())
    assert "What does not compare" in elements.text and digests in elements.text
    with page.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    own = {(row["run"], row["digest"]) for row in rows if not row["point"]}
    assert own == {("a", "aaaa"), ("b", "bbbb")} and {row["run"] for row in rows} == {"a", "b"}


def test_other_ways_of_drawing_are_said_wherever_they_stand(tmp_path: Path) -> None:
    a, b = run("a"), run("b", drawn=way_of(drawn_by(Sampling(sampler="ddim", eta=0.5, steps=9), 2))._asdict())
    page = render_comparison(compare([a, b]), tmp_path / "index.html")
    text = Elements(page.read_text()).text
    assert "guidance 1, 250 steps, ddpm" in text and "guidance 1, 9 steps, ddim, eta 0.5, seed 2" in text
    with page.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    ways = {(row["run"], row["guidance"], row["steps"], row["sampler"]) for row in rows if not row["point"]}
    assert ways == {("a", "1", "250", "ddpm"), ("b", "1", "9", "ddim, eta 0.5, seed 2")}
    assert all(row["guidance"] and row["steps"] and row["sampler"] for row in rows)
    with_none = compare([run("a", drawn=None), b])  # records of before
    assert render_comparison(with_none, tmp_path / "index.html").exists()


@pytest.mark.parametrize("digest", ["", "aaaa"])
def test_an_unknown_digest_is_nobodys(digest: str) -> None:
    assert len(compare([run("a", digest=""), run("b", digest=digest)])["own"]) == 2


def test_the_common_page_is_as_closed_as_the_others(tmp_path: Path) -> None:
    hostile = run(HOSTILE, verdict=HOSTILE, settings={HOSTILE: HOSTILE, "data.name": HOSTILE})
    page = render_comparison(compare([run("a"), hostile]), tmp_path / "index.html").read_text()
    elements = Elements(page)
    assert "default-src 'none'" in page and "<script" not in page and "\u202e" not in page
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in elements.found:
        assert not any(name.startswith("on") for name in attributes)
        assert re.match(r"data:image/png;base64,|#", attributes.get("src") or attributes.get("href") or "#"), tag
        assert set((attributes.get("aria-labelledby") or "").split()) <= set(ids)
