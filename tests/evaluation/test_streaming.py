import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evaluation.measuring import streaming
from evaluation.measuring.streaming import extract_all, extract_blocks, images_done, plan_extraction
from evaluation.networks.features import EfficientNetLite0, Images, RandomFeatures

Uint8 = NDArray[np.uint8]
NETWORKS = [RandomFeatures(64), RandomFeatures(32, seed=1)]


class Source:
    """Gives images in portions of 5, notes where it was begun, and breaks off where it is told to."""

    def __init__(self, images: Uint8, breaks_at: int | None = None) -> None:
        self.images, self.breaks_at, self.starts = images, breaks_at, list[int]()

    def __call__(self, start: int, stop: int) -> Iterator[Images]:
        self.starts.append(start)
        for i in range(start, stop, 5):
            if self.breaks_at is not None and i >= self.breaks_at:
                raise OSError("the disk with the images is gone")
            yield self.images[i : min(i + 5, stop)]


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
    source, done = Source(drawings, breaks_at=70), list[int]()
    with pytest.raises(OSError, match="is gone"):
        extract_all(NETWORKS, source, tmp_path / "parts", 96, "drawings")
    assert images_done(tmp_path / "parts") == 64
    source.breaks_at = None
    parts = extract_all(NETWORKS, source, tmp_path / "parts", 96, "drawings", 8, done.append)
    assert source.starts == [0, 64, 64] and done == [72, 80, 88, 96]
    for name in whole:
        assert (tmp_path / "whole" / f"{name}.npy").read_bytes() == (tmp_path / "parts" / f"{name}.npy").read_bytes()
        np.testing.assert_array_equal(whole[name], parts[name])


def test_any_number_of_processes_shares_the_blocks_and_makes_the_same(
    tmp_path: Path, drawings: Uint8, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two breaks off in its third block of 10; three others do what is left, and nothing else."""
    monkeypatch.setattr(streaming, "BLOCK", 10)
    extract_all(NETWORKS, Source(drawings), tmp_path / "whole", 96, "drawings")
    shared, first, second = tmp_path / "shared", Source(drawings), Source(drawings, breaks_at=55)
    plan_extraction(NETWORKS, shared, 96, "drawings")
    with pytest.raises(OSError, match="is gone"):
        extract_blocks(NETWORKS, second, shared, 1, 2)
    extract_blocks(NETWORKS, first, shared, 0, 2)
    assert second.starts == [10, 30, 50] and first.starts == [0, 20, 40, 60, 80]
    assert images_done(shared) == 70
    left = [Source(drawings) for _ in range(3)]
    for rank, source in enumerate(left):
        extract_blocks(NETWORKS, source, shared, rank, 3)
    assert [source.starts for source in left] == [[90], [70], [50]] and images_done(shared) == 96
    for network in NETWORKS:
        file = f"{network.name}.npy"
        assert (tmp_path / "whole" / file).read_bytes() == (shared / file).read_bytes()
    with pytest.raises(ValueError, match=r"was planned with the networks .*, not \{'random_64': 'seed 0'\}"):
        extract_blocks(NETWORKS[:1], first, shared)


def test_pictures_of_several_sizes(tmp_path: Path, drawings: Uint8) -> None:
    portions = [drawings[:3], drawings[3:6, :, :32], drawings[6:8]]
    found = extract_all(NETWORKS, lambda start, stop: portions, tmp_path, 8, "mixed", batch_size=4)
    np.testing.assert_array_equal(found["random_64"], NETWORKS[0].extract(portions))


def test_refuses_other_inputs_and_other_numbers(tmp_path: Path, drawings: Uint8) -> None:
    for n, what in ((19, "more than the 19"), (21, "only 20 of the 21")):
        with pytest.raises(ValueError, match=what):
            extract_all(NETWORKS, lambda start, stop: [drawings[:20]], tmp_path / str(n), n, "drawings")
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
    assert source.starts == [] and list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """Of 4,000 images of 64 px, 49 MB, and 33 MB of features, less than 15 MB are held at a time."""
    code = f"""
import resource, sys
from pathlib import Path
import numpy as np, torch
from evaluation.networks.features import RandomFeatures
from evaluation.measuring.streaming import extract_all
torch.set_num_threads(1)
def images(start, stop):
    for i in range(start, stop):
        yield np.random.default_rng(i).integers(0, 256, (1, 3, 64, 64), np.uint8)
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
