"""Which of the paper's numbers a run's own is put beside: only those that it measured as the paper did."""

from typing import Any

import pytest

from evaluation.pages.beside import beside_paper
from evaluation.pages.schema import Paper
from evaluation.pages.since import SINCE
from mdm.presets import PRESETS
from tests.evaluation.example_records import beside_13_43


def rows(paper: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for table in paper["tables"] for row in table["rows"]]


def measured(paper: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in rows(paper) if row["ours"] is not None]


def test_the_demo_measures_none_and_every_row_says_what_it_needs() -> None:
    paper = beside_paper(PRESETS["tiny"], "tiny", [])
    assert Paper.model_validate(paper).measured is False
    ours = [row for row in rows(paper) if row["stage"]]
    assert measured(paper) == [] and f"0 of the {len(ours)} " in paper["summary"]
    for row in ours:
        assert "A100-hours to train" in row["needs"]
        assert bool(row["commands"]) != row["needs"].startswith("needs "), row  # of what is absent there is no command
    guided = next(row for row in ours if row["printed"] == "3.51")
    assert guided["commands"][0] == "mdm run imagenet-256-dropout" and guided["counts"] == [3.0, 4.11]
    assert guided["needs"] == "data: imagenet; 2,018 A100-hours to train, 89.0 to draw"
    training = next(row for row in ours if row["system"] == "MDM, CC 64" and row["printed"] == "1.14")
    assert training["commands"] == ["mdm run cc12m-256"] and "draw" not in training["needs"]


def test_a_run_that_measured_it_stands_beside_it() -> None:
    (row,) = measured(beside_13_43())
    assert (row["printed"], row["ours"], row["n"], row["run"]) == ("13.43", 14.1, 30_000, "night")
    assert row["difference"] == pytest.approx(0.67) and row["interval"] == pytest.approx([13.9, 14.3])
    assert row["drawn"] == "ddpm, 250 steps, guidance 1.35" and row["needs"] == ""
    assert [r["printed"] for r in measured(beside_13_43(sampling={"guidance": [1.0]}))] == ["18.35"]


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 3},
        {"name": "night"},
        {"sampling": {"guidance": [1.35, 1.35], "batch_size": 4}},
        {"stages": {"64": {"compute": {"compile": False}}}},
    ],
)
def test_what_decides_nothing_does_not_part_them(fields: dict[str, Any]) -> None:
    assert len(measured(beside_13_43(**fields))) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"sampling": {"guidance": [1.5]}},
        {"sampling": {"guidance": [1.35], "sampler": "ddim"}},
        {"sampling": {"guidance": [1.35], "steps": 50}},
        {"data": {"limit": 1_000_000}},
        {"stages": {"64": {"training": {"lr": 5e-5}}}},
        {"stages": {"256": {"start": None}}},
        {"protocol": "mdm-released"},
    ],
)
def test_another_experiments_number_does_not_stand_there(fields: dict[str, Any]) -> None:
    assert measured(beside_13_43(**fields)) == []


def test_second_hand_figures_are_marked_and_figures_have_a_source() -> None:
    assert {later.system for later in SINCE if later.second_hand} == {"SiD2", "EPG", "JiT-G"}
    for later in SINCE:
        assert later.source and later.imagenet_256
        assert all(getattr(later, figure) for figure in later.second_hand)
