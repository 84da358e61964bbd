"""Pictures of prompts have names of their own, and go where they are told."""

from pathlib import Path

import pytest

from evaluation.prompts import picture_path


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
