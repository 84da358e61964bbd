"""A list of CC12M's form and the server it names: pictures of every kind, and everything that can go wrong with them.

``ROWS`` has each kind with the outcome that the data card must count it by, so that a test can add them up.
"""

import io
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
from PIL import Image

from hostile_server import HostileServer

OK = "ok"


def photograph(number: int, width: int = 96, height: int = 64) -> Image.Image:
    """A ramp between two colours that the number decides: it survives JPEG, and no two are alike."""
    ends = np.random.default_rng(number).integers(0, 256, (2, 3))
    across = np.linspace(0, 1, width)[None, :, None]
    return Image.fromarray(
        np.broadcast_to(ends[0] * (1 - across) + ends[1] * across, (height, width, 3)).astype("uint8")
    )


def encoded(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _bomb() -> bytes:
    """A PNG of 65,000 x 65,000 bits, all alike, in about 0.5 MB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    row = bytes(1 + 65_000 // 8)
    body = b"".join(packer.compress(row * 100) for _ in range(650)) + packer.flush()
    header = struct.pack(">IIBBBBB", 65_000, 65_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _odd_pictures() -> dict[str, bytes]:
    turned = Image.Exif()
    turned[0x0112], turned[0x010E] = 6, "taken at home"
    grey = Image.fromarray(np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1)))
    frames = [photograph(1000), photograph(1001)]
    whole = encoded(photograph(1002, 512, 512), quality=95)
    return {
        "turned.jpg": encoded(photograph(1003), exif=turned),
        "grey16.png": encoded(grey, "PNG"),
        "cmyk.jpg": encoded(photograph(1004).convert("CMYK")),
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "pixel.png": encoded(photograph(1005, 1, 1), "PNG"),
        "large.webp": encoded(photograph(1006, 1100, 1050), "WEBP"),
        "text.jpg": b"<html>404 Not Found</html>",
        "half.jpg": whole[: len(whole) // 2],
        "bomb.png": _bomb(),
    }


ODD = _odd_pictures()
# path on the server, or a whole address -> what becomes of it
ODD_ADDRESSES = {
    **{
        f"/odd/{name}": OK
        for name in ("turned.jpg", "grey16.png", "cmyk.jpg", "animated.gif", "pixel.png", "large.webp")
    },
    "/odd/text.jpg": "picture: it is no picture",
    "/odd/half.jpg": "picture: it cannot be decoded",
    "/odd/bomb.png": "picture: it has too many pixels",
    "/page.jpg": "picture: it is no picture",
    "/odd/none.jpg": "http 404",
    "/status/500": "http 500",
    "/hostile-reason": "http 404",
    "/wait-long/1": "http 429",
    "/empty": "empty",
    "/loop": "redirects",
    "/to/http%3A%2F%2F10.0.0.1%2Fx.jpg": "refused: address",
    "/to/file%3A%2F%2F%2Fetc%2Fpasswd": "refused: scheme",
    "/noai": "refused: noai",
    "/private/1.jpg": "refused: robots",
    "/truncated": "truncated",
    "/huge": "too large",
    "/silent": "timeout",
    "/drip": "timeout",
    "/nonsense": "protocol",
    "/hang-up": "connection",
    "file:///etc/passwd": "refused: scheme",
    "data:image/png;base64,AAAA": "refused: scheme",
    "http://169.254.169.254/latest/meta-data": "refused: address",
    "http://[::ffff:127.0.0.1]:1/x.jpg": "refused: address",
    "no address": "refused: scheme",
}
HOSTILE = "<script>alert(1)</script> [x](javascript:alert(1)) \u202egnp.exe =cmd|' /C calc'!A0 \x1b[31m"
# a caption, or a whole line without an address -> what becomes of a good picture that has it
ODD_CAPTIONS: dict[bytes, str] = {
    b'a "stray quote': OK,
    b"left\tright": OK,
    HOSTILE.encode(): OK,
    "träumerisch".encode() * 50: OK,
    b"": "caption empty",
    b"  ": "caption empty",
    b"caf\xe9": "not UTF-8",
    b"x" * 100_000: "caption over 10,000 characters",
}


class PictureServer(HostileServer):
    """The hostile server, with pictures: /photo/N.jpg, and /odd/NAME."""

    def _answer(self, to: BaseHTTPRequestHandler, path: str) -> None:
        _, kind, *rest = path.split("/", 2)
        if kind == "photo":
            body = encoded(photograph(int(rest[0].partition(".")[0])))
        elif kind == "odd" and rest[0] in ODD:
            body = ODD[rest[0]]
        else:
            super()._answer(to, path)
            return
        to.send_response(200)
        to.send_header("Content-Length", str(len(body)))
        to.end_headers()
        to.wfile.write(body)


def write_list(path: Path, server: str, count: int) -> Counter[str]:
    """cc12m.tsv of so many lines, the odd ones spread among good ones -> how many items of each outcome it lists."""
    lines = list(_odd_lines(server))
    good = iter(range(count))
    while len(lines) < count:
        number = next(good)
        lines.insert(7 * number % len(lines), (f"http://{server}/photo/{number}.jpg\ta ramp, {number}\n".encode(), OK))
    assert len(lines) == count
    path.write_bytes(b"".join(line for line, _ in lines))
    return Counter(outcome for _, outcome in lines)


def _odd_lines(server: str) -> Iterator[tuple[bytes, str]]:
    for place, (address, outcome) in enumerate(ODD_ADDRESSES.items()):
        url = f"http://{server}{address}" if address.startswith("/") else address
        end = ("\n", "\r\n")[place % 2]  # some lines are of Windows
        yield f"{url}\tan odd one, {place}{end}".encode(), outcome
    for place, (caption, outcome) in enumerate(ODD_CAPTIONS.items()):
        yield f"http://{server}/photo/{9000 + place}.jpg\t".encode() + caption + b"\n", outcome
    for path in ("/wait/1.jpg", "/flaky/1.jpg"):
        yield f"http://{server}{path}\ttried again\n".encode(), "picture: it is no picture"
    yield f"http://{server}/photo/9100.jpg\n".encode(), "no tab"
    yield f"http://{server}/photo/9101.jpg\ta placeholder\n".encode(), OK
    yield f"http://{server}/photo/9101.jpg\tthe same one, called otherwise\n".encode(), OK
