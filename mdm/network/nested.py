"""NestedUNet (paper Sec. 3.2, Fig. 3): each level's UNet has the next lower level's UNet as its middle.

Lists of tensors run from the lowest resolution (r = 1) to the highest. Shapes: B samples, H x H pixels of a level.
"""

from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from mdm.config import Model
from mdm.network.blocks import conv3x3, zero_init
from mdm.network.conditioning import TextConditioner
from mdm.network.mixed import carried_by, for_whole_batch
from mdm.network.unet import Context, UNet
from mdm.network.weights import load_weights, save_weights


class Adapter(nn.Module):
    """Carries features between a level and the one inside it. Zero-initialised: a new level starts unheard."""

    def __init__(self, outer_channels: int, inner_channels: int, inner_input: bool) -> None:
        super().__init__()
        self.down = zero_init(conv3x3(outer_channels, inner_channels)) if inner_input else None
        self.up = zero_init(conv3x3(inner_channels, outer_channels))


class NestedUNet(nn.Module):
    """The joint denoiser: z_t of every level in, a prediction of every level out, in one pass.

    What is predicted (v in the paper, x in ``tiny``) is ``Model.prediction``; the network does not know.

    ``levels`` holds the UNets innermost first, so growing appends and renames nothing. With one level it is a UNet.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.config = model
        text_dim = model.text.width if model.text else None
        self.text = TextConditioner(model.text, model.emb_channels) if model.text else None
        self.labels = None
        if model.labels:
            self.labels = nn.Embedding(model.labels.num_classes + model.labels.null, model.emb_channels)
        self.levels = nn.ModuleList(
            UNet(level, model.emb_channels, text_dim, innermost=r == 0) for r, level in enumerate(model.levels)
        )
        self.adapters = nn.ModuleList(
            Adapter(outer.channels[-1], inner.channels[0], outer.inner_input)
            for inner, outer in zip(model.levels[:-1], model.levels[1:], strict=True)
        )

    @property
    def unets(self) -> list[UNet]:
        """The levels, innermost first."""
        return cast(list[UNet], list(self.levels))

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, which: Literal["ema", "raw"] = "ema", device: str = "cpu"
    ) -> "NestedUNet":
        """The network of a folder with config.json and model.safetensors, in evaluation mode.

        Of a checkpoint folder, which has two such inside, ``which`` is taken. Raises ValueError naming what is wrong.
        """
        folder = Path(folder)
        if which not in ("ema", "raw"):
            raise ValueError(f"which must be 'ema' or 'raw', got {which!r}")
        if (folder / which).is_dir():
            folder = folder / which
        try:
            return cls.of(*load_weights(folder), device)
        except RuntimeError as error:
            raise ValueError(f"{folder}: model.safetensors does not fit config.json ({error})") from error

    @classmethod
    def of(cls, model: Model, weights: dict[str, Tensor], device: str | torch.device = "cpu") -> "NestedUNet":
        """The network with copies of these weights, in evaluation mode. Raises RuntimeError where they do not fit."""
        with torch.device("meta"):  # no initialisation that the weights would overwrite
            network = cls(model)
        network.to_empty(device=device).load_state_dict(weights)
        return network.eval()

    def save_pretrained(self, folder: Path | str) -> None:
        """config.json + model.safetensors, as ``from_pretrained`` takes them."""
        save_weights(Path(folder), self.config, self.state_dict())

    def forward(
        self,
        zs: list[Tensor],
        t: Tensor,
        *,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        labels: Tensor | None = None,
        micros: dict[str, Tensor] | None = None,
        num_outputs: int | None = None,
    ) -> list[Tensor]:
        """z_t per level [B_r, 3, H_r, H_r], time t [B] in 0..T-1, what it is conditioned on -> a prediction per level.

        ``text`` [B, L, D] and ``text_mask`` [B, L], or ``labels`` [B]; predictions are shaped as ``zs``.

        ``num_outputs``: leave out the decoders above so many levels, where only the lower levels' are wanted.
        B_r may fall from level to level (mixed-resolution batches, see mixed.py).
        """
        if len(zs) != len(self.levels):
            raise ValueError(f"the model has {len(self.levels)} levels, got {len(zs)} images")
        condition, context = None, (None, None)
        if self.text is not None:
            if text is None or text_mask is None:
                raise ValueError("this model is conditioned on text: pass text and text_mask")
            condition, tokens, mask = self.text(text, text_mask)  # once for all levels
            context = (tokens, mask)
        if self.labels is not None:
            if labels is None:
                raise ValueError("this model is conditioned on classes: pass labels")
            condition = self.labels(labels)
        outputs: list[Tensor] = []
        self._denoise(zs, None, t, condition, context, micros or {}, outputs, num_outputs or len(zs))
        return outputs

    def _denoise(
        self,
        zs: list[Tensor],
        features: Tensor | None,
        t: Tensor,
        condition: Tensor | None,
        context: Context,
        micros: dict[str, Tensor],
        outputs: list[Tensor],
        num_outputs: int,
    ) -> Tensor:
        """The paper's recursion: the last of ``zs`` here, the others inside -> features; appends to ``outputs``."""
        r, z = len(zs) - 1, zs[-1]
        unet = self.unets[r]
        emb = unet.embed(carried_by(z, t), {name: carried_by(z, value) for name, value in micros.items()})
        if condition is not None:
            emb = emb + carried_by(z, condition)
        tokens, mask = (None if c is None else carried_by(z, c) for c in context)
        here: Context = (tokens, mask)
        x, skips = unet.encode(z, features, emb, here)
        if r == 0:
            x = unet.middle(x, emb, here)
        else:
            adapter = cast(Adapter, self.adapters[r - 1])
            inner = None if adapter.down is None else for_whole_batch(adapter.down(x), len(zs[-2]))
            inner = self._denoise(zs[:-1], inner, t, condition, context, micros, outputs, num_outputs)
            if r >= num_outputs:
                return x
            x = x + adapter.up(carried_by(z, inner))
        output, x = unet.decode(x, skips, emb, here)
        outputs.append(output)
        return x
