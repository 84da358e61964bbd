"""DINOv2 ViT-L/14 (Oquab et al. 2023), the space of FD-DINOv2 (Stein et al. 2023), built by timm from a local file."""

import pickle
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from evaluation.networks.features import Extractor
from evaluation.networks.resize import bicubic_uint8
from evaluation.networks.weights import Weights

INPUT_PX, OFFSET = 224, 0.1


class DinoV2(Extractor):
    """uint8 images -> the normalised class token, 1024 features of ViT-L/14.

    As dgm-eval and EDM2 measure: Pillow's bicubic to 224 px, and the positions learned at 518 px interpolated the way
    DINOv2's own code does (timm's differs). The file is Meta's .pth or the same keys as safetensors. Raises ValueError
    for a file that does not hold the row's model.
    """

    def __init__(self, weights: Weights, device: str | torch.device = "cpu") -> None:
        self.name, self.weights, self.device = weights.row.name, weights.sha256, torch.device(device)
        self.resize = f"bicubic {INPUT_PX}, 8 bits"
        network: Any = timm.create_model(weights.row.model, num_classes=0, img_size=INPUT_PX)
        try:
            state = _read(weights)
            state.pop("mask_token", None)  # for training alone
            state["pos_embed"] = interpolate_positions(state["pos_embed"], network.patch_embed.grid_size[0])
            network.load_state_dict(state)
        except (RuntimeError, SafetensorError, pickle.UnpicklingError, KeyError, EOFError) as error:
            why = " ".join(str(error).split())[:200]
            what = f"does not hold timm's {weights.row.model} ({why})"
            raise ValueError(f"weights {weights.row.name}: {weights.path} {what}") from error
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.dim = int(network.num_features)
        self.mean, self.std = (
            torch.tensor(values, device=self.device)[:, None, None]
            for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )

    def features(self, images: Tensor) -> Tensor:
        x = bicubic_uint8(images.to(self.device).float(), INPUT_PX, INPUT_PX) / 255  # [B, 3, 224, 224]
        return self.network((x - self.mean) / self.std)


def _read(weights: Weights) -> dict[str, Tensor]:
    if weights.path.suffix == ".safetensors":
        return load_file(weights.path)
    return torch.load(weights.path, map_location="cpu", weights_only=True)


def interpolate_positions(positions: Tensor, grid: int) -> Tensor:
    """[1, 1 + M², D] -> [1, 1 + grid², D]: facebookresearch/dinov2's bicubic without antialiasing, whose scale has a
    tenth of a position added to it ("interpolate_offset")."""
    before = round((positions.shape[1] - 1) ** 0.5)
    if before == grid:
        return positions
    patches = positions[:, 1:].unflatten(1, (before, before)).permute(0, 3, 1, 2)  # [1, D, M, M]
    patches = F.interpolate(patches, scale_factor=(grid + OFFSET) / before, mode="bicubic")
    return torch.cat([positions[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)
