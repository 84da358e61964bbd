"""One reader of pixels: what a picture looks like to a person is what is trained on, and the rest is refused."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mdm.data import pixels
from mdm.data.pixels import centre_crop, read_rgb
from mdm.data.ranges import average

RED, BLUE, WHITE, HIDDEN = (220, 30, 30), (30, 60, 220), (255, 255, 255), (0, 255, 0)


def halves(width: int = 64, height: int = 64) -> Image.Image:
    pixels = np.full((height, width, 3), RED, np.uint8)
    pixels[:, width // 2 :] = BLUE
    return Image.fromarray(pixels)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int, by: Image.Transpose) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(halves().transpose(by), "JPEG", exif=exif, quality=95, subsampling=0)


def spot(background: Any, ink: Any, mode: str) -> Image.Image:
    """A square of ink amid a background."""
    picture = Image.new(mode, (64, 64), background)
    picture.paste(ink, (16, 16, 48, 48))
    return picture


def on_palette() -> Image.Image:
    picture = spot(0, 1, "P")
    picture.putpalette([*HIDDEN, *RED])
    return picture


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge(width: int = 20_000, height: int = 20_000) -> bytes:
    """The beginning of a PNG of so many pixels, which must not be asked for."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (turned(3, Image.Transpose.ROTATE_180), 12),
        (turned(6, Image.Transpose.ROTATE_90), 12),
        (turned(8, Image.Transpose.ROTATE_270), 12),
        (encoded(halves().convert("CMYK"), "JPEG", quality=95), 60),  # without a profile there is no one red
        (encoded(halves(), "PNG"), 0),
        (encoded(halves(), "WEBP", lossless=True), 0),
        (encoded(halves().convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), 1),
        (encoded(halves(), "TIFF"), 0),
    ],
    ids=["upside down", "on its side", "on its other side", "CMYK", "PNG", "WebP", "palette", "TIFF"],
)
def test_left_is_red_and_right_is_blue(data: bytes, tolerance: int) -> None:
    pixels = read_rgb(data)
    assert pixels.dtype == np.uint8 and pixels.shape == (64, 64, 3)
    for found, wanted in ((pixels[32, 0], RED), (pixels[32, -1], BLUE)):
        assert np.abs(found.astype(int) - wanted).max() <= tolerance


@pytest.mark.parametrize(
    ("data", "ink"),
    [
        (encoded(spot((*HIDDEN, 0), (*RED, 255), "RGBA"), "PNG"), RED),
        (encoded(on_palette(), "PNG", transparency=0), RED),
        (encoded(spot((0, 0), (0, 255), "LA"), "PNG"), (0, 0, 0)),
        (encoded(spot(HIDDEN, RED, "RGB"), "PNG", transparency=HIDDEN), RED),
        (encoded(spot(7, 0, "L"), "PNG", transparency=7), (0, 0, 0)),
        (encoded(spot(7, 0, "I;16"), "PNG", transparency=7), (0, 0, 0)),
    ],
    ids=[
        "RGBA",
        "palette",
        "grey with alpha",
        "RGB with a transparent colour",
        "grey with one",
        "16-bit grey with one",
    ],
)
def test_what_is_transparent_lies_on_white(data: bytes, ink: tuple[int, int, int]) -> None:
    pixels = read_rgb(data)
    assert tuple(pixels[0, 0]) == WHITE and tuple(pixels[32, 32]) == ink


def test_sixteen_bits_are_scaled() -> None:
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (4, 1))
    for data in (encoded(Image.fromarray(ramp), "PNG"), encoded(Image.fromarray(ramp), "TIFF")):
        grey: NDArray[np.uint8] = read_rgb(data)
        np.testing.assert_array_equal(grey[0, :, 0], np.arange(256))
        assert (grey == grey[..., :1]).all()


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.abs(read_rgb(data)[4, 4].astype(int) - RED).max() <= 8


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"<html>404 Not Found</html>", "it is no picture"),
        (encoded(halves(), "JPEG")[:400], "it cannot be decoded"),
        (encoded(halves(), "PNG")[:-40], "it cannot be decoded"),
        (huge(), "it has too many pixels"),
        (huge(2**13, 2**13 + 1), "it has too many pixels"),  # Pillow alone would take these
        (huge(2**13, 2**13), "it cannot be decoded"),
        (encoded(Image.new("F", (8, 8), 0.5), "TIFF"), "floating-point"),
        (encoded(Image.fromarray(np.full((8, 8), 70_000, np.int32)), "TIFF"), "more than 16 bits"),
    ],
    ids=[
        "empty",
        "a page",
        "half a JPEG",
        "most of a PNG",
        "too large",
        "larger than ours",
        "not too large",
        "floats",
        "32-bit grey",
    ],
)
def test_what_cannot_be_read_right_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_rgb(data)


