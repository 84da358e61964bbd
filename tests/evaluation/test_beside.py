"""Which of the paper's numbers a run's own is put beside: only those that it measured as the paper did."""

from dataclasses import replace
from typing import Any

import pytest

from evaluation.pages.beside import beside_paper
from evaluation.pages.schema import Paper
from evaluation.pages.since import SINCE
from evaluation.protocols import PROTOCOLS
from mdm import choices
from mdm.experiments import EXPERIMENTS, TIMED, TRAININGS, gpu_hours
from mdm.presets import PRESETS, resolve
from tests.evaluation.example_records import beside_13_43
from tests.evaluation.example_records import measured as measured_point

GUIDED: dict[str, Any] = {"guidance": (1.35,)}


def rows(paper: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for table in paper["tables"] for row in table["rows"]]


def measured(paper: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in rows(paper) if row["ours"] is not None]


def test_the_demo_measures_none_and_every_row_says_what_it_needs() -> None:
    paper = beside_paper(PRESETS["tiny"], "tiny", [])
    assert Paper.model_validate(paper).measured is False
    ours = [row for row in rows(paper) if row["stage"]]
    possible = [row for row in ours if row["commands"]]
    assert measured(paper) == [] and f"0 of the {len(possible)} results and figures" in paper["summary"]
    assert f"; {len(ours) - len(possible)} more need what it lacks" in paper["summary"]
    for row in ours:
        assert bool(row["commands"]) != row["needs"].startswith("needs "), row  # of what is absent there is no command
        assert "A100-hours" in row["needs"] or not row["commands"]
    settings = ("samples per GPU", "iterations (K)", "guidance weight", "batch size", "steps at 64²", "A100 GPUs")
    assert not [row for row in ours if row["metric"].startswith(settings)]  # which no run measures
    guided = next(row for row in ours if row["printed"] == "3.51")
    assert guided["commands"][0] == "mdm run imagenet-256-dropout" and guided["counts"] == [3.0, 4.11]
    assert guided["needs"] == "data: imagenet; 2,018 A100-hours to train, 89.0 to draw"
    timed = next(row for row in ours if row["system"] == "MDM, CC 64" and row["printed"] == "1.14")
    assert timed["needs"] == "data: cc12m; 10.1 A100-hours for 1,000 iterations"


def test_what_trainings_cost_is_said_as_they_are_run_and_by_both_schedules() -> None:
    paper = beside_paper(PRESETS["tiny"], "tiny", [])
    trained = [each for each in TRAININGS.values() if not each.absent]
    one_by_one = sum(gpu_hours([each]) for each in trained)
    assert f" come to {one_by_one:,.0f} A100-hours" in paper["summary"] and one_by_one > 1.5 * gpu_hours(trained)
    note = next(table["note"] for table in paper["tables"] if table["title"].startswith("Table 3"))
    assert "4,931 for imagenet-256 where its rows say 2,018" in note
    assert "12,871 for cc12m-1024 where its rows say 14,542" in note


SPEED = {"hardware": "a GPU", "processes": 32, "iteration_s": 1.5, "call_s": None, "drawn_on": ""}


def timed(name: str, **speed: Any) -> list[tuple[str, str, float]]:
    """What stands beside a run of that name, or of a preset in another reading, each of whose stages took so long."""
    of, _, reading = name.partition(" ")
    chosen = choices.overrides(PRESETS[of], reading) if reading else {}
    preset = TIMED[of].resolved if of in TIMED else resolve(of, chosen)
    rows_of_it = [SPEED | {"stage": stage} | speed for stage in preset.stages]
    found = measured(beside_paper(preset, "run", [], rows_of_it))
    assert all(row["hardware"] and row["difference"] == row["ours"] - float(row["printed"]) for row in found)
    return [(row["system"], row["metric"].split(",")[0], row["ours"]) for row in found]


def test_a_speed_stands_beside_one_of_the_same_model_and_batch() -> None:
    assert timed("imagenet-256") == [("MDM", "s per iteration", 1.5), ("MDM (no PT)", "s per iteration", 1.5)]
    by_table_3 = timed("imagenet-256 imagenet-schedule=table-3")
    assert [system for system, *_ in by_table_3] == ["MDM, INet 64", "MDM, INet 64 → 256"]
    assert [system for system, *_ in timed("cc12m-1024")] == ["MDM, CC 64", "MDM, CC 64 → 256"]
    assert "MDM, CC 256 → 1024" in [system for system, *_ in timed("cc12m-1024 batch-1024=table-3")]
    assert timed("tiny") == []


