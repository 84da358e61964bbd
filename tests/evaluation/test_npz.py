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
