"""What a stage starts from: another stage's weights bit for bit, fresh levels around them, Adam's state or none."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mdm.network.nested import NestedUNet
from mdm.network.weights import load_weights
from mdm.run.checkpoint import Contents, save_checkpoint
from mdm.stage import Cadence, Start
from mdm.training.progressive import start_folder
from small import small_model

WEIGHTS: tuple[Literal["ema", "raw"], ...] = ("ema", "raw")


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one level whose raw weights, EMA and moments all differ."""
    torch.manual_seed(1)
    network = NestedUNet(small_model(1))
    raw, ema = ({name: torch.randn_like(p) for name, p in network.named_parameters()} for _ in range(2))
    moments = {f"{key}/{name}": torch.rand_like(raw[name]) for name in raw for key in ("exp_avg", "exp_avg_sq")}
    moments |= {f"step/{name}": torch.tensor(7.0) for name in raw}
    checkpoints = tmp_path_factory.mktemp("run") / "checkpoints"
    return save_checkpoint(checkpoints, Contents(8, 1, network.config, raw, ema, {"optimizer": moments}, {}), Cadence())


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("levels", [1, 2, 3])  # carried on as it is, grown by one level, by two at once
@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_old_levels_are_the_parents_and_the_new_ones_the_same_in_raw_and_ema(
    parent: Path, tmp_path: Path, weights: Literal["ema", "raw"], levels: int
) -> None:
    grown = small_model(levels)
    start_folder(parent, Start(stage="a", weights=weights), grown, tmp_path, seed=3)
    (raw_model, raw), (ema_model, ema) = load_weights(tmp_path / "raw"), load_weights(tmp_path / "ema")
    assert raw_model == ema_model == grown
    assert raw.keys() == ema.keys() == dict(NestedUNet(grown).named_parameters()).keys()
    old_raw, old_ema = load_weights(parent / weights)[1], load_weights(parent / "ema")[1]
    assert equal({name: raw[name] for name in old_raw}, old_raw)
    assert equal({name: ema[name] for name in old_ema}, old_ema)
    new = raw.keys() - old_raw.keys()
    assert equal({name: raw[name] for name in new}, {name: ema[name] for name in new})
    assert bool(new) == (levels > 1)
    NestedUNet(grown).load_state_dict(raw)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_adams_state_is_carried_unchanged_or_left_behind(
    parent: Path, tmp_path: Path, weights: Literal["ema", "raw"]
) -> None:
    carried = Start(stage="a", weights=weights, optimizer="carried")
    start_folder(parent, carried, small_model(2), tmp_path, seed=0)
    moments = load_file(parent / "state" / "optimizer.safetensors")
    assert equal(load_file(tmp_path / "optimizer.safetensors"), moments)
    assert {key.split("/")[1] for key in moments} == load_weights(parent / "raw")[1].keys()  # none of the new level
    start_folder(parent, Start(stage="a", weights=weights), small_model(2), tmp_path, seed=0)
    assert not (tmp_path / "optimizer.safetensors").exists()


def test_another_seed_makes_other_new_levels_only(parent: Path, tmp_path: Path) -> None:
    folders = [tmp_path / str(seed) for seed in (0, 0, 1)]
    for seed, folder in zip((0, 0, 1), folders, strict=True):
        start_folder(parent, Start(stage="a"), small_model(2), folder, seed)
    first, other = (load_weights(folder / "raw")[1] for folder in (folders[0], folders[2]))
    old = load_weights(parent / "ema")[1]
    different = {name for name in first if not torch.equal(first[name], other[name])}
    assert different and not different & old.keys()


def test_what_cannot_be_grown_is_refused(parent: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no checkpoint"):
        start_folder(parent / "nothing", Start(stage="a"), small_model(2), tmp_path / "x", seed=0)
    other = replace(small_model(2), emb_channels=48)
    with pytest.raises(ValueError, match="everything but the levels must stay"):
        start_folder(parent, Start(stage="a"), other, tmp_path / "x", seed=0)
