"""What decides a result and what does not; runs of the first format are known as what they are."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluation.images.captions import Line
from flows.home import run_folder
from flows.inputs import (
    DataInputs,
    data_inputs,
    first_stage,
    first_start,
    metrics_inputs,
    sample_inputs,
    stage_inputs,
    start_inputs,
)
from flows.markers import once, read_done
from flows.reproduction import run_name
from flows.starting.overrides import Overrides
from mdm.data.embeddings import TextSource
from mdm.files import write_json
from mdm.presets import PRESETS, Preset, resolve, today
from mdm.structure import digest, from_dict, to_dict

# inputs.json, done.json, job.json … of a finished `tiny`, as the first format had them.
FIRST = json.loads((Path(__file__).parent / "first_format.json").read_text())
PRESET = from_dict(Preset, today(FIRST["config.json"]))
MADE_OF = DataInputs(
    train=FIRST["16/inputs.json"]["inputs"]["data"][0],
    encoder=FIRST["16/job.json"]["text"]["encoder_digest"] + "-tokens",  # which the first format did not know
)
TEXT = TextSource(encoder="minilm", encoder_digest=str(MADE_OF.encoder), way="cached-8bit")


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """The run's folder."""
    for name, value in FIRST.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_json(tmp_path / name, value)
    return tmp_path


LINES = [Line(index=i, key=f"1F3CA-{i}", caption="woman swimming", seed=i) for i in range(4)]
WEIGHTS = FIRST["samples/inputs.json"]["inputs"]["weights"]


def nothing() -> dict[str, Any]:
    raise AssertionError("made again")


def test_a_finished_training_of_the_first_format_is_done(first: Path) -> None:
    assert data_inputs(MADE_OF.train, TEXT) == MADE_OF  # 8 bits or not
    for name, stage in PRESET.stages.items():
        if stage.start is not None:
            assert once(first / f"grow-{name}", start_inputs(PRESET, name, MADE_OF), nothing, print, first_start)[
                "from"
            ]
        assert once(first / name, stage_inputs(PRESET, name, MADE_OF), nothing, print, first_stage)["reused"]
    assert read_done(first / "samples", sample_inputs(PRESET, WEIGHTS, TEXT)) is None  # its noise was another
    assert {
        str(p.relative_to(first)): json.loads(p.read_text()) for p in first.rglob("*.json")
    }.items() >= FIRST.items()


def test_what_the_first_format_was_made_of_still_counts(first: Path) -> None:
    for other in (replace(MADE_OF, train="other pictures"), replace(MADE_OF, encoder="another encoder")):
        assert all(read_done(first / n, stage_inputs(PRESET, n, other), first_stage) is None for n in PRESET.stages)
    slower = resolve_stage("16", lr=1e-3)
    assert read_done(first / "64", stage_inputs(slower, "64", MADE_OF), first_stage) is None  # its ancestor is another
    (first / "16" / "inputs.json").write_text("torn")
    assert read_done(first / "32", stage_inputs(PRESET, "32", MADE_OF), first_stage) is None


def resolve_stage(name: str, **training: Any) -> Preset:
    stage = PRESET.stages[name]
    return replace(PRESET, stages={**PRESET.stages, name: replace(stage, training=replace(stage.training, **training))})


def test_metrics_are_of_a_revision_and_samples_are_not() -> None:
    """A takedown of held-out data draws nothing and trains nothing anew: its metrics alone are another's."""
    samples, made = sample_inputs(PRESET, WEIGHTS, TEXT), {"digest": "val", "revision": 0}
    before = metrics_inputs(PRESET, samples, LINES, made, made)
    assert before == metrics_inputs(PRESET, samples, LINES[::-1], made, made)
    for other in (
        metrics_inputs(PRESET, samples, LINES, made, {**made, "revision": 1}),
        metrics_inputs(PRESET, samples, LINES, {**made, "revision": 1}, made),
        metrics_inputs(PRESET, samples, LINES, {**made, "removed": "0123"}, made),
        metrics_inputs(PRESET, samples, LINES, made, {**made, "digest": "other"}),
        metrics_inputs(PRESET, samples, LINES[1:], made, made),
        metrics_inputs(PRESET, replace(samples, weights="other"), LINES, made, made),
    ):
        assert digest(other) != digest(before)
    batch = replace(PRESET, sampling=replace(PRESET.sampling, batch_size=3))
    assert sample_inputs(batch, WEIGHTS, TEXT) == samples
    assert sample_inputs(PRESET, WEIGHTS, replace(TEXT, way="online", folder="/weights")) == samples


# -- a run's name ------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MDM_HOME", str(tmp_path))
    return tmp_path


def named(**changes: Any) -> str:
    return run_name(Overrides(**changes).resolve("tiny"))


def test_a_runs_name_comes_from_what_decides_results(home: Path) -> None:
    assert named() == "tiny"
    for same in (
        {"hardware": {"processes": 1, "threads": 2, "device": "cuda", "data_workers": 3}},
        {"storage": {"check": "digest", "tolerate": 3}, "embeddings": "online"},
        {"stages": {"16": {"compute": {"precision": "float32"}, "cadence": {"log_every_nimg": 16}}}},
        {"sampling": {"batch_size": 2}},
    ):
        assert named(**same) == "tiny"
    others = [
        named(**other)
        for other in (
            {"seed": 1},
            {"data": {"limit": 100}},
            {"sampling": {"steps": 3}},
            {"evaluation": {"num_real": 10}},
            {"stages": {"16": {"training": {"nimg": 640}}}},
        )
    ]
    assert len(set(others)) == 5 and all(name.startswith("tiny-") for name in others)
    assert run_name(resolve("cc12m-256", {"data": {"name": "other"}})) != "cc12m-256"
    assert named(seed=1, hardware={"threads": 2}) == named(seed=1)
    assert named(name="mine", seed=1) == "mine"


def test_a_run_that_was_named_by_an_earlier_rule_is_resumed(home: Path) -> None:
    first = resolve("tiny", {"seed": 1, "hardware": {"threads": 2}})
    write = run_folder("tiny-0ld123")
    write.mkdir(parents=True)
    write_json(write / "config.json", to_dict(first))
    foreign = run_folder("tiny-0foreign")
    foreign.mkdir()
    write_json(foreign / "config.json", {"name": "tiny"})
    assert named(seed=1) == "tiny-0ld123"
    assert named(seed=2) != "tiny-0ld123"
    assert run_name(PRESETS["tiny"]) == "tiny"