def test_table_2_is_timed_in_training_and_drawing() -> None:
    found = timed("table-2-nested", call_s=0.002, drawn_on="8 × a GPU")
    assert found == [("Nested UNet", "training", 1.5), ("Nested UNet", "inference", pytest.approx(256 * 0.002))]


@pytest.mark.parametrize("name", [name for name, timed in TIMED.items() if not timed.absent])
def test_the_run_of_a_printed_command_is_matched(name: str) -> None:
    assert timed(name)


@pytest.mark.parametrize("name", ["gallery-imagenet", "gallery-256", "gallery-1024", "gallery-1024-five"])
def test_a_gallery_is_drawn_where_its_figures_are(name: str) -> None:
    experiment = EXPERIMENTS[name]
    preset = TRAININGS[experiment.trained].resolved
    points = [
        replace(
            measured_point(preset, "x", 0.0, protocol="gallery", sampling=experiment.sampling(w)),
            metrics=[],
        )
        for w in experiment.guidance
    ]
    drawn = [row["system"] for row in rows(beside_paper(preset, "run", points)) if row["run"]]
    assert drawn == [experiment.where]
    half = [point for point in points if point.sampling.guidance != experiment.guidance[-1:]]
    assert not [row for row in rows(beside_paper(preset, "run", half)) if row["run"]]


def test_a_run_that_measured_it_stands_beside_it() -> None:
    (row,) = measured(beside_13_43())
    assert (row["printed"], row["ours"], row["n"], row["run"]) == ("13.43", 14.1, 30_000, "night")
    assert row["difference"] == pytest.approx(0.67) and row["interval"] == pytest.approx([13.9, 14.3])
    assert row["drawn"] == "ddpm, 250 steps, guidance 1.35" and row["needs"] == ""
    assert [r["printed"] for r in measured(beside_13_43(sampling={"guidance": [1.0]}))] == ["18.35"]


LEGACY, CLEAN = ("coco2014-val-30k", "fid_30k_legacy"), ("coco2014-val-30k", "fid_30k_clean")
RELEASED = ("mdm-released", "fid_29998_legacy")  # some captions are left out


def coco(*found: tuple[str, str, float]) -> dict[str, Any]:
    """The row of 13.43 of a run that measured these: (protocol, metric, value)."""
    preset = resolve("cc12m-256", {"sampling": {"guidance": [1.35]}})
    own: dict[str, dict[str, Any]] = {name: {**protocol.sampling} for name, protocol in PROTOCOLS.items()}
    points = [
        measured_point(preset, metric, value, protocol=name, sampling=replace(preset.sampling, **own[name] | GUIDED))
        for name, metric, value in found
    ]
    (row,) = measured(beside_paper(preset, "run", points))
    return row


def test_every_way_to_measure_coco_has_to_fall_in_the_range() -> None:
    every = coco((*LEGACY, 13.0), (*CLEAN, 14.0), (*RELEASED, 15.0))
    assert (every["verdict"], every["ours"], every["drawn"]) == (
        "reproduced",
        13.0,
        "ddpm, 250 steps, guidance 1.35",
    )
    one = coco((*LEGACY, 13.0))
    assert (one["verdict"], one["ours"]) == ("in part", 13.0)
    assert one["ways"] == [
        "coco2014-val-30k, legacy resize: 13, N = 30,000",
        "coco2014-val-30k, clean resize: not measured",
        "mdm-released, legacy resize: not measured",
    ]
    assert coco((*LEGACY, 13.0), (*CLEAN, 14.0), (*RELEASED, 25.0))["verdict"] == "in part"
    assert coco((*LEGACY, 17.0), (*CLEAN, 18.0))["verdict"] == "OUT OF range"
    script = coco((*RELEASED, 13.0))
    assert (script["verdict"], script["ours"], script["protocol"]) == ("in part", 13.0, "mdm-released")
    assert script["drawn"] == "ddim, 1000 steps, guidance 1.35"


@pytest.mark.parametrize("metric", ["fid_64_legacy", "fid_infinity_30k_legacy"])
def test_another_number_of_images_is_another_measure(metric: str) -> None:
    preset = resolve("cc12m-256", {"sampling": GUIDED})
    point = measured_point(preset, metric, 13.0)
    few = [row | {"n": 64} for row in point.metrics]
    assert measured(beside_paper(preset, "run", [replace(point, metrics=few)])) == []


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
