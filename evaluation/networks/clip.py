"""CLIP by open_clip, from a local file: images and captions as unit vectors, whose products are the raw cosines."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip.transformer import QuickGELU
from safetensors import SafetensorError
from torch import Tensor

from evaluation.networks.features import Extractor, full_precision
from evaluation.networks.resize import bicubic, bicubic_square
from evaluation.networks.weights import Weights


class Clip(Extractor):
    """uint8 images, or captions -> float32 vectors of length 1 in the space both share (Radford et al. 2021).

    ``preparation``: ``clip``, shorter side to the network's size, middle cut out, rounded to 8 bits between, as the
    models were trained; or ``cmmd``, squeezed to the square in floats (Jayasumana et al. 2024, their code). Raises
    ValueError for a file that does not hold the row's model, or a model that computes with the wrong GELU: open_clip
    would take both in silence.
    """

    def __init__(
        self, weights: Weights, preparation: Literal["clip", "cmmd"] = "clip", device: str | torch.device = "cpu"
    ) -> None:
        row = weights.row
        self.name = row.name if preparation == "clip" else f"{row.name}_{preparation}"
        self.weights, self.resize, self.device = weights.sha256, preparation, torch.device(device)
        try:
            network = open_clip.create_model(
                row.model, pretrained=str(weights.path), device=self.device, require_pretrained=True
            )
        except (RuntimeError, SafetensorError) as error:
            why = " ".join(str(error).split())[:200]
            raise ValueError(
                f"weights {row.name}: {weights.path} does not hold open_clip's {row.model} ({why})"
            ) from error
        if any(isinstance(module, QuickGELU) for module in network.modules()) != row.quick_gelu:
            wanted = "QuickGELU" if row.quick_gelu else "GELU"
            raise ValueError(
                f"weights {row.name}: trained with {wanted}, which open_clip's {row.model} does not compute with: name "
                f"the model {row.model.removesuffix('-quickgelu')}{'-quickgelu' * row.quick_gelu} in the row"
            )
        self.network = network.eval().requires_grad_(False)
        self.tokenizer = open_clip.get_tokenizer(row.model)
        self.px = int(open_clip.get_model_config(row.model)["vision_cfg"]["image_size"])
        self.dim = int(open_clip.get_model_config(row.model)["embed_dim"])
        self.mean, self.std = (
            torch.tensor(values, device=self.device)[:, None, None]
            for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        )

    def features(self, images: Tensor) -> Tensor:
        x = images.to(self.device).float()  # [B, 3, H, W], 0…255
        x = bicubic(x, self.px, self.px) if self.resize == "cmmd" else bicubic_square(x, self.px)
        return F.normalize(self.network.encode_image((x / 255 - self.mean) / self.std), dim=1)  # [B, dim]

    @torch.inference_mode()
    def text_features(
        self, captions: Sequence[str], batch_size: int = 32, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Captions -> float32 [N, dim]; of a long one what fits in 77 tokens."""
        found = np.empty((len(captions), self.dim), np.float32)
        with full_precision():
            for start in range(0, len(captions), batch_size):
                tokens = self.tokenizer(list(captions[start : start + batch_size])).to(self.device)  # [B, 77]
                vectors = F.normalize(self.network.encode_text(tokens), dim=1)
                found[start : start + len(tokens)] = vectors.cpu().numpy()
                if progress is not None:
                    progress(start + len(tokens))
        return found
