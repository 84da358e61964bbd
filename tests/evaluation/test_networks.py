"""Inception, CLIP and DINOv2 by the code that loads the real files, on files of their formats with random weights."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from numpy.typing import NDArray
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import save_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from evaluation.networks.clip import Clip
from evaluation.networks.dinov2 import DinoV2, interpolate_positions
from evaluation.networks.features import Extractor
from evaluation.networks.inception import InceptionV3
from evaluation.networks.resize import bicubic, bicubic_square, bicubic_uint8
from evaluation.networks.weights import (
    CLIP_B_16,
    CLIP_B_32,
    CLIP_L_14,
    CLIP_L_14_336,
    DINOV2_L_14,
    WeightFile,
    Weights,
    find_weights,
)
from evaluation.results import KID, Result
from random_weights import row_of, small_layers, without_hash, write_inception

# TorchScript's end is announced; NVIDIA's file is what it is.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")

Uint8 = NDArray[np.uint8]
TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """In a folder of its own under the real name, where clean-fid can find it, too."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("inception")
    return find_weights(write_inception(folder / "inception-2015-12-05.pt", small_layers()), folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """A file as open_clip loads it, of a model that is small and trained with QuickGELU."""
    folder = tmp_path_factory.mktemp("clip")
    for name, quick in (("random-tiny-quickgelu", True), ("random-tiny", False)):
        (folder / f"{name}.json").write_text(json.dumps({**TINY_CLIP, "quick_gelu": quick}))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    file = folder / "clip.safetensors"
    save_file(open_clip.create_model("random-tiny").state_dict(), file)
    return find_weights(row_of(file, "random_clip", "random-tiny-quickgelu", quick_gelu=True), folder)


@pytest.fixture(scope="module")
def photo() -> Uint8:
    """A photograph of 300 x 256 px, uint8 [H, W, 3]."""
    import matplotlib.cbook

    with Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as picture:
        return np.asarray(picture.convert("RGB").crop((100, 50, 400, 306)))


def to_tensor(*pictures: Uint8) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("px", [64, 256, 300, 1024])
def test_resize_equals_clean_fids_pillow(px: int, drawings: Uint8, photo: Uint8) -> None:
    resize = build_resizer("clean")
    noise = np.random.default_rng(0).integers(0, 256, (px, px, 3), np.uint8)
    for picture in (noise, np.asarray(Image.fromarray(photo).resize((px, px)))):
        ours = bicubic(to_tensor(picture).float(), 299, 299).clamp(0, 255)[0].permute(1, 2, 0).numpy()
        assert np.abs(ours - resize(picture)).max() < 1e-4  # of 255


def test_inception_equals_clean_fid(inception: Weights, drawings: Uint8, photo: Uint8) -> None:
    clean = InceptionV3W(str(inception.path.parent), download=False, resize_inside=False).eval()
    legacy = InceptionV3W(str(inception.path.parent), download=False, resize_inside=True).eval()
    resize = build_resizer("clean")
    for pictures in (drawings[:8].transpose(0, 2, 3, 1), photo[None], photo[None, :64, :250]):
        images = to_tensor(*pictures)
        resized = torch.from_numpy(np.stack([resize(picture) for picture in pictures]).transpose(0, 3, 1, 2).copy())
        with torch.no_grad():
            expected = {"clean": clean(resized).numpy(), "legacy": legacy(images.float()).numpy()}
        for how in ("clean", "legacy"):
            extractor = InceptionV3(inception, how)
            assert extractor.name == f"random_inception_{how}"
            found = extractor.extract(images)
            np.testing.assert_allclose(found, expected[how], atol=1e-5 * expected[how].max())
        assert np.abs(expected["clean"] - expected["legacy"]).max() > 1e-4 * expected["clean"].max()


def test_inception_score_takes_the_logits_without_bias(inception: Weights, drawings: Uint8) -> None:
    extractor = InceptionV3(inception, "legacy")
    logits = extractor.logits(extractor.extract(drawings[:3]))
    plain = torch.jit.load(inception.path)
    expected = plain(torch.from_numpy(drawings[:3]).float(), no_output_bias=True).detach()
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(1).numpy(), expected.numpy(), rtol=1e-4)


