"""Which checkpoint a user's own prompts are drawn from, and what the pictures are called."""

import shlex
import shutil
from pathlib import Path

import pytest
import torch

from evaluation.images.prompts import furthest_checkpoint, picture_path, this_checkpoint
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


def test_prompts_in_any_script_have_files_of_their_own(tmp_path: Path) -> None:
    asked = [["red heart"], ["red heart", "star"], ["Red heart!"], ["красное сердце"], ["синее сердце"], ["红心"]]
    asked += [["❤"], ["★"]]
    (tmp_path / "prompts").mkdir()
    paths = [picture_path(tmp_path, prompts, 0, None) for prompts in asked]
    assert len({path.name.lower() for path in paths}) == len(asked)
    assert paths[0].name.startswith("red-heart-") and paths[3].name.startswith("красное-сердце-")
    assert picture_path(tmp_path, ["ꦄ" * 200], 0, None).with_suffix(".touched").write_text("") == 0  # not too long


def test_where_pictures_go(tmp_path: Path) -> None:
    name = picture_path(tmp_path, ["a"], 0, None).name
    for folder in (f"{tmp_path}/new/", str(tmp_path)):
        assert picture_path(tmp_path, ["a"], 0, folder) == Path(folder) / name
    assert picture_path(tmp_path, ["a"], 0, "there.webp") == Path("there.webp")
    for wrong in ("there", "there.txt", "there.psd"):
        with pytest.raises(ValueError, match=rf"-o {wrong}: .* give FILE\.png, or FOLDER/"):
            picture_path(tmp_path, ["a"], 0, wrong)
