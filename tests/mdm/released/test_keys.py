"""The authors' weight files: recognised, converted, refused. The files are made here, with their keys and classes."""

import argparse
import enum
import json
import sys
import types
from collections import OrderedDict
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flows.cli import main
from mdm.config import MODELS, Model
from mdm.network.nested import NestedUNet
from mdm.network.weights import load_weights
from mdm.released.convert import RELEASED, TERMS, convert, fit
from mdm.released.keys import model_from_options

TESTS = Path(__file__).parents[2]
PARAMETERS = {"64x64": 461_359_107, "256x256": 476_613_958, "1024x1024": 480_970_057}
COUNTS = {"64x64": 713, "256x256": 889, "1024x1024": 1063}


def released_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The released file's keys and shapes."""
    prefix = "inner_unet." * (2 - RELEASED.index(name))
    lines = (TESTS / "keys" / "released.txt").read_text().splitlines()[1:]
    pairs = (line.split("\t") for line in lines if line.startswith(prefix))
    return {key.removeprefix(prefix): tuple(int(n) for n in shape.strip("()").split(",") if n) for key, shape in pairs}


def write_file(path: Path, weights: dict[str, Tensor]) -> Path:
    """A file as the authors' trainer writes it: settings of classes that nobody else has, numpy scalars, weights."""
    kinds = {
        "language_models": "LanguageModelConfig",
        "reader": "ReaderConfig",
        "config": "Arguments",
        "models": "UNetConfig",
        "diffusion": "DiffusionConfig",
        "samplers": "SamplerConfig",
        "distributed": "Group",
    }
    with pytest.MonkeyPatch.context() as patch:
        values = {}
        for module_name, kind in kinds.items():
            module = types.ModuleType(module_name)
            made = make_dataclass(kind, [("size", int, 64), ("ratios", list, field(default_factory=lambda: [4, 1]))])
            made.__module__ = module_name
            setattr(module, kind, made)
            patch.setitem(sys.modules, module_name, module)
            values[module_name] = made()
        ScheduleType = enum.Enum("ScheduleType", {"DEEPFLOYD": 3}, module="samplers", qualname="ScheduleType")
        sys.modules["samplers"].ScheduleType = ScheduleType  # type: ignore[attr-defined]
        values["samplers"].type = ScheduleType.DEEPFLOYD
        losses = {name: np.float64(0.1) for name in ("loss", "best_avg_loss", "exp_avg_loss", "exp_avg_loss_var")}
        args = argparse.Namespace(**values, batch_size=32, warmup_steps=10_000.0, output_dir=None)
        state_dict = OrderedDict(weights)
        state_dict._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
        torch.save({"state_dict": state_dict, "batch_num": np.int64(500_000), **losses, "args": args}, path)
    return path


