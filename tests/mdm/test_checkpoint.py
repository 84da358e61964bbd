"""Checkpoints: whole or not at all, and never trusted unread."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from mdm.checkpoint import list_checkpoints, load_weights, milestone_checkpoint, newest_checkpoint, save_checkpoint
from mdm.nested import NestedUNet
from small import small_model


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints at 1, 2, 3 images; the oldest was dropped."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    folder.mkdir()
    network = NestedUNet(small_model(1))
    weights = dict(network.named_parameters())
    for nimg in (1, 2, 3):
        save_checkpoint(
            folder, nimg, network.config, weights, weights, {"step/x": torch.ones(1)}, {"nimg": nimg}, keep=2
        )
    return folder


def test_only_the_newest_are_kept_and_load(three: Path) -> None:
    assert [p.name[-1] for p in list_checkpoints(three)] == ["2", "3"]
    folder, passed_over = newest_checkpoint(three)
    assert folder is not None
    assert (folder.name[-1], passed_over) == ("3", [])
    assert NestedUNet.from_pretrained(folder / "ema").config == small_model(1)


def test_any_damage_to_the_newest_is_found_and_the_one_before_is_used(three: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    files = sorted(p.relative_to(three) for p in list_checkpoints(three)[-1].rglob("*") if p.is_file())
    for i in range(60):
        copy = shutil.copytree(three, tmp_path / str(i))
        victim = copy / files[i % len(files)]
        content = bytearray(victim.read_bytes())
        kind = draw.choice(["flip", "cut", "delete"])
        if kind == "flip":
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        if kind == "delete":
            victim.unlink()
        else:
            victim.write_bytes(content[: draw.randrange(len(content))] if kind == "cut" else content)
        folder, passed_over = newest_checkpoint(copy)
        assert folder is not None, (kind, victim)
        assert folder.name[-1] == "2" and "damaged" in passed_over[0], (kind, victim)


def test_a_half_written_one_is_not_seen(three: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(three, tmp_path / "c")
    shutil.copytree(list_checkpoints(copy)[-1], copy / "nimg-000000000004.tmp")
    assert [p.name[-1] for p in list_checkpoints(copy)] == ["2", "3"]


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no checkpoint"):
        load_weights(tmp_path)


def test_a_milestone_is_found_by_its_name(three: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(three, tmp_path / "c")
    folder = list_checkpoints(copy)[0]
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "milestone": "early"}))
    assert milestone_checkpoint(copy, "early") == folder
    with pytest.raises(ValueError, match="no milestone 'late'"):
        milestone_checkpoint(copy, "late")
    (folder / "raw" / "config.json").unlink()
    with pytest.raises(ValueError, match="milestone early, is damaged"):
        milestone_checkpoint(copy, "early")
