"""Every number is where the paper prints it, and what it needs exists and costs what Table 3 says."""

import argparse
import shlex
from typing import get_args

import pytest

from flows.cli.options import field_options, overrides
from mdm import choices
from mdm.config import MODELS
from mdm.experiments import (
    EXPERIMENTS,
    IMAGES,
    TIMED,
    TRAININGS,
    Protocol,
    column_hours,
    commands,
    drawing_hours,
    gpu_hours,
    iteration_of,
    run_command,
    stage_key,
)
from mdm.gallery import GALLERY
from mdm.network.costs import parameters
from mdm.paper import GPUS_3, NUMBERS, TABLE_1, TABLE_2, TABLE_3, TABLE_4, TEXT, reproduced
from mdm.presets import PRESETS, resolve

# The tables as the paper prints them, a cell between tabs or bars.
PRINTED_1 = """ADM (Nichol & Dhariwal, 2021)|10.94
CDM (Ho et al., 2022b)|4.88
LDM-4 (Rombach et al., 2022)|10.56
LDM-4* (Rombach et al., 2022)|3.60
Ours (cfg=1)|8.18
Ours (cfg=1.5)*|3.51
LDM-8 (Rombach et al., 2022)|23.31
LDM-8* (Rombach et al., 2022)|12.63
Dalle-2* (Ramesh et al., 2022)|10.39
IMAGEN* (Saharia et al., 2021)|7.27
Ours (cfg=1)|18.35
Ours (cfg=1.35)*|13.43"""
PRINTED_3 = """INet 64|INet 64 → 256|CC 64|CC 64 → 256|CC 256 → 1024|CC 64 → Vid 16x64|Vid 16x64 → 16x256
64|32|64|32|12|8|4
100|375|500|500|100|500|300
1.01|1.21|1.14|1.38|1.88|1.17|2.34"""


def test_the_tables_are_as_printed() -> None:
    assert "\n".join(f"{n.system}|{n.printed}" for n in TABLE_1) == PRINTED_1
    assert [n.data for n in TABLE_1] == ["ImageNet 256×256"] * 6 + ["MS-COCO 256×256"] * 6
    assert [n.printed for n in TABLE_2] == ["0.50", "0.40", "0.52", "0.41"]
    columns, *rows = [line.split("|") for line in PRINTED_3.splitlines()]
    assert list(dict.fromkeys(n.column for n in TABLE_3)) == columns
    for metric, row in zip(("samples per GPU", "iterations (K)", "s per iteration"), rows, strict=True):
        assert [n.printed for n in TABLE_3 if n.metric == metric] == row
    assert [n.printed for n in TABLE_4] == ["1.00", "1.01", "1.03", "0.96", "0.74"]
    assert len(NUMBERS) == 12 + 4 + 21 + 5 + len(TEXT) and all(n.value > 0 for n in NUMBERS)


def test_the_star_is_guidance() -> None:
    assert [n.cfg for n in TABLE_1] == [n.system.count("*") == 1 for n in TABLE_1]
    ours = [n for n in TABLE_1 if n.experiment]
    assert all(n.cfg == (n.guidance != 1) and n.guidance in EXPERIMENTS[n.experiment].guidance for n in ours)
    captions = [n for n in TEXT if n.metric == "guidance weight"]
    assert [n.where for n in captions] == [f"Fig. {number}" for number in range(13, 20)]
    for caption in captions:
        assert {p.guidance for p in GALLERY if p.figure == caption.where} == {caption.guidance}


def test_a_figures_pictures_are_of_the_model_that_draws_their_sizes() -> None:
    for experiment in (e for e in EXPERIMENTS.values() if e.protocol == "gallery"):
        trained = TRAININGS[experiment.trained]
        preset = trained.resolved
        drawn = set(preset.stages[trained.stage].model.resolutions)
        data = {"imagenet": "ImageNet", "cc12m": "CC12M"}[preset.data.name]
        for figure in [] if trained.absent else experiment.where.removeprefix("Fig. ").split(", "):
            first, last = figure.split("-")[0], figure.split("-")[-1]
            for number in range(int(first), int(last) + 1):
                pictures = [p for p in GALLERY if (p.figure, p.data) == (f"Fig. {number}", data)]
                assert any(set(p.px) <= drawn for p in pictures), (experiment.name, number)


def test_what_a_number_needs_exists() -> None:
    assert {n.experiment for n in NUMBERS if n.experiment} - set(EXPERIMENTS) == set(TIMED)
    assert {e.trained for e in EXPERIMENTS.values()} == set(TRAININGS)
    assert {e.protocol for e in EXPERIMENTS.values()} == set(IMAGES) <= set(get_args(Protocol))
    for trained in TRAININGS.values():
        assert trained.preset in PRESETS and trained.stage in trained.resolved.stages
    for experiment in EXPERIMENTS.values():
        preset = TRAININGS[experiment.trained].resolved
        for guidance in experiment.guidance:  # refused where no label was dropped
            preset.stages[TRAININGS[experiment.trained].stage].model.check_sampling(experiment.sampling(guidance))


