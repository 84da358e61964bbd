"""Resizing on the device as Pillow does it on the CPU: measures of images were defined with Pillow's filters."""

import torch.nn.functional as F
from torch import Tensor


def bicubic(images: Tensor, height: int, width: int) -> Tensor:
    """float32 [B, 3, H, W] -> [B, 3, height, width], as clean-fid resizes (Parmar et al. 2022): Pillow's bicubic filter
    on floats, each channel by itself, nothing rounded. Equal to 1e-4 of 255, by float64: in float32 the filter's places
    are off, up to 9e-3. Not clipped."""
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images.double(), size=(height, width), mode="bicubic", antialias=True).float()


def bicubic_uint8(images: Tensor, height: int, width: int) -> Tensor:
    """float32 [B, 3, H, W] -> [B, 3, height, width], whole numbers 0…255: as Pillow resizes pictures of 8 bits, which
    rounds after the rows and again after the columns. Some pixels in a thousand differ, by 1."""
    rows = bicubic(images, images.shape[-2], width).round().clamp(0, 255)
    return bicubic(rows, height, width).round().clamp(0, 255)


def bicubic_square(images: Tensor, px: int) -> Tensor:
    """The shorter side becomes px, then the middle is cut out, as CLIP prepares pictures: [B, 3, px, px] of 0…255."""
    height, width = images.shape[-2:]
    short = min(height, width)
    resized = bicubic_uint8(images, int(px * height / short), int(px * width / short))
    top, left = (round((side - px) / 2) for side in resized.shape[-2:])
    return resized[..., top : top + px, left : left + px]
