"""One UNet of the nest: encode, middle, decode, so that an inner UNet can take the middle's place (Sec. 3.2).

Shapes: B samples, C channels, H x W pixels; E embedding channels.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mdm.config import Level
from mdm.network.blocks import Attention, ResBlock, Upsample, conv3x3, group_norm, zero_init
from mdm.network.conditioning import MicroConditions, ScalarEmbedding

Context = tuple[Tensor | None, Tensor | None]  # caption tokens [B, L, width] and mask [B, L], or nothing


class ResolutionBlock(nn.Module):
    """The blocks of one feature resolution: residual blocks, each followed by its attention layers, then a resize."""

    def __init__(self, blocks: list[ResBlock], attention: list[list[Attention]], resize: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = nn.ModuleList(nn.ModuleList(layers) for layers in attention)
        self.resize = resize
        self.recompute = False  # compute the residual blocks' activations again in the backward pass

    def forward(
        self, x: Tensor, emb: Tensor, context: Context, skips: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        """On the way up each block takes one of ``skips``, last first; on the way down every result is one.

        The caller's list is not changed: under FSDP2 this is called with a copy of it.
        """
        results: list[Tensor] = []
        for i, (block, layers) in enumerate(zip(self.blocks, self.attention, strict=True)):
            if skips is not None:
                x = torch.cat([x, skips[-1 - i]], dim=1)
            x = checkpoint(block, x, emb, use_reentrant=False) if self.recompute and self.training else block(x, emb)
            for layer in cast(nn.ModuleList, layers):
                x = layer(x, *context)
            results.append(x)
        if self.resize is not None:
            x = self.resize(x)
            results.append(x)
        return x, results


class UNet(nn.Module):
    """The denoiser of one level: an image [B, 3, H, H] in, its prediction [B, 3, H, H] and last features out."""

    def __init__(self, level: Level, emb_channels: int, text_dim: int | None, innermost: bool) -> None:
        super().__init__()
        self.level = level
        self.time = ScalarEmbedding(emb_channels)
        self.micro = MicroConditions(dict(level.micro), emb_channels) if level.micro else None
        widths = level.channels
        groups = level.norm_groups

        def block(in_channels: int, out_channels: int) -> ResBlock:
            return ResBlock(in_channels, out_channels, emb_channels, groups, level.dropout)

        def attention(channels: int, count: int) -> list[Attention]:
            return [Attention(channels, text_dim, level.num_heads, level.attention_ffn) for _ in range(count)]

        self.conv_in = conv3x3(3, widths[0])
        channels, skip_channels = widths[0], [widths[0]]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        last = len(widths) - 1
        for i, (width, num_blocks, num_attn) in enumerate(
            zip(widths, level.num_res_blocks, level.num_attn_layers, strict=True)
        ):
            blocks = [block(channels if j == 0 else width, width) for j in range(num_blocks)]
            resize = conv3x3(width, width, stride=2) if i < last else None
            self.down.append(ResolutionBlock(blocks, [attention(width, num_attn) for _ in blocks], resize))
            skip_channels += [width] * (num_blocks + (resize is not None))
            channels = width

        self.mid = None
        if innermost and level.mid_block:
            layers = [attention(channels, 1), attention(channels, 0)]
            self.mid = ResolutionBlock([block(channels, channels), block(channels, channels)], layers, None)

        for i in range(last, -1, -1):
            width, blocks = widths[i], []
            for _ in range(level.num_res_blocks[i] + 1):
                blocks.append(block(channels + skip_channels.pop(), width))
                channels = width
            upsample = Upsample(width) if i > 0 else None
            layers = [attention(width, level.num_attn_layers[i]) for _ in blocks]
            self.up.append(ResolutionBlock(blocks, layers, upsample))
        self.norm_out = group_norm(groups, channels)
        self.conv_out = zero_init(conv3x3(channels, 3))

    @property
    def resolution_blocks(self) -> list[ResolutionBlock]:
        """Of the way down, the middle and the way up."""
        return [*self.down, *([] if self.mid is None else [self.mid]), *self.up]

    def embed(self, t: Tensor, micros: dict[str, Tensor]) -> Tensor:
        """Time t [B] (and micro-conditions, name -> [B]) -> [B, E]."""
        emb = self.time(t)
        return emb if self.micro is None else emb + self.micro(micros, t)

    def encode(self, z: Tensor, features: Tensor | None, emb: Tensor, context: Context) -> tuple[Tensor, list[Tensor]]:
        """f_down: z [B, 3, H, H] and the enclosing level's features -> features at the lowest resolution, skips."""
        if self.level.normalize_input:
            z = z / z.std(dim=(1, 2, 3), keepdim=True)
        x = self.conv_in(z)
        if features is not None:
            x = x + features  # f_merge
        skips = [x]
        for down in self.down:
            x, results = down(x, emb, context, None)
            skips += results
        return x, skips

    def middle(self, x: Tensor, emb: Tensor, context: Context) -> Tensor:
        """f_mid, of the innermost level only."""
        return x if self.mid is None else self.mid(x, emb, context, None)[0]

    def decode(self, x: Tensor, skips: list[Tensor], emb: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """f_up with the skips -> prediction [B, 3, H, H] and features [B, C, H, H] for the enclosing level."""
        for up in self.up:
            # Popped and not named, so that nothing holds them longer than they are needed.
            x, _ = up(x, emb, context, [skips.pop() for _ in cast(ResolutionBlock, up).blocks][::-1])
        return self.conv_out(F.silu(self.norm_out(x))), x
