"""Export for diffusers: every parameter has one place there, of the same shape."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flows.cli import main
from mdm.config import MODELS
from mdm.network.nested import NestedUNet
from mdm.network.weights import save_weights
from mdm.released.diffusers_export import export, options, rename
from small import small_model

RELEASED = ("64x64", "256x256", "1024x1024")
KEYS = Path(__file__).parents[2] / "keys" / "diffusers.txt"


@pytest.mark.parametrize("name", RELEASED)
def test_every_parameter_has_one_place_of_its_shape(name: str) -> None:
    prefix = "inner_unet." * (2 - RELEASED.index(name))
    lines = (line.split("\t") for line in KEYS.read_text().splitlines()[1:] if line.startswith(prefix))
    theirs = {key.removeprefix(prefix): shape for key, shape in lines}
    with torch.device("meta"):
        ours = NestedUNet(MODELS[name]).state_dict()
    renamed = {rename(key, MODELS[name]): str(tuple(tensor.shape)) for key, tensor in ours.items()}
    assert len(renamed) == len(ours)
    assert renamed == theirs


def test_the_options_of_a_nest() -> None:
    whole = options(MODELS["1024x1024"])
    middle = whole["inner_config"]
    inner = middle["inner_config"]
    assert whole["_class_name"] == "NestedUNet2DConditionModel"
    assert options(MODELS["64x64"])["_class_name"] == "MatryoshkaUNet2DConditionModel"
    nest = (whole, middle, inner)
    assert [level["sample_size"] for level in nest] == [1024, 256, 64]
    assert [level["micro_conditioning_scale"] for level in nest] == [1024, 256, 64]
    assert [level["nesting"] for level in nest] == [False, True, True]
    assert [level.get("skip_normalization") for level in nest] == [True, False, None]
    assert [level.get("encoder_hid_dim") for level in nest] == [None, None, 2048]
    assert inner["up_block_types"] == ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]


def test_a_folder_is_written_whole_with_its_terms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow model in the place of a released one: the way through the files is the same."""
    model = MODELS["tiny-16-32"]
    monkeypatch.setitem(MODELS, "256x256", model)
    network = NestedUNet(model)
    network.save_pretrained(tmp_path / "weights")
    (tmp_path / "weights" / "TERMS.txt").write_text("terms")
    command = ["export", str(tmp_path / "weights"), str(tmp_path / "out")]
    assert main([*command, "--dry-run"]) == 0 and not (tmp_path / "out").exists()
    assert main(command) == 0
    target = tmp_path / "out" / "unet" / "nesting_level_1"
    assert [p.name for p in target.parent.iterdir()] == ["nesting_level_1"]
    written = load_file(target / "diffusion_pytorch_model.safetensors")
    state = network.state_dict()
    assert len(written) == len(state)
    assert all(torch.equal(written[rename(name, model)], tensor) for name, tensor in state.items())
    assert json.loads((target / "config.json").read_text())["inner_config"]["block_out_channels"] == [32, 48, 64]
    assert (target / "TERMS.txt").read_text() == "terms"
    assert main(command) == 1  # never over another


def test_another_model_is_refused(tmp_path: Path) -> None:
    model = small_model(1)
    save_weights(tmp_path / "weights", model, NestedUNet(model).state_dict())
    with pytest.raises(ValueError, match="holds the models 64x64, 256x256 and 1024x1024 only"):
        export(tmp_path / "weights", tmp_path / "out")
