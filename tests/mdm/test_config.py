"""Configurations: strict reading, impossible combinations, presets."""

import json
import re
from typing import get_args

import pytest

from flows.cli.options import parse_assignments
from flows.starting.overrides import Overrides, PresetName
from mdm.config import Model
from mdm.presets import PRESETS, resolve
from mdm.stage import Training
from mdm.structure import digest, to_dict
from small import LEVELS


@pytest.mark.parametrize("name", PRESETS)
def test_a_printed_preset_is_accepted_back_whole(name: str) -> None:
    printed = json.loads(json.dumps(to_dict(PRESETS[name])))
    assert resolve(name, printed) == PRESETS[name]
    assert Overrides.model_validate(printed).resolve(name) == PRESETS[name]


def test_the_flow_names_every_preset() -> None:
    assert set(get_args(PresetName)) == set(PRESETS)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("stages.16.training.nimg=many", "stages.16.training.nimg must be a whole number, got 'many'"),
        ("stages.17.training.nimg=1", "unknown field stages.17; the stages are 16, 32, 64"),
        ("stages.16.training.nimgs=1", "unknown field stages.16.training.nimgs; the fields are nimg, batch_size"),
        ("seeed=1", "unknown field seeed; the fields are name, summary"),
        ("sampling.sampler=dpm", "sampling.sampler must be one of ddpm, ddim, dpmpp; got 'dpm'"),
        ("stages.16.training.batch_size=0", "training.batch_size must be at least 1, got 0"),
        ("text=clip", "text must be one of flan-t5-xl, flan-t5-xl-512, minilm, or null; got 'clip'"),
        ('stages.32.start={"stage": "64"}', "stages.32.start.stage: no stage '64' before this one; there are 16"),
        ("stages.32.start.milestone=half", "stage 16 has no milestone 'half' in its cadence"),
        ("stages.32.cadence.keep_checkpoints=1", "cadence.keep_checkpoints must be at least 2"),
        ("stages.32.compute.recompute=[64]", "compute.recompute: 64 px is no level of (16, 32)"),
    ],
)
def test_a_wrong_field_is_named_with_the_choices(assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve("tiny", parse_assignments([assignment]))


def test_a_stage_that_is_null_is_left_out() -> None:
    fields = parse_assignments(["stages.16=null", "stages.32.start=null"])
    preset = resolve("tiny", fields)
    assert list(preset.stages) == ["32", "64"] and Overrides.model_validate(fields).resolve("tiny") == preset
    with pytest.raises(ValueError, match="no stage '16' before this one; there are none"):
        resolve("tiny", parse_assignments(["stages.16=null"]))
    with pytest.raises(ValueError, match="a preset needs at least one stage"):
        resolve("tiny", parse_assignments([f"stages.{px}=null" for px in (16, 32, 64)]))


def test_unknown_preset_and_malformed_assignment() -> None:
    with pytest.raises(ValueError, match="unknown preset 'huge'; there are tiny"):
        resolve("huge", {})
    with pytest.raises(ValueError, match="not of the form"):
        parse_assignments(["seed"])


def test_levels_must_fit_each_other() -> None:
    with pytest.raises(ValueError, match="ends at 16 px, inside it is 8 px"):
        Model(levels=(LEVELS[0], LEVELS[2]), text=None, emb_channels=32)


def test_ema_ramps_up_in_short_runs_and_is_constant_in_the_papers() -> None:
    short = Training(nimg=1000, batch_size=10, ema_decay=0.9999, ema_rampup=0.1)
    assert short.ema_decay_at(100) == pytest.approx(0.5)  # a half-life of 10 images
    assert short.ema_decay_at(10**9) == 0.9999
    assert {s.training.ema_decay_at(1) for s in PRESETS["cc12m-1024"].stages.values()} == {0.9999}


def test_learning_rate_warms_up_and_falls() -> None:
    training = Training(nimg=1000, batch_size=10, lr=1.0, warmup_nimg=100, lr_decay=0.5)
    rates = [training.lr_at(n) for n in range(0, 1000, 10)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:50] == [1.0] * 40
    assert rates[-1] == pytest.approx(0.02)


def test_digest_knows_a_changed_field() -> None:
    assert digest(PRESETS["tiny"]) != digest(resolve("tiny", {"seed": 1}))