def empty(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights of full size that take no room: all are views of one number."""
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


@dataclass
class Golden:
    """A small network of theirs: its model, weights under their names, inputs and outputs (innermost first)."""

    model: Model
    weights: dict[str, Tensor]
    inputs: tuple[list[Tensor], Tensor, Tensor, Tensor, dict[str, Tensor]]
    outputs: list[Tensor]


@pytest.fixture
def golden() -> Golden:
    spec = json.loads((TESTS / "golden" / "nested16_64.json").read_text())
    tensors = load_file(TESTS / "golden" / "nested16_64.safetensors")

    def part(name: str) -> dict[str, Tensor]:
        return {k.removeprefix(name): t.float() for k, t in tensors.items() if k.startswith(name)}

    given = part("input/")
    inputs = ([given["x1"], given["x0"]], given["timestep"], given["text"], given["text_mask"])
    outputs = [tensors["output/pred1"], tensors["output/pred0"]]
    model = model_from_options(spec["config"], spec["resolutions"], spec["text_dim"])
    return Golden(model, part("weights/"), (*inputs, {"scale": given["scale"]}), outputs)


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_file_is_recognised_and_every_key_has_its_place(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.device("meta"):
        ours = NestedUNet(MODELS[name]).state_dict()
    shapes = released_shapes(name)
    assert sum(p.numel() for p in ours.values()) == PARAMETERS[name]
    assert len(shapes) == len(ours) == COUNTS[name]
    file = write_file(tmp_path / "vis_model.pth", empty(shapes))
    assert main(["convert", str(file), str(tmp_path / "out"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"is {name}; nothing written" in printed and TERMS in printed
    assert not (tmp_path / "out").exists()


def test_what_the_released_models_differ_in() -> None:
    assert [MODELS[name].shift_power for name in RELEASED] == [1, 1, 2]
    normalised = {name: [level.normalize_input for level in MODELS[name].levels] for name in RELEASED}
    assert normalised == {"64x64": [False], "256x256": [False, False], "1024x1024": [False, True, False]}
    assert [level.micro for level in MODELS["1024x1024"].levels] == [
        *((("scale", 64.0),), (("scale", 256.0),), (("scale", 1024.0),))
    ]


@torch.no_grad()
def test_a_converted_file_computes_what_the_released_network_computes(
    tmp_path: Path, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "256x256", golden.model)  # as many levels as it has, so it is taken for that one
    file = write_file(tmp_path / "vis_model.pth", golden.weights)
    assert main(["convert", str(file), str(tmp_path / "out")]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["TERMS.txt", "config.json", "model.safetensors"]
    assert "never be shown as a reproduction on CC12M" in (tmp_path / "out" / "TERMS.txt").read_text()

    network = NestedUNet.from_pretrained(tmp_path / "out")
    direct = NestedUNet(golden.model).eval()
    direct.load_state_dict(fit(golden.weights, golden.model))
    zs, t, text, text_mask, micros = golden.inputs
    outputs, twins = (n(zs, t, text=text, text_mask=text_mask, micros=micros) for n in (network, direct))
    for ours, same, theirs in zip(outputs, twins, golden.outputs, strict=True):
        assert torch.equal(ours, same)
        assert (ours - theirs).abs().max() < 1e-5

    assert main(["convert", str(file), str(tmp_path / "out")]) == 1  # never over another


def test_keys_that_do_not_fit_are_all_named(
    tmp_path: Path, golden: Golden, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(MODELS, "256x256", golden.model)
    golden.weights["colour.weight"] = torch.zeros(1)
    golden.weights["conv_in.bias"] = torch.zeros(5)
    del golden.weights["inner_unet.conv_out.bias"]
    file = write_file(tmp_path / "vis_model.pth", golden.weights)
    assert main(["convert", str(file), str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and str(file) in printed and "3 keys do not fit" in printed
    for part in (
        "unexpected colour.weight",
        "misshapen conv_in.bias: (5,), need (32,)",
        "missing levels.0.conv_out.bias",
    ):
        assert part in printed
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_of_another_model_or_content_is_named(tmp_path: Path) -> None:
    file = write_file(tmp_path / "vis_model.pth", empty(released_shapes("64x64")))
    with pytest.raises(ValueError, match=r"vis_model\.pth: \d+ keys do not fit the model: .*misshapen conv_in"):
        convert(file, tmp_path / "out", "256x256")
    with pytest.raises(ValueError, match=r"unknown model '65x65'; there are .*64x64"):
        convert(file, tmp_path / "out", "65x65")
    deep = write_file(tmp_path / "deep.pth", {"inner_unet." * 3 + "conv_in.bias": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"deep\.pth: 4 nested levels: no released model"):
        convert(deep, tmp_path / "out")
    contents: list[object] = [[1], {"weights": {}}, {"state_dict": {}}]
    for content in contents:
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=r"other\.pth: .*holds no state_dict"):
            convert(tmp_path / "other.pth", tmp_path / "out")
    for key, value in (("a\x1b[2J", torch.zeros(1)), ("a", torch.zeros(1, dtype=torch.int64)), ("a", 1)):
        torch.save({"state_dict": {key: value}}, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=r"in its state_dict is no ") as error:
            convert(tmp_path / "other.pth", tmp_path / "out")
        assert str(error.value).isprintable()


@pytest.mark.filterwarnings("ignore:.*which is a no-op:UserWarning")  # to the meta device nothing is copied
def test_networks_load_and_save_by_folder(tmp_path: Path, golden: Golden) -> None:
    networks = {which: NestedUNet(golden.model) for which in ("ema", "raw")}
    for which, network in networks.items():
        network.save_pretrained(tmp_path / "checkpoint" / which)
    for which, network in networks.items():
        for folder in (tmp_path / "checkpoint", str(tmp_path / "checkpoint" / which)):
            loaded = NestedUNet.from_pretrained(folder, which)  # type: ignore[arg-type]
            assert not loaded.training and all(p.requires_grad for p in loaded.parameters())
            weights = loaded.state_dict()
            assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())
    loaded = NestedUNet.from_pretrained(tmp_path / "checkpoint", device="meta")
    assert all(p.is_meta for p in loaded.parameters())
    loaded = NestedUNet.from_pretrained(tmp_path / "checkpoint" / "raw")
    torch.nn.init.ones_(loaded.levels[0].conv_out.bias)  # type: ignore[union-attr,arg-type]
    loaded.save_pretrained(tmp_path / "checkpoint" / "raw")  # over the file that it was loaded from
    expected = networks["raw"].state_dict() | {"levels.0.conv_out.bias": torch.ones(3)}
    weights = NestedUNet.from_pretrained(tmp_path / "checkpoint", "raw").state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    with pytest.raises(ValueError, match="'ema' or 'raw', got 'best'"):
        NestedUNet.from_pretrained(tmp_path / "checkpoint", "best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is no checkpoint"):
        NestedUNet.from_pretrained(tmp_path)
    ema = tmp_path / "checkpoint" / "ema"
    config = json.loads((ema / "config.json").read_text())
    (ema / "config.json").write_text(json.dumps({**config, "emb_channels": 64}))
    with pytest.raises(ValueError, match=r"ema: model\.safetensors does not fit config\.json"):
        NestedUNet.from_pretrained(ema)
    assert load_weights(ema)[0].emb_channels == 64
