"""Bytes of pictures -> RGB, and RGB -> squares.

``read_rgb`` is the one reader, for training, held-out loss, neighbours and evaluation; preprocessing is handed it, and
``centre_crop``. Without torch: the processes that pack shards start in a moment.
"""

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 2**26  # by the header, before any memory is taken; Pillow itself warns from 1.3 times as many on
STRIP_PIXELS = 2**21  # that are turned into RGB at once
FILTER = "Pillow's bicubic filter, antialiased"  # of ``centre_crop``, as data cards name it
# What the web and cameras have (MPO comes as JPEG). For others (EPS) Pillow starts a program: not for anyone's bytes.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
DEEP = {"I", "I;16", "I;16B", "I;16L", "I;16N"}  # Pillow's modes of 16-bit grey


def read_rgb(data: bytes) -> NDArray[np.uint8]:
    """A picture file's bytes -> uint8 [H, W, 3] as a viewer shows it: turned by EXIF, on white, the first frame.

    16-bit grey is scaled; CMYK and palettes become RGB; colour profiles are not applied. Raises ValueError saying what
    is wrong (not which picture) with bytes that are no whole picture, or hold pixels that have no one meaning as RGB.
    """
    if not data:
        raise ValueError("it is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # before anything is decoded
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                ImageOps.exif_transpose(picture, in_place=True)
                return _rgb(picture)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError("it has too many pixels") from None
    except UnidentifiedImageError:
        raise ValueError("it is no picture") from None
    except Exception as error:  # decoders raise whatever they stumble over
        raise ValueError(f"it cannot be decoded ({type(error).__name__}: {error})") from None


def _rgb(picture: Image.Image) -> NDArray[np.uint8]:
    """Of a large picture strip by strip: beside it and the result, what lies between is held of one strip alone."""
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers, of unknown range")
    shown = _deep_grey if picture.mode in DEEP else _on_white
    rows = max(1, STRIP_PIXELS // picture.width)
    if picture.height <= rows:
        return np.asarray(shown(picture))
    rgb = np.empty((picture.height, picture.width, 3), np.uint8)
    for top in range(0, picture.height, rows):
        bottom = min(top + rows, picture.height)
        rgb[top:bottom] = np.asarray(shown(picture.crop((0, top, picture.width, bottom))))
    return rgb


def _on_white(picture: Image.Image) -> Image.Image:
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")  # which would copy it


def _deep_grey(picture: Image.Image) -> NDArray[np.uint8]:
    values = np.asarray(picture).astype(np.int64)  # [H, W]
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("its grey has more than 16 bits, of unknown range")
    grey = np.rint(values / 257).astype(np.uint8)
    if "transparency" in picture.info:
        grey[values == picture.info["transparency"]] = 255
    return np.stack([grey] * 3, axis=2)


def centre_crop(rgb: NDArray[np.uint8], px: int) -> NDArray[np.uint8]:
    """The largest centred square of uint8 [H, W, 3], resized to [px, px, 3] by Pillow's bicubic filter (antialiased).

    Smaller pictures are enlarged (App. F). The square's border falls between pixels where H and W differ by an odd
    number; it is rounded down.
    """
    height, width = rgb.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(rgb[top : top + side, left : left + side])
    if side == px:
        return square
    return np.asarray(Image.fromarray(square).resize((px, px), Image.Resampling.BICUBIC))
