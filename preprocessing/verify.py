"""Every picture of a finished folder, decoded: what a digest cannot tell of a set that came from elsewhere."""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from preprocessing.manifest import read_manifest


def decode_all(
    folder: Path, read_rgb: Callable[[bytes], NDArray[np.uint8]], progress: Callable[[int], object] = lambda n: None
) -> None:
    """Raises ValueError naming (the first of) the samples that cannot be read, or have another size than the set's."""
    manifest = read_manifest(folder)
    px, wrong = manifest["resolution_px"], []
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        spans = np.load(path.with_suffix(".idx.npy"))
        with path.open("rb") as tar, ThreadPoolExecutor(2) as pool:  # decoders let go of the interpreter

            def look(row: NDArray[np.int64], path: Path = path, file: int = tar.fileno()) -> str:
                *images, text, meta = (os.pread(file, int(length), int(offset)) for offset, length in row)
                if not meta:
                    return ""  # removed
                try:
                    text.decode()
                    found = {read_rgb(image).shape for image in images}
                    if px and found != {(px, px, 3)}:
                        raise ValueError(f"its pictures are {found}, not {px} x {px} px")
                except ValueError as error:
                    return f"{path}: {json.loads(meta).get('key')!r}: {error}"
                return ""

            for line in pool.map(look, spans):
                wrong += [line] if line else []
                progress(1)
    if wrong:
        more = f" (and {len(wrong) - 1:,} more)" if len(wrong) > 1 else ""
        raise ValueError(f"{wrong[0]}{more}: take them out (`mdm data NAME --remove FILE`), or make the set anew")