def test_other_networks_are_no_inception(tmp_path: Path, clip: Weights) -> None:
    """Neither TorchScript of another network, nor no TorchScript, nor half a file whose sha256 nobody knows."""
    write_inception(tmp_path / "wide.pt", torch.nn.Sequential(small_layers()[:-1], torch.nn.AdaptiveAvgPool2d(2)))
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "linear.pt"))
    whole = write_inception(tmp_path / "whole.pt", small_layers())
    (tmp_path / "cut.pt").write_bytes((tmp_path / whole.file).read_bytes()[:-5000])
    (tmp_path / "clip.pt").write_bytes(clip.path.read_bytes())
    for file in ("wide.pt", "linear.pt", "cut.pt", "clip.pt"):
        weights = find_weights(without_hash(row_of(tmp_path / file, "random_inception")), tmp_path)
        began = time.monotonic()
        with pytest.raises(ValueError, match=rf"random_inception: .*{file}: not the Inception network .*Get the file"):
            InceptionV3(weights)
        assert time.monotonic() - began < 1


def test_clip_equals_open_clip(clip: Weights, photo: Uint8) -> None:
    plain = open_clip.create_model("random-tiny-quickgelu", pretrained=str(clip.path)).eval()
    prepare = image_transform(32, is_train=False)
    captions = ["a woman in uniform", "a word " * 100]
    with torch.no_grad():
        prepared = prepare(Image.fromarray(photo))[None]
        image = torch.nn.functional.normalize(plain.encode_image(prepared), dim=1)
        text = torch.nn.functional.normalize(plain.encode_text(open_clip.tokenize(captions)), dim=1)
    extractor = Clip(clip)
    assert (extractor.name, extractor.dim, extractor.px) == ("random_clip", 16, 32)
    found = extractor.extract(to_tensor(photo))
    assert (found @ image.numpy().T).item() > 1 - 1e-6  # a pixel here and there is rounded the other way
    np.testing.assert_allclose(extractor.text_features(captions, batch_size=1), text.numpy(), atol=1e-6)
    squeezed = Clip(clip, "cmmd")
    assert squeezed.name == "random_clip_cmmd" and (squeezed.extract(to_tensor(photo)) @ found.T).item() < 1 - 1e-4


