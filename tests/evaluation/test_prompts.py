"""Which checkpoint a user's own prompts are drawn from: the last one, another that was asked for, never one unasked."""

import shlex
import shutil
from pathlib import Path

import pytest
import torch

from evaluation.prompts import furthest_checkpoint, this_checkpoint
from mdm.network.nested import NestedUNet
from mdm.presets import PRESETS, Preset
from mdm.run.checkpoint import Contents, save_checkpoint
from mdm.stage import Cadence
from small import small_model

TINY: Preset = PRESETS["tiny"]
FIRST, SECOND, *_ = TINY.stages


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The first stage at 8 and 16 images, the second at 8, the third not begun."""
    torch.manual_seed(0)
    weights = NestedUNet(small_model(1)).state_dict()
    for stage, nimg in ((FIRST, 8), (FIRST, 16), (SECOND, 8)):
        made = Contents(nimg, 1, small_model(1), weights, weights, {}, {})
        save_checkpoint(tmp_path / "a run" / stage / "checkpoints", made, Cadence())
    return tmp_path / "a run"


def damage(folder: Path) -> None:
    (folder / "ema" / "model.safetensors").write_bytes(b"torn")


def test_an_unfinished_run_is_drawn_from_its_furthest_stage_and_that_is_said(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage, checkpoint = furthest_checkpoint(run, TINY)
    assert (stage, checkpoint.name) == (run / SECOND, "nimg-000000000008")
    assert f"not finished: drawing from {SECOND}, nimg-000000000008" in capsys.readouterr().err


def test_a_damaged_one_is_refused_and_another_taken_where_it_is_asked_for(run: Path) -> None:
    damage(run / SECOND / "checkpoints" / "nimg-000000000008")
    with pytest.raises(ValueError, match=r"is damaged .*to draw from another: --checkpoint") as refused:
        furthest_checkpoint(run, TINY)
    option, folder = shlex.split(str(refused.value).partition("another: ")[2])
    assert option == "--checkpoint"
    assert this_checkpoint(run, Path(folder)) == (run / FIRST, run / FIRST / "checkpoints" / "nimg-000000000016")
    with pytest.raises(ValueError, match="is damaged"):
        this_checkpoint(run, run / SECOND / "checkpoints" / "nimg-000000000008")
    shutil.copytree(run / FIRST / "checkpoints" / "nimg-000000000016", run.parent / "elsewhere")
    with pytest.raises(ValueError, match="is no checkpoint of"):
        this_checkpoint(run, run.parent / "elsewhere")
