"""Drawn images as one file, as ADM's evaluation suite and others take a batch of samples."""

import zipfile
from pathlib import Path

import numpy as np

from evaluation.images.preparation import Drawn
from mdm.files import whole_file


def _comment(file: Path) -> str:
    """Of an archive; "" where there is none, or a damaged one."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.comment.decode(errors="replace")
    except (OSError, zipfile.BadZipFile):
        return ""


def write_npz(drawn: Drawn, file: Path) -> None:
    """``arr_0`` uint8 [N, H, H, 3], and ``arr_1`` int64 [N] where the images have labels; read by ``numpy.load``.

    One image at a time goes through memory. Not compressed, as ``numpy.savez`` has it. A file that is of these images
    stays as it is: the archive's comment says of which it is.
    """
    if _comment(file) == drawn.content:
        return
    labels = [line.label for line in drawn.lines if line.label is not None]
    with whole_file(file) as opened, zipfile.ZipFile(opened, "w") as archive:
        archive.comment = drawn.content.encode()
        with archive.open("arr_0.npy", "w", force_zip64=True) as part:
            shape = len(drawn), drawn.px, drawn.px, 3
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(part, header)
            for image in drawn.batches(0, len(drawn)):  # uint8 [1, 3, H, H]
                part.write(image[0].transpose(1, 2, 0).tobytes())
        if len(labels) == len(drawn):
            with archive.open("arr_1.npy", "w") as part:
                np.lib.format.write_array(part, np.array(labels, np.int64), allow_pickle=False)
