"""Building blocks of the UNets (paper App. A; details as in the released models).

Shapes: B samples, C channels, H x W pixels, N = H * W tokens, L caption tokens, E embedding channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """In float32 whatever comes in. Autocast sees to that on a GPU only: on the CPU half precision would stay half."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class LayerNorm(nn.LayerNorm):
    """In float32, as ``GroupNorm``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def group_norm(max_groups: int, channels: int) -> GroupNorm:
    """32 groups in every model of the paper; narrow layers take the largest number of groups that divides both."""
    return GroupNorm(math.gcd(max_groups, channels), channels)


def zero_init(module: nn.Module) -> nn.Module:
    """Zero a layer's parameters, so that the block around it starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)


def attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention of q [B, N, C] to k, v [B, M, C] -> [B, N, C]; mask [B, M], True = may be seen."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))  # [B, heads, N, C / heads]
    mask = None if mask is None else mask[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class ResBlock(nn.Module):
    """GN, SiLU, conv, GN modulated by the embedding, SiLU, zero-initialised conv; plus the (projected) input."""

    def __init__(
        self, in_channels: int, out_channels: int, emb_channels: int, norm_groups: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(norm_groups, in_channels)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.modulation = nn.Linear(emb_channels, 2 * out_channels)
        self.norm2 = group_norm(norm_groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(conv3x3(out_channels, out_channels))
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # [B, C, H, W]
        scale, offset = self.modulation(F.silu(emb))[:, :, None, None].chunk(2, dim=1)  # [B, C, 1, 1] each
        h = self.conv2(self.dropout(F.silu(torch.addcmul(offset, self.norm2(h), 1 + scale))))
        return h + self.skip(x)


class Attention(nn.Module):
    """Self-attention over pixels and cross-attention to the caption with the same queries, summed; then an MLP.

    The two have separate softmaxes and one output projection. The MLP is the released models' (``ffn``); App. A does
    not list it, but the stated 450 M parameters need it.
    """

    def __init__(self, channels: int, text_dim: int | None, num_heads: int, ffn: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = group_norm(32, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.text_norm = LayerNorm(text_dim) if text_dim else None
        self.text_kv = nn.Linear(text_dim, 2 * channels) if text_dim else None
        self.proj = zero_init(nn.Linear(channels, channels))
        self.ffn_norm = group_norm(32, channels) if ffn else None
        self.ffn = None
        if ffn:
            hidden = nn.Linear(channels, 4 * channels)
            self.ffn = nn.Sequential(hidden, nn.GELU(), zero_init(nn.Linear(4 * channels, channels)))

    def forward(self, x: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor:
        shape = x.shape  # [B, C, H, W]
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # [B, N, C]
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        h = attend(q, k, v, self.num_heads)
        if self.text_norm is not None and self.text_kv is not None:
            text_k, text_v = self.text_kv(self.text_norm(text)).chunk(2, dim=-1)  # [B, L, C] each
            h = h + attend(q, text_k, text_v, self.num_heads, text_mask)
        x = x + self.proj(h).transpose(1, 2).reshape(shape)
        if self.ffn is not None and self.ffn_norm is not None:
            tokens = self.ffn_norm(x).flatten(2).transpose(1, 2)
            x = x + self.ffn(tokens).transpose(1, 2).reshape(shape)
        return x


class TextLayer(nn.Module):
    """A learned transformer layer over the frozen caption states (Sec. 4.1, App. A num_lm_attn_layers)."""

    def __init__(self, channels: int, num_heads: int = 8) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = zero_init(nn.Linear(channels, channels))
        hidden, out = nn.Linear(channels, 4 * channels), zero_init(nn.Linear(4 * channels, channels))
        self.mlp = nn.Sequential(LayerNorm(channels), hidden, nn.GELU(), out)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)  # [B, L, C] each
        x = x + self.proj(attend(q, k, v, self.num_heads, mask))
        return x + self.mlp(x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a convolution: [B, C, H, W] -> [B, C, 2H, 2W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