def test_squares_are_the_centre_and_averages_are_those_of_the_levels() -> None:
    rgb = np.zeros((6, 11, 3), np.uint8)
    rgb[:, 2:8] = np.arange(36, dtype=np.uint8).reshape(6, 6, 1)
    assert (centre_crop(rgb, 6)[..., 0] == np.arange(36).reshape(6, 6)).all()
    assert centre_crop(rgb, 3).shape == (3, 3, 3) and centre_crop(rgb, 12).shape == (12, 12, 3)
    image = torch.from_numpy(centre_crop(rgb, 6).copy()).permute(2, 0, 1)
    expected = torch.nn.functional.avg_pool2d(image.float(), 2).round().to(torch.uint8)
    assert torch.equal(average(image, 3), expected) and average(image, 6) is image


def noise(mode: str) -> Image.Image:
    random = np.random.default_rng(len(mode))
    bands = {"L": 1, "RGB": 3, "CMYK": 4, "LA": 2, "RGBA": 4, "YCbCr": 3, "P": 3}[mode]
    pixels = random.integers(0, 256, (37, 29, bands), dtype=np.uint8)
    if mode == "P":
        return Image.fromarray(pixels).quantize(16)
    return Image.merge(mode, [Image.fromarray(pixels[..., band]) for band in range(bands)])


@pytest.mark.parametrize(
    "data",
    [
        *(encoded(noise(mode), "TIFF") for mode in ("L", "RGB", "CMYK", "RGBA", "YCbCr", "LA", "P")),
        encoded(noise("P"), "PNG", transparency=3),
        encoded(noise("RGB"), "PNG", transparency=(1, 2, 3)),
        encoded(noise("L"), "PNG", transparency=7),
        encoded(noise("RGB"), "WEBP", lossless=True),
        encoded(Image.fromarray(np.arange(37 * 29, dtype=np.uint16).reshape(37, 29) * 61), "PNG"),
        turned(6, Image.Transpose.ROTATE_90),
    ],
    ids=lambda data: str(len(data)),  # not its bytes
)
def test_strips_are_the_whole(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_rgb(data)
    for size in (1, 100, 29 * 36):
        monkeypatch.setattr(pixels, "STRIP_PIXELS", size)
        np.testing.assert_array_equal(read_rgb(data), whole)
    assert read_rgb(data).flags.c_contiguous and read_rgb(data).dtype == np.uint8


PEAK = """
import re, sys
from pathlib import Path
from mdm.data.pixels import read_rgb
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
data = sys.stdin.buffer.read()
before = peak()
read_rgb(data)
print((peak() - before) / 4096**2)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="nothing tells the peak of one process's memory")
def test_a_large_picture_is_held_decoded_and_as_the_result_and_no_third_time() -> None:
    """4 and 3 bytes for each pixel; 15 were held, over 1 GB at the most pixels that are read."""
    data = encoded(Image.new("RGBA", (4096, 4096), (1, 2, 3, 4)), "PNG", compress_level=1)
    ran = subprocess.run([sys.executable, "-c", PEAK], input=data, check=True, capture_output=True)
    assert 6 < float(ran.stdout) < 9


def test_no_program_is_started_for_what_calls_itself_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ghostscript, started = tmp_path / "gs", tmp_path / "started"
    ghostscript.write_text(f"#!/bin/sh\n: > {started}\necho 10.0\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # not looked for yet
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(ValueError, match="it is no picture"):
        read_rgb(drawing)
    assert not started.exists()
