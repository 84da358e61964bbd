"""What tests of several packages share."""

import os

# Two tests run at a time, a core each: two threads of both would stall each other. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest

from small import write_dataset


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder: train (40 samples, 5 shards) and val (9)."""
    folder = tmp_path_factory.mktemp("squares")
    write_dataset(folder, "train", 40, 32)
    write_dataset(folder, "val", 9, 32)
    return folder
