"""Vector graphics -> pixels -> bytes."""

import io
from pathlib import Path

import numpy as np
import pyvips
from numpy.typing import NDArray
from PIL import Image

SUPERSAMPLE = 4  # rendered this many times larger, so that thin lines are averaged rather than broken


def rasterise_svg(path: Path, px: int) -> NDArray[np.uint8]:
    """A square graphic on white: uint8 [px, px, 3], RGB. Raises ValueError naming a file that cannot be read."""
    try:
        size = px * SUPERSAMPLE
        # libvips is LGPL and comes as a wheel; resvg and cairosvg were slower at these sizes or need system libraries.
        image = pyvips.Image.thumbnail(str(path), size, height=size, size="both").flatten(background=255)
        pixels = image.resize(1 / SUPERSAMPLE, kernel="lanczos3").numpy()[..., :3]
    except pyvips.Error as error:
        raise ValueError(f"{path} cannot be drawn: {error}") from error
    if pixels.shape != (px, px, 3):
        raise ValueError(f"{path} is not square: drawn as {pixels.shape[1]} x {pixels.shape[0]} px")
    return np.ascontiguousarray(pixels)


def thumbnail(path: Path) -> NDArray[np.uint8]:
    """A vector graphic at 32 px, to tell whether two look the same: uint8 [32, 32, 4]. Raises ValueError as above."""
    try:
        return pyvips.Image.thumbnail(str(path), 32, height=32, size="both").numpy()
    except pyvips.Error as error:
        raise ValueError(f"{path} cannot be drawn: {error}") from error


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Lossless, and the same bytes for the same pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png", optimize=False, compress_level=6)
    return buffer.getvalue()


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Quality 95 without chroma subsampling, and the same bytes for the same pixels and version of Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="jpeg", quality=95, subsampling=0)
    return buffer.getvalue()
