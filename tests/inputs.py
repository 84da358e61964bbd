"""Small files as other people write them."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

Members = list[tuple[str, bytes | None]]  # None: a folder


def png(shade: int = 7) -> bytes:
    """16 x 16 px of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 0, 255 - shade)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes | None]], tar_format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            info.size = len(data or b"")
            info.mtime = 0.5  # no whole second: a header more for each member, as img2dataset has it
            tar.addfile(info, io.BytesIO(data or b""))
    return path
