"""How often a training saves, and what it keeps, changes nothing of what it learns."""

from pathlib import Path

import pytest
from trainers import final_state, prepare

from mdm.network.weights import load_weights
from mdm.presets import PRESETS
from mdm.run.checkpoint import list_points
from mdm.run.folder import list_folders, nimg_of
from mdm.stage import Cadence
from mdm.training.train import main as train
from small import small_job


def trained(folder: Path, squares: Path, **cadence: float) -> Path:
    run = prepare(folder, small_job(squares, nimg=72, **{"checkpoint_every_nimg": 800} | cadence))
    assert train([str(run)]) == 0
    return run


def saved(run: Path) -> list[int]:
    return [nimg_of(folder) for folder in list_folders(run / "checkpoints")]


def test_the_clock_saves_and_kept_points_stay(squares: Path, tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", squares, keep_checkpoints=9)
    clock: dict[str, float] = {"checkpoint_every_nimg": 0, "checkpoint_every_minutes": 1e-9, "keep_ema_every_nimg": 20}
    often = trained(tmp_path / "often", squares, **clock)
    assert saved(plain) == [0, 72] and saved(often) == [64, 72]  # a checkpoint after every step
    assert [nimg_of(folder) for folder in list_points(often)] == [24, 40, 64, 72]  # the steps past 20, 40, 60; the end
    assert [folder.parent.name for folder in list_points(often)] == ["kept", "kept", "checkpoints", "checkpoints"]
    assert final_state(often) == final_state(plain)
    seldom = trained(tmp_path / "seldom", squares, **clock | {"checkpoint_every_minutes": 1000})
    assert saved(seldom) == [0, 72]
    exact = trained(tmp_path / "exact", squares, checkpoint_every_nimg=8, keep_checkpoints=99)
    for folder in list_points(often):
        _, kept = load_weights(folder / "ema")
        _, whole = load_weights(exact / "checkpoints" / folder.name / "ema")
        assert all((kept[name] == whole[name]).all() for name in whole)


def test_a_training_that_would_never_save_is_refused() -> None:
    with pytest.raises(ValueError, match=r"checkpoint_every_nimg is 0: set checkpoint_every_minutes"):
        Cadence(checkpoint_every_nimg=0)
    with pytest.raises(ValueError, match="checkpoint_every_minutes must not be negative"):
        Cadence(checkpoint_every_minutes=-1)


def test_paper_presets_keep_what_the_figures_need() -> None:
    for name, preset in PRESETS.items():
        for stage in preset.stages.values() if name != "tiny" else ():
            cadence, training = stage.cadence, stage.training
            assert cadence.checkpoint_every_minutes == 30 and cadence.checkpoint_every_nimg == 0
            assert training.nimg / cadence.keep_ema_every_nimg == 20
    assert PRESETS["imagenet-256"].stages["64"].cadence.milestones == {"200k": 200_000 * 512}
    assert PRESETS["cc12m-1024-five"].stages["64"].cadence.milestones == {"390k": 390_000 * 2048}
    assert PRESETS["cc12m-1024"].stages["256"].cadence.milestones == {}
