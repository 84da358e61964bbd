"""Crashes as somebody else's tool makes them (ckpt-chaos): a sample; `make drills` has them all."""

import os
import subprocess
from pathlib import Path

import pytest
from chaos_target import command


@pytest.mark.slow
@pytest.mark.parametrize(
    ("points", "options"),
    [(4, ["--modes", "before,torn"]), (3, ["--modes", "term", "--grace", "60"]), (3, ["--ranks", "2"])],
    ids=["killed", "SIGTERM", "one of two killed"],
)
def test_a_sample_of_crash_points_loses_nothing(points: int, options: list[str], squares: Path, tmp_path: Path) -> None:
    pytest.importorskip("ckpt_chaos", reason="ckpt-chaos is a development dependency: pip install ckpt-chaos")
    tests = Path(__file__).parents[2]
    done = subprocess.run(
        command(tmp_path / "work", squares, "--max-points", str(points), *options),
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
