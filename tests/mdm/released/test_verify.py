"""The golden tensors, and that the comparison can fail."""

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from flows.cli import main
from mdm.released.verify import verify_folder

GOLDEN = Path(__file__).parents[2] / "golden"


def test_every_golden_output_is_reproduced() -> None:
    comparisons = list(verify_folder(GOLDEN))
    assert {c.file for c in comparisons} == {f.name for f in GOLDEN.glob("*.safetensors")}
    assert len(comparisons) > 80
    assert [c for c in comparisons if not c.passed] == []


def copy(folder: Path, *names: str) -> Path:
    for name in names:
        shutil.copy(GOLDEN / name, folder / name)
    return folder


def test_a_changed_weight_fails_and_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy(tmp_path, "unet16.json", "unet16.safetensors")
    assert main(["verify", str(folder)]) == 0
    tensors = load_file(folder / "unet16.safetensors")
    tensors["weights/conv_out.bias"] = tensors["weights/conv_out.bias"] + 0.01
    save_file(tensors, folder / "unet16.safetensors")
    assert main(["verify", str(folder)]) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec: spec["config"].update(temporal_mode=True), "temporal_mode"),
        (lambda spec: spec["config"].update(colour=1), "unknown option 'colour'"),
        (lambda spec: spec.pop("resolutions"), "lacks 'resolutions'"),
        (lambda spec: spec["config"].update(num_lm_head_layers=2), "missing text.layers.1"),
        (lambda spec: spec["config"].update(resolution_channels=[32, 64]), "misshapen down_blocks.1"),
    ],
)
def test_a_description_that_does_not_fit_is_named(tmp_path: Path, change, message: str) -> None:
    folder = copy(tmp_path, "unet16.json", "unet16.safetensors")
    spec = json.loads((folder / "unet16.json").read_text())
    change(spec)
    (folder / "unet16.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match=re.escape("unet16.safetensors: ")) as error:
        list(verify_folder(folder))
    assert message in str(error.value)


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no golden files"):
        list(verify_folder(tmp_path))
    copy(tmp_path, "unet16.json")
    with pytest.raises(ValueError, match=r"unet16\.json has no unet16\.safetensors"):
        list(verify_folder(tmp_path))
    (tmp_path / "unet16.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        list(verify_folder(tmp_path))
