"""Hours, checkpoints and the printed page of a forecast."""

from dataclasses import replace
from typing import Any

import pytest

from mdm.forecast.forecast import Machine, forecast, kept_checkpoints, table
from mdm.network.costs import model_flops_per_image, parameters
from mdm.presets import PRESETS
from mdm.stage import Cadence, Compute, Stage, Start, Training
from small import small_model


def small_stage(**cadence: Any) -> Stage:
    training = Training(nimg=990, batch_size=16, low_only=0.5)
    return Stage(model=small_model(2), training=training, cadence=Cadence(**cadence))


def test_hours_follow_from_flop_and_speed() -> None:
    stage = small_stage()
    flops = 992 * model_flops_per_image(stage.model, stage.training)  # 62 whole steps
    on_cpus = forecast(stage, Machine(device="cpu", processes=2, gflops=5))
    assert on_cpus.seconds == pytest.approx(flops / 10e9)
    on_gpus = forecast(stage, Machine(device="cuda", processes=4, gpu="V100", utilisation=0.2))
    assert on_gpus.precision == "float32"
    assert on_gpus.seconds == pytest.approx(flops / (4 * 0.2 * 15.7e12))


@pytest.mark.parametrize(
    ("cadence", "kept"),
    [
        ({"checkpoint_every_nimg": 100}, 2),  # the newest
        ({"checkpoint_every_nimg": 100, "keep_checkpoints": 5}, 5),
        ({"checkpoint_every_nimg": 2000, "keep_checkpoints": 5}, 2),  # the first and the last are all there are
        ({"checkpoint_every_nimg": 100, "keep_every_nimg": 400}, 4),  # 400, 800; 912, 992
        ({"checkpoint_every_nimg": 100, "milestones": {"early": 150, "end": 990}}, 3),
        ({"checkpoint_every_nimg": 0, "checkpoint_every_minutes": 30, "milestones": {"early": 150, "end": 990}}, 3),
    ],
)
def test_kept_checkpoints(cadence: dict[str, Any], kept: int) -> None:
    stage = small_stage(**cadence)
    assert kept_checkpoints(stage.training, stage.cadence) == kept


def test_storage_adds_up() -> None:
    weights = 4 * parameters(small_model(2))
    machine = Machine(device="cpu", processes=1)
    assert forecast(small_stage(), machine).storage_bytes == 2 * 4 * weights
    grown = replace(small_stage(average_every_nimg=300), start=Start(stage="8"))
    found = forecast(grown, machine)
    assert (found.snapshots, found.snapshot_bytes, found.checkpoint_bytes) == (3, 2 * weights, 6 * weights)
    assert found.storage_bytes == 3 * 2 * weights + 2 * 6 * weights + weights
    kept = forecast(small_stage(keep_ema_every_nimg=300), machine)  # beside the last checkpoint's
    assert (kept.kept_emas, kept.storage_bytes) == (3, 2 * 4 * weights + 3 * weights)


def test_what_cannot_run_is_named() -> None:
    stage = replace(small_stage(), compute=Compute(max_batch_per_process=6))
    with pytest.raises(ValueError, match=r"stages\.8\.training\.batch_size 16 does not divide by 3 processes"):
        table({"8": stage}, Machine(device="cpu", processes=3))
    with pytest.raises(ValueError, match=r"stages\.8\.compute\.max_batch_per_process: 16 images per process .* of 6"):
        table({"8": stage}, Machine(device="cpu", processes=1))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"gpu": "A99"}, "no peak is known"),
        ({"utilisation": 30}, "--utilisation"),
        ({"gflops": 0}, "--gflops"),
        ({"processes": 0}, "--processes"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            Machine(**{"device": "cuda", "processes": 1, **options})


def test_the_page_fits_a_terminal() -> None:
    stages = dict(PRESETS["tiny"].stages)
    stages["64"] = replace(stages["64"], compute=Compute(recompute=(64,)), cadence=Cadence(average_every_nimg=100))
    for machine in (Machine(device="cpu", processes=2), Machine(device="cuda", processes=8)):
        lines = table(stages, machine).splitlines()
        assert max(map(len, lines)) <= 120
        assert lines[0].split() == ["stage", "16", "32", "64", "in", "all"]
        assert any(line.startswith("  with what is recomputed") for line in lines)
        snapshots = f" {forecast(stages['64'], machine).snapshots} x "
        assert any(line.startswith("snapshots for mdm ema") and snapshots in line for line in lines)
        assert any(line.startswith("GPU-hours") for line in lines) == (machine.device == "cuda")
