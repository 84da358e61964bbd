"""docs/extending.md is executed: its diffs on a copy of the packages."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from evaluation.results import METRICS_FORMAT

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def apply(diff: str, root: Path) -> None:
    """Hunks without line numbers: each must have one place that it fits."""
    for file, hunks in re.findall(r"^--- .*\n\+\+\+ b/(.*)\n((?:(?!--- ).*\n)*)", diff, re.MULTILINE):
        path = root / file
        text = path.read_text() if path.exists() else ""
        for hunk in hunks.split("@@\n")[1:]:
            lines = [(line[:1] or " ", line[1:] + "\n") for line in hunk.splitlines()]
            old, new = ("".join(line for mark, line in lines if mark in marks) for marks in (" -", " +"))
            fits = text.count(old) if text else 1
            assert fits == 1, f"docs/extending.md: {file} has {fits} places for\n{hunk}"
            text = text.replace(old, new) if old else new
        path.write_text(text)


# In a process of its own, because the packages are other ones there.
CHECK = """
import math
from typing import get_args

import numpy as np
import torch

import mdm
from evaluation.measuring import metrics
from evaluation.results import METRICS_FORMAT, VENDI
from evaluation.vendi import vendi
from flows.cli import main
from mdm.config import SamplerName, Sampling
from mdm.diffusion.process import Process
from mdm.diffusion.samplers import SAMPLERS
from mdm.diffusion.sampling import sample
from mdm.diffusion.schedules import Schedule
from mdm.presets import PRESETS

assert mdm.__file__.startswith(ROOT), mdm.__file__

assert metrics.vendi is vendi and metrics.VENDI is VENDI
assert METRICS_FORMAT > FORMAT_BEFORE  # else a finished run would not be measured anew
assert math.isclose(vendi(np.ones((5, 4))), 1) and math.isclose(vendi(np.repeat(np.eye(5), 2, axis=0)), 5)

schedule = Schedule(Schedule.cosine().gammas.double())
process = Process((2,), (schedule,))
start, calls = torch.randn(1, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), []


def exact(zs, t):
    "v of images N(0, 0.25): then the ODE's end is known."
    alpha, sigma = schedule.alphas[t[0] + 1], schedule.sigmas[t[0] + 1]
    calls.append(int(t[0]))
    x = zs[0] * alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
    return [(alpha * zs[0] - x) / sigma]


def error(steps):
    calls.clear()
    sampling = Sampling(sampler="heun", steps=steps, threshold="none")
    return float((sample(exact, process, sampling, lambda: [start])[0] - 0.5 * start).abs().mean())


assert set(SAMPLERS) == set(get_args(SamplerName))
assert math.log2(error(50) / error(100)) > 1.8 and len(calls) == 199  # the last step has one prediction

again = PRESETS["tiny"].stages["64-again"]
assert list(PRESETS["tiny"].stages)[-1] == "64-again" and again.start.stage == "64"
from PIL import Image
from pathlib import Path
from preprocessing.catalogue import Options, find
from preprocessing.pack.lists import write_lists

scans = Path("scans")
scans.mkdir()
for i in range(9):
    Image.new("RGB", (20, 20)).save(scans / f"sheet{i}.png")
    (scans / f"sheet{i}.txt").write_text("Rosa canina")
row = find("herbarium")
source = row.open(scans, Options())
assert row.recipe(source, Options()).tiers[0].px == 128
assert write_lists(source, Path("."), 1000, 8)["items"] == {"train": 1, "val": 8}
assert main(["config", "tiny", "--set", "sampling.sampler=heun"]) == 0
"""


def test_the_diffs_do_what_they_say(tmp_path: Path) -> None:
    for package in ("mdm", "evaluation", "preprocessing", "flows"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    assert len(blocks("diff")) == 4
    for diff in blocks("diff"):
        apply(diff, tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    program = [sys.executable, "-c", f"ROOT, FORMAT_BEFORE = {str(tmp_path)!r}, {METRICS_FORMAT}\n{CHECK}"]
    ended = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert '"sampler": "heun"' in ended.stdout