def test_what_runs_it_is_what_it_needs() -> None:
    for experiment in EXPERIMENTS.values():
        trained = TRAININGS[experiment.trained]
        lines = commands(experiment)
        assert (lines == []) == bool(trained.absent)
        if not lines:
            continue
        parser = argparse.ArgumentParser()
        parser.add_argument("preset")
        field_options(parser)
        given = parser.parse_args(shlex.split(lines[0])[2:])
        assert resolve(given.preset, overrides(given)) == trained.resolved
        assert lines[1].split()[2] == trained.name


def test_a_command_trains_what_its_hours_are_of() -> None:
    for trained in [*TRAININGS.values(), *TIMED.values()]:
        assert list(trained.resolved.stages) == trained.chain(), trained.name


def test_a_speed_is_of_the_printed_batch_and_takes_no_whole_training() -> None:
    samples, seconds = TABLE_3[::3], TABLE_3[2::3]
    batches = {of.experiment: cell.value * GPUS_3 for cell, of in zip(samples, seconds, strict=True)}
    batches |= {"table-2-nested": 128, "table-4-mdm": 256}
    for name, timed in TIMED.items():
        if not timed.absent:
            assert timed.resolved.stages[timed.stage].training.batch_size == batches[name]
            assert gpu_hours([timed]) < 20 and f" --set name={name} " in run_command(timed)
    for preset, reading in (("cc12m-1024", "batch-1024=table-3"), ("imagenet-256", "imagenet-schedule=table-3")):
        for name, stage in resolve(preset, choices.overrides(PRESETS[preset], reading)).stages.items():
            timed = TIMED[f"table-3-{(stage.model.labels and 'imagenet') or 'cc12m'}-{name}"]
            assert iteration_of(stage) == iteration_of(timed.resolved.stages[name])


def test_stages_that_are_one() -> None:
    def keys(name: str) -> list[str]:
        return [stage_key(TRAININGS[name].resolved, stage) for stage in TRAININGS[name].chain()]

    assert keys("cc12m-1024")[:2] == keys("cc12m-256")  # its Table 1 number is its 256² stage's
    assert keys("cc12m-1024-five")[0] == keys("cc12m-256")[0] and keys("cc12m-1024-five")[1] != keys("cc12m-256")[1]
    assert keys("cc12m-1024-five")[:2] == keys("cc12m-256-three")
    assert len(keys("imagenet-256-no-pt")) == 1  # its 64² stage is left out
    points = [EXPERIMENTS[f"fig-8a-{steps}k"].trained for steps in (100, 200, 300)]
    assert len({keys(name)[0] for name in points}) == 1 and len({keys(name)[1] for name in points}) == 3
    plain, dropped = keys("imagenet-256"), keys("imagenet-256-dropout")  # 8.18 and 3.51
    assert set(plain).isdisjoint(dropped)
    faster = resolve("cc12m-256", {"name": "x", "stages": {"256": {"compute": {"compile": False}}}})
    other = resolve("cc12m-256", {"stages": {"64": {"training": {"lr": 1e-3}}}})
    assert stage_key(faster, "256") == keys("cc12m-256")[1] != stage_key(other, "256")


def test_the_cost_is_table_3s() -> None:
    assert column_hours("CC 64 → 256") == pytest.approx(500_000 * 1.38 * 32 / 3600)
    text = [column_hours("CC 64"), column_hours("CC 64 → 256")]

    def hours(*names: str) -> float:
        return gpu_hours(TRAININGS[name] for name in names)

    assert hours("cc12m-256") == pytest.approx(sum(text)) == pytest.approx(11_200)
    assert hours("cc12m-256", "cc12m-1024", "cc12m-256") == pytest.approx(hours("cc12m-1024"))
    # App. B's batch at 1024² is twice what Table 3's 12 images on 32 GPUs come to.
    assert hours("cc12m-1024") == pytest.approx(sum(text) + 2 * column_hours("CC 256 → 1024"))
    batches = {s: stage.training.batch_size for s, stage in PRESETS["cc12m-1024"].stages.items()}
    assert batches == {"64": 64 * GPUS_3, "256": 32 * GPUS_3, "1024": 2 * 12 * GPUS_3}
    assert hours("imagenet-256-latent") == pytest.approx(0.74 * hours("imagenet-256-no-pt"))
    assert hours("video-16x256") > hours("cc12m-1024")
    assert drawing_hours(EXPERIMENTS["table-1-imagenet"]) == pytest.approx(8 * 250 * 50_000 / 256 * 0.41 / 3600)
    assert drawing_hours(EXPERIMENTS["table-1-imagenet-guided"]) == 2 * drawing_hours(EXPERIMENTS["table-1-imagenet"])


def test_what_counts_as_reproduced_was_written_down() -> None:
    ranges = {n.printed: reproduced(n) for n in TABLE_1}
    assert {printed for printed, found in ranges.items() if found} == {"8.18", "3.51", "18.35", "13.43"}
    assert ranges["13.43"] == (pytest.approx(11.279, abs=1e-3), pytest.approx(15.913, abs=1e-3))
    assert ranges["3.51"] == (pytest.approx(3.0), pytest.approx(4.1067))
    assert all(reproduced(n) is None for n in NUMBERS if n.where != "Table 1")


def test_the_text_rounds_the_parameters() -> None:
    stated = next(n for n in TEXT if n.metric == "parameters (M)")
    assert abs(parameters(MODELS["MDM-S64"]) / 1e6 / stated.value - 1) < 0.04
