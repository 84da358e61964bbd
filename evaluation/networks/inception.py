"""Inception-V3 as FID was defined on it (Heusel et al. 2017), from the TorchScript file that clean-fid uses."""

import warnings
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.networks.features import Extractor, full_precision
from evaluation.networks.resize import bicubic
from evaluation.networks.weights import Weights

INPUT_PX = 299
TOLERANCE = 1e-5  # of the largest feature: what a faster order of the same sums may change


class InceptionV3(Extractor):
    """uint8 images -> 2048 features each, the last average pool.

    ``resize``: ``clean``, Pillow's antialiased bicubic on floats, or ``legacy``, TensorFlow 1's bilinear, which the
    file's own network does inside. Their numbers differ by up to a sixth, so the extractor's name says which.

    Batch norms are folded into the convolutions and memory is channels-last: 1.5 times as fast on a CPU. That the
    features stay the same is tried on a picture of noise when the file is loaded. Raises ValueError for a file that is
    no such network, or where they do not stay the same.
    """

    dim = 2048

    def __init__(
        self, weights: Weights, resize: Literal["clean", "legacy"] = "clean", device: str | torch.device = "cpu"
    ) -> None:
        self.name, self.weights, self.resize = f"{weights.row.name}_{resize}", weights.sha256, resize
        self.device = torch.device(device)
        with warnings.catch_warnings(), torch.no_grad(), full_precision():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript's end is announced; the file is what it is
            try:
                plain = torch.jit.load(weights.path, map_location=self.device).eval()
                for parameter in plain.parameters():
                    parameter.requires_grad_(False)
                # Without its bias, as the Inception score was first computed.
                self.to_logits = plain.output.weight.detach()  # [classes, 2048]
                probe = torch.randint(0, 256, (1, 3, INPUT_PX, INPUT_PX), generator=torch.Generator().manual_seed(0))
                self.network = plain if resize == "legacy" else plain.layers
                expected = self.features(probe.to(torch.uint8))
                self.network = torch.jit.freeze(self.network.to(memory_format=torch.channels_last))
                found = self.features(probe.to(torch.uint8))
            except (RuntimeError, AttributeError, TypeError) as error:
                raise ValueError(f"weights {weights.row.name}: {weights.path}: {_not_it(error)}") from error
        if expected.shape != (1, self.dim) or self.to_logits.shape[1:] != (self.dim,):
            shapes = f"features {list(expected.shape)}, classes from {list(self.to_logits.shape)}"
            raise ValueError(f"weights {weights.row.name}: {weights.path}: {_not_it(shapes)}")
        change = (found - expected).abs().max() / expected.abs().max()
        if not change <= TOLERANCE:
            raise ValueError(
                f"weights {weights.row.name}: the faster form changes features by {change:.1e} of the largest"
            )

    def features(self, images: Tensor) -> Tensor:
        x = images.to(self.device).float()  # [B, 3, H, W], 0…255
        if self.resize == "legacy":
            return self.network(x.contiguous(memory_format=torch.channels_last), return_features=True).flatten(1)
        x = (bicubic(x, INPUT_PX, INPUT_PX).clamp(0, 255) - 128) / 128
        return self.network(x.contiguous(memory_format=torch.channels_last)).flatten(1)  # [B, 2048]

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features [N, 2048] -> logits [N, 1008] of the Inception score's classes, before the softmax."""
        return features @ self.to_logits.cpu().numpy().T


def _not_it(why: object) -> str:
    line = next((line for line in reversed(str(why).splitlines()) if line.strip()), "").strip()
    return f"not the Inception network that clean-fid loads ({line}). Get the file of networks/weights.py's table"
