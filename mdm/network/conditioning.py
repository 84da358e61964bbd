"""What steers a denoiser: time, caption and micro-conditions, each turned into an embedding.

Shapes: B samples, L caption tokens, D text width, E embedding channels.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdm.config import Text
from mdm.network.blocks import TextLayer, zero_init

Condition = dict[str, Tensor]  # the network's keyword arguments: text [B, L, D] and text_mask [B, L], or labels [B]


def sinusoid(values: Tensor, channels: int) -> Tensor:
    """Sine and cosine features [B, channels] of scalars [B] at frequencies 10000^(-i / (channels/2))."""
    half = channels // 2
    frequencies = torch.exp(torch.arange(half, device=values.device, dtype=torch.float32) * (-math.log(10000) / half))
    angles = values.float()[:, None] * frequencies  # [B, half]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ScalarEmbedding(nn.Module):
    """A number per sample (the time, a micro-condition) -> [B, E]: sinusoid, then a two-layer MLP."""

    def __init__(self, emb_channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(emb_channels // 4, emb_channels)
        self.fc2 = nn.Linear(emb_channels, emb_channels)

    def forward(self, values: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(sinusoid(values, self.fc1.in_features))))


class MicroConditions(nn.Module):
    """Image properties as extra scalars (SDXL; used by the released models). Absent ones take their default."""

    def __init__(self, defaults: dict[str, float], emb_channels: int) -> None:
        super().__init__()
        self.defaults = defaults
        self.embeddings = nn.ModuleDict({name: ScalarEmbedding(emb_channels) for name in defaults})
        for embedding in self.embeddings.values():
            zero_init(embedding.get_submodule("fc2"))

    def forward(self, values: dict[str, Tensor], t: Tensor) -> Tensor:
        """values: name -> [B] -> sum of their embeddings [B, E]. ``scale`` is capped at its default."""
        total = torch.zeros((), device=t.device)
        for name, default in self.defaults.items():
            value = values.get(name, torch.full_like(t, default, dtype=torch.float32))
            value = (value / default).clamp(max=1) * default if name == "scale" else value * 1000
            total = total + self.embeddings[name](value)
        return total


class TextConditioner(nn.Module):
    """Frozen encoder states -> caption tokens for cross-attention, and one embedding for all levels (Sec. 4.1).

    A projection and a few learned self-attention layers over the tokens (App. A: 2 layers, 1024 wide), then their
    mean over the caption, projected to the embedding.
    """

    def __init__(self, text: Text, emb_channels: int) -> None:
        super().__init__()
        self.masked = text.masked
        self.proj = nn.Linear(text.dim, text.proj_dim) if text.proj_dim else None
        self.layers = nn.ModuleList(TextLayer(text.width) for _ in range(text.num_layers))
        self.pool = nn.Linear(text.width, emb_channels, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """tokens [B, L, D], mask [B, L] (1 = token) -> embedding [B, E], tokens [B, L, width], mask [B, L] or None."""
        x = tokens if self.proj is None else self.proj(tokens)  # [B, L, width]
        attention_mask = mask.bool() if self.masked else None
        for layer in self.layers:
            x = layer(x, attention_mask)
        if not self.masked and len(self.layers) > 0:  # padding has mixed into every token by now: all of them count
            pooled = x.mean(dim=1)
        else:
            weight = mask.to(x.dtype).unsqueeze(-1)
            pooled = (weight * x).sum(dim=1) / weight.sum(dim=1)
        return self.pool(pooled), x, attention_mask


def stack_conditions(conditions: Sequence[Tensor | int], length: int = 0) -> Condition:
    """Captions' states, padded to the longest or to ``length``, or labels -> the network's keyword arguments."""
    if isinstance(conditions[0], int):
        return {"labels": torch.tensor(conditions)}
    states = [one for one in conditions if isinstance(one, Tensor)]
    return padded(pad_tokens(torch.cat(states), [len(one) for one in states]), length)


def pad_tokens(states: Tensor, lengths: Sequence[int]) -> Condition:
    """Captions' states end to end [T, D], ``lengths`` tokens each -> text [B, L, D] with zeros behind, text_mask [B, L]
    (1 = token), on the states' device; L is the longest.
    """
    real = np.arange(max(lengths)) < np.array(lengths)[:, None]  # [B, L]; known here, so that no GPU is waited for
    places, mask = torch.from_numpy(np.flatnonzero(real)), torch.from_numpy(real)
    text = states.new_zeros(real.size, states.shape[1])
    text.index_copy_(0, places.to(states.device, non_blocking=True), states)
    return {
        "text": text.view(*real.shape, -1),
        "text_mask": mask.to(states.device, torch.float32, non_blocking=True),
    }


def padded(condition: Condition, length: int) -> Condition:
    """The same with captions of ``length`` tokens at least (``config.padded_length``)."""
    missing = length - condition["text"].shape[1] if "text" in condition else 0
    if missing <= 0:
        return condition
    text, mask = F.pad(condition["text"], (0, 0, 0, missing)), F.pad(condition["text_mask"], (0, missing))
    return {**condition, "text": text, "text_mask": mask}
