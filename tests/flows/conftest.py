"""What tests of data sets share."""

from pathlib import Path

import pytest

from dozen import DOZEN, FEW
from drawn import Inline
from flows.datasets import parts
from mdm.data import leases
from preprocessing.pack import making
from small import write_dataset


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty MDM_HOME's datasets/. Shards are packed here: processes take seconds to start."""
    vars(FEW)["drawings"] = DOZEN.drawings[:9]  # looking at all drawings takes seconds, too
    monkeypatch.setenv("MDM_HOME", str(tmp_path))
    monkeypatch.setattr(making, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(leases, "BEAT_S", 0.02)
    for module in (leases, parts):
        monkeypatch.setattr(module, "LOOK_S", 0.02)
    (tmp_path / "datasets").mkdir()
    return tmp_path / "datasets"


@pytest.fixture
def squares_here(root: Path) -> Path:
    for split in ("train", "val"):
        write_dataset(root / "squares", split, 9, 16, per_shard=4)
    return root / "squares"
