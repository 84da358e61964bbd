"""Images as one file: whatever there are, memory holds one."""

import tracemalloc
from pathlib import Path

import numpy as np
import torch

from evaluation.images.captions import Prompt, assign
from evaluation.images.image_folder import ImageFolder
from evaluation.images.npz import write_npz
from evaluation.images.preparation import Drawn


def test_the_images_are_streamed(tmp_path: Path) -> None:
    assign(tmp_path, [Prompt(key=f"{i}", caption="") for i in range(48)], 0)
    pictures = torch.rand(48, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ImageFolder(tmp_path).save([pictures], range(48), range(48))
    drawn = Drawn.open(tmp_path, "as drawn")
    tracemalloc.start()
    write_npz(drawn, tmp_path / "batch.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with np.load(tmp_path / "batch.npz", allow_pickle=False) as batch:
        found = batch["arr_0"]
    assert peak < found.nbytes / 4
    np.testing.assert_array_equal(found.transpose(0, 3, 1, 2), np.concatenate(list(drawn.batches(0, len(drawn)))))


def test_a_file_is_written_anew_where_it_is_of_other_images(tmp_path: Path) -> None:
    prompts, file = [Prompt(key=f"{i}", caption="") for i in range(3)], tmp_path / "batch.npz"
    assign(tmp_path / "images", prompts, 0)
    ImageFolder(tmp_path / "images").save([torch.zeros(3, 3, 8, 8)], range(3), range(3))
    written = []
    for asked in (prompts, prompts, prompts[1:]):
        write_npz(Drawn.open(tmp_path / "images", "as drawn", asked), file)
        written.append(file.stat().st_mtime_ns)
    assert written[0] == written[1] != written[2]
    whole = file.read_bytes()
    place = whole.rindex(b"PK\x01\x02")  # of the table of contents, which the end of the file leads to
    for damaged in (b"torn", whole[:place] + b"?" + whole[place + 1 :]):
        file.write_bytes(damaged)
        write_npz(Drawn.open(tmp_path / "images", "as drawn"), file)
        with np.load(file, allow_pickle=False) as batch:
            assert len(batch["arr_0"]) == 3