@pytest.mark.parametrize("px", [32, 224])
def test_clip_and_dinov2_see_what_pillow_makes(px: int, photo: Uint8) -> None:
    picture = Image.fromarray(photo)
    squeezed = np.asarray(picture.resize((px, px), Image.Resampling.BICUBIC)).astype(int)
    mean, std = (np.array(v)[:, None, None] for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    cut = (image_transform(px, is_train=False)(picture).numpy() * std + mean) * 255
    ours = (bicubic_uint8(to_tensor(photo).float(), px, px)[0], bicubic_square(to_tensor(photo).float(), px)[0])
    for found, expected in zip(ours, (squeezed.transpose(2, 0, 1), cut), strict=True):
        off = np.abs(found.numpy() - expected).round()
        assert off.max() <= 1 and (off > 0).mean() < 5e-3


def test_clip_refuses_the_wrong_gelu_and_the_wrong_file(tmp_path: Path, clip: Weights) -> None:
    with pytest.raises(ValueError, match=r"trained with QuickGELU, .*name the model random-tiny-quickgelu in the row"):
        Clip(replace(clip, row=replace(clip.row, model="random-tiny")))
    (tmp_path / "cut.safetensors").write_bytes(clip.path.read_bytes()[:-100])
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    for file in ("cut.safetensors", "other.safetensors"):
        row = without_hash(replace(clip.row, file=file))
        with pytest.raises(ValueError, match=f"{file} does not hold open_clip's random-tiny-quickgelu"):
            Clip(find_weights(row, tmp_path))


def test_dinov2_from_both_formats(tmp_path: Path, photo: Uint8) -> None:
    """A tiny model of the same kind, made for 518 px as Meta's: equal to timm's own with its positions interpolated."""
    model = "vit_small_patch14_dinov2"
    torch.manual_seed(0)
    trained: Any = timm.create_model(model, num_classes=0, depth=1).eval()
    torch.nn.init.normal_(trained.pos_embed, std=0.5)
    state = trained.state_dict() | {"mask_token": torch.zeros(1, 384)}
    assert state["pos_embed"].shape == (1, 1 + 37**2, 384)
    torch.save(state, tmp_path / "dino.pth")
    save_file(state, tmp_path / "dino.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        create = timm.create_model
        patch.setattr(timm, "create_model", lambda name, **given: create(name, depth=1, **given))
        found = []
        for file in ("dino.pth", "dino.safetensors"):
            extractor = DinoV2(find_weights(row_of(tmp_path / file, "random_dino", model), tmp_path))
            found.append(extractor.extract(to_tensor(photo)))
        assert extractor.dim == 384
        state.pop("norm.weight")
        torch.save(state, tmp_path / "lacking.pth")
        (tmp_path / "cut.pth").write_bytes((tmp_path / "dino.pth").read_bytes()[:-100])
        for file, why in (("lacking.pth", r"Missing key.*norm\.weight"), ("cut.pth", "central directory")):
            with pytest.raises(ValueError, match=f"{file} does not hold timm's {model} .*{why}"):
                DinoV2(find_weights(row_of(tmp_path / file, "random_dino", model), tmp_path))
    np.testing.assert_array_equal(found[0], found[1])
    trained.set_input_size(224)
    with torch.no_grad():
        trained.pos_embed.copy_(interpolate_positions(state["pos_embed"], 16))
        pixels = bicubic_uint8(to_tensor(photo).float(), 224, 224) / 255
        mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        plain = trained((pixels - mean) / std)
    np.testing.assert_allclose(found[0], plain.numpy(), atol=1e-5)


def test_positions_lie_where_dinov2_puts_them() -> None:
    """On a ramp a value tells where it was taken: steps of 37 / 16.1, not of 37 / 16, which at the end is 0.2 aside."""
    ramp = torch.arange(37.0).repeat(37, 1).reshape(1, -1, 1)
    found = interpolate_positions(torch.cat([torch.full((1, 1, 1), -1.0), ramp], dim=1), 16)
    assert found.shape == (1, 257, 1) and found[0, 0, 0] == -1
    expected = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5
    torch.testing.assert_close(found[0, 1:, 0].reshape(16, 16)[3, 1:-1], expected[1:-1], atol=0.06, rtol=0)


def test_what_random_weights_measure_reaches_no_report(inception: Weights) -> None:
    result = Result(KID, 8, {"samples": 1.0}, extractor=InceptionV3(inception).name)
    with pytest.raises(ValueError, match="random_inception_clean has random weights, for tests only"):
        result.to_record()
    with pytest.raises(ValueError, match="random weights"):
        Result(replace(KID, name="kid_random_64"), 8, {"samples": 1.0}).to_record()
    Result(KID, 8, {"samples": 1.0}, extractor="efficientnet_lite0").to_record()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "dim"), [(CLIP_B_32, 512), (CLIP_B_16, 512), (CLIP_L_14, 768), (CLIP_L_14_336, 768), (DINOV2_L_14, 1024)]
)
def test_files_of_the_real_shapes(row: WeightFile, dim: int, tmp_path: Path, photo: Uint8) -> None:
    """Up to 1.7 GB of random weights under the keys and shapes of the real file, from the file to the feature."""
    file = tmp_path / row.file
    if row is DINOV2_L_14:
        network = timm.create_model(row.model, num_classes=0)
        torch.save(network.state_dict() | {"mask_token": torch.zeros(1, dim)}, file)
    else:
        save_file(open_clip.create_model(row.model).state_dict(), file)
    weights = find_weights(row_of(file, "random_real_shape", row.model, row.quick_gelu), tmp_path)
    extractor: Extractor = DinoV2(weights) if row is DINOV2_L_14 else Clip(weights)
    file.unlink()
    found = extractor.extract(to_tensor(photo))
    assert found.shape == (1, dim) == (1, extractor.dim) and np.isfinite(found).all()
    if isinstance(extractor, Clip):
        assert extractor.text_features(["a photograph"]).shape == (1, dim)
