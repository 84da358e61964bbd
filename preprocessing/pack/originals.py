"""Original pictures as they are stored: their own bytes, without what they say about people and places.

EXIF (GPS among it), XMP, IPTC and comments go; pixels are not encoded again, and how a picture is to be turned stays.
"""

import io
import struct
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from preprocessing.pack.images import encode_png

ORIENTATION = 0x0112
JPEG_KEPT = {0xE0, 0xE2, 0xEE}  # of the application segments: JFIF, colour profile, Adobe's transform
PNG_DROPPED = {b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"tIME"}
WEBP_DROPPED = {b"EXIF", b"XMP "}


def without_metadata(data: bytes, pixels: NDArray[np.uint8]) -> tuple[bytes, str]:
    """A picture's bytes -> those to store, and their extension; ``pixels``: what the one reader makes of them.

    JPEG, PNG and WebP keep their compressed pixels. Other formats, PNG and WebP that are to be turned, files of several
    pictures, and JPEG without an end become PNG of ``pixels``, which loses nothing.
    """
    with Image.open(io.BytesIO(data)) as picture:
        kind, turned = picture.format, picture.getexif().get(ORIENTATION, 1)
        plain = turned == 1 and getattr(picture, "n_frames", 1) == 1
    if kind == "JPEG":
        with suppress(ValueError, IndexError, struct.error):  # decoders forgive more than we do
            return _jpeg(data, turned), "jpg"
    if kind == "PNG" and plain:
        return data[:8] + b"".join(c for name, c in _png_chunks(data) if name not in PNG_DROPPED), "png"
    if kind == "WEBP" and plain:
        return _webp(data), "webp"
    return encode_png(pixels), "png"


def _jpeg(data: bytes, turned: int) -> bytes:
    kept, place = [data[:2]], 2
    if turned != 1:
        exif = Image.Exif()
        exif[ORIENTATION] = turned
        body = exif.tobytes()  # begins with Exif\0\0
        kept.append(b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body)
    while (marker := data[place + 1]) != 0xD9:  # the picture's end; what lies behind it goes as well
        end = place + 2 + struct.unpack(">H", data[place + 2 : place + 4])[0]
        if marker == 0xDA:  # a scan: its pixels follow, in which 0xFF is followed by 0 or counts restarts
            end = data.index(b"\xff", end)
            while data[end + 1] == 0 or 0xD0 <= data[end + 1] <= 0xD7:
                end = data.index(b"\xff", end + 1)
        if marker != 0xFE and (not 0xE0 <= marker <= 0xEF or marker in JPEG_KEPT):
            kept.append(data[place:end])
        place = end
        while data[place + 1] == 0xFF:  # padding
            place += 1
    return b"".join([*kept, data[place : place + 2]])


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 8
    while place + 12 <= len(data):
        length = struct.unpack(">I", data[place : place + 4])[0]
        name = data[place + 4 : place + 8]
        yield name, data[place : place + 12 + length]
        if name == b"IEND":  # what lies behind it goes as well
            return
        place += 12 + length


def _webp(data: bytes) -> bytes:
    kept, place = [], 12
    while place + 8 <= len(data):
        name, length = data[place : place + 4], struct.unpack("<I", data[place + 4 : place + 8])[0]
        chunk = data[place : place + 8 + length + length % 2]
        if name == b"VP8X":  # its flags say which chunks follow
            chunk = chunk[:8] + bytes([chunk[8] & ~0x0C]) + chunk[9:]
        if name not in WEBP_DROPPED:
            kept.append(chunk)
        place += len(chunk)
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body
