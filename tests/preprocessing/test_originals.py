"""Stored originals show what they showed, and say nothing about where and by whom they were taken."""

import io

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mdm.data.pixels import read_rgb
from preprocessing.pack.originals import ORIENTATION, without_metadata

SECRET = b"52.5200 N 13.4050 E"
PIXELS = np.random.default_rng(0).integers(0, 255, (24, 40, 3)).astype(np.uint8)


def picture(kind: str, orientation: int = 1, mode: str = "RGB") -> bytes:
    """A picture that tells a secret in every way that its format has."""
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x010E] = orientation, SECRET.decode()
    buffer = io.BytesIO()
    text = PngInfo()
    text.add_text("where", SECRET.decode())
    options = {"JPEG": {"comment": SECRET, "progressive": True}, "PNG": {"pnginfo": text}, "WEBP": {"xmp": SECRET}}
    Image.fromarray(PIXELS).convert(mode).save(buffer, kind, exif=exif, **options.get(kind, {}))  # type: ignore[arg-type]
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_secrets_go_and_pixels_stay(kind: str, orientation: int) -> None:
    behind = picture("JPEG") if kind == "JPEG" else b""  # as telephones append a second picture
    data = picture(kind, orientation) + behind
    assert SECRET in data
    shown = read_rgb(data)
    assert shown.shape == ((24, 40, 3) if orientation == 1 else (40, 24, 3))
    stored, extension = without_metadata(data, shown)
    assert SECRET not in stored and (read_rgb(stored) == shown).all()
    kept = kind in ("JPEG", "WEBP") and (kind == "JPEG" or orientation == 1)
    assert extension == ({"JPEG": "jpg", "WEBP": "webp"}[kind] if kept else "png")


def test_a_picture_without_an_end_is_encoded_again() -> None:
    stored, extension = without_metadata(picture("JPEG")[:-2], PIXELS)
    assert extension == "png" and (read_rgb(stored) == PIXELS).all()


def test_four_inks_and_animations() -> None:
    data = picture("JPEG", mode="CMYK")
    stored, _ = without_metadata(data, read_rgb(data))
    assert (read_rgb(stored) == read_rgb(data)).all()
    buffer = io.BytesIO()
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    stored, extension = without_metadata(buffer.getvalue(), read_rgb(buffer.getvalue()))
    assert extension == "png" and (read_rgb(stored) == read_rgb(buffer.getvalue())).all()
