import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evaluation.measuring.streaming import extract_all
from evaluation.networks.features import EfficientNetLite0, Images, RandomFeatures

Uint8 = NDArray[np.uint8]
NETWORKS = [RandomFeatures(64), RandomFeatures(32, seed=1)]


class Source:
    """Gives images in portions of 5, notes where it was begun, and breaks off where it is told to."""

    def __init__(self, images: Uint8, breaks_at: int | None = None) -> None:
        self.images, self.breaks_at, self.starts = images, breaks_at, list[int]()

    def __call__(self, start: int) -> Iterator[Images]:
        self.starts.append(start)
        for i in range(start, len(self.images), 5):
            if self.breaks_at is not None and i >= self.breaks_at:
                raise OSError("the disk with the images is gone")
            yield self.images[i : i + 5]


def test_several_networks_each_image_once(tmp_path: Path, drawings: Uint8, extractor: EfficientNetLite0) -> None:
    source, done = Source(drawings[:20]), list[int]()
    found = extract_all([*NETWORKS, extractor], source, tmp_path, 20, "drawings", 8, done.append)
    assert source.starts == [0] and done == [8, 16, 20]
    for network in (*NETWORKS, extractor):
        assert isinstance(found[network.name], np.memmap)
        np.testing.assert_array_equal(found[network.name], network.extract(drawings[:20]))
    again = extract_all([*NETWORKS, extractor], source, tmp_path, 20, "drawings", 8)
    assert source.starts == [0]  # nothing was left to do
    np.testing.assert_array_equal(again["random_64"], found["random_64"])


def test_an_interrupted_one_goes_on_and_is_the_same(tmp_path: Path, drawings: Uint8) -> None:
    whole = extract_all(NETWORKS, Source(drawings), tmp_path / "whole", 96, "drawings")
    source = Source(drawings, breaks_at=50)
    with pytest.raises(OSError, match="is gone"):
        extract_all(NETWORKS, source, tmp_path / "parts", 96, "drawings")
    source.breaks_at = None
    parts = extract_all(NETWORKS, source, tmp_path / "parts", 96, "drawings")
    assert source.starts == [0, 48]
    for name in whole:
        assert (tmp_path / "whole" / f"{name}.npy").read_bytes() == (tmp_path / "parts" / f"{name}.npy").read_bytes()
        np.testing.assert_array_equal(whole[name], parts[name])


def test_pictures_of_several_sizes(tmp_path: Path, drawings: Uint8) -> None:
    portions = [drawings[:3], drawings[3:6, :, :32], drawings[6:8]]
    found = extract_all(NETWORKS, lambda start: portions, tmp_path, 8, "mixed", batch_size=4)
    np.testing.assert_array_equal(found["random_64"], NETWORKS[0].extract(portions))


def test_refuses_other_inputs_and_other_numbers(tmp_path: Path, drawings: Uint8) -> None:
    for n, what in ((19, "more than the 19"), (21, "only 20 of the 21")):
        with pytest.raises(ValueError, match=what):
            extract_all(NETWORKS, Source(drawings[:20]), tmp_path / str(n), n, "drawings")
    extract_all(NETWORKS, Source(drawings[:20]), tmp_path, 20, "drawings")
    for other, networks in (("inputs", NETWORKS), ("weights", NETWORKS[:1])):
        with pytest.raises(ValueError, match=f"holds features of other {other}. Delete the folder, or name another"):
            extract_all(networks, Source(drawings), tmp_path, 20, "others" if other == "inputs" else "drawings")
    for damage in (lambda file: os.truncate(file, 3000), lambda file: file.unlink()):
        damage(tmp_path / "random_64.npy")
        with pytest.raises(ValueError, match=r"random_64\.npy is gone or damaged. Delete the folder"):
            extract_all(NETWORKS, Source(drawings), tmp_path, 20, "drawings")


def test_features_that_are_not_finite_are_not_kept(tmp_path: Path, drawings: Uint8) -> None:
    broken = RandomFeatures(64)
    broken.layers[1][:, 3] = torch.nan
    with pytest.raises(ValueError, match="random_64: features of images 0 and on are not finite"):
        extract_all([broken], Source(drawings), tmp_path, 96, "drawings")


def test_no_network_computes_in_tf32(tmp_path: Path, drawings: Uint8, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the switches say while a network runs; they are as before afterwards."""
    seen = set()

    class Watching(RandomFeatures):
        def features(self, images: torch.Tensor) -> torch.Tensor:
            seen.add((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
            return super().features(images)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    Watching().extract(drawings[:2])
    extract_all([Watching()], Source(drawings[:2]), tmp_path, 2, "drawings")
    assert seen == {(False, False)} and torch.backends.cudnn.allow_tf32


def test_a_disk_without_room_is_known_before_any_image(tmp_path: Path, drawings: Uint8) -> None:
    source = Source(drawings)
    with pytest.raises(ValueError, match=r"features of 10\d+ images need \d+ MB there. Make room, or name a folder"):
        extract_all(NETWORKS, source, tmp_path, 10**15, "drawings")
    assert source.starts == [] and [file.name for file in tmp_path.iterdir()] == ["lock"]


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """Of 4,000 images of 64 px, 49 MB, and 33 MB of features, less than 15 MB are held at a time."""
    code = f"""
import resource, sys
from pathlib import Path
import numpy as np, torch
from evaluation.networks.features import RandomFeatures
from evaluation.measuring.streaming import extract_all
torch.set_num_threads(1)
def images(start):
    for i in range(start, n, 50):
        yield np.random.default_rng(i).integers(0, 256, (50, 3, 64, 64), np.uint8)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
network = RandomFeatures(2048)
n = 200
extract_all([network], images, Path({str(tmp_path)!r}) / "few", n, "noise", 50)
before, n = peak(), 4000
extract_all([network], images, Path({str(tmp_path)!r}) / "many", n, "noise", 50)
print(peak() - before)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(ended.stdout) < 15
