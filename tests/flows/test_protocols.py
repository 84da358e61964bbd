"""Protocols with published networks from the plan to the numbers: what they ask, measure, refuse and draw again."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evaluation import preparation
from evaluation.asked import random_labels
from evaluation.captions import read_lines
from evaluation.features import RandomFeatures
from evaluation.generate import ImageJob, generate_images
from evaluation.image_folder import ImageFolder
from evaluation.networks import NETWORKS
from evaluation.protocols import PROTOCOLS
from flows import evaluation as tasks
from flows import sweep
from flows.measuring import plan as planning
from flows.measuring.plan import plan
from flows.progress import board
from made import write_originals
from mdm.experiments import Protocol as ProtocolName
from mdm.files import write_json
from mdm.network.nested import NestedUNet
from mdm.run.checkpoint import Contents, save_checkpoint
from mdm.stage import Cadence
from mdm.structure import from_dict, to_dict
from small import small_job
from tests.flows.test_evaluation import MODEL, PRESET, Silent

N = 32


class MadeUp(RandomFeatures):
    """A network of random weights that is not known as one."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.name = f"made_up_{dim}"

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return features[:, :10]

    def text_features(self, captions: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([np.random.default_rng(len(c)).normal(size=self.dim).astype(np.float32) for c in captions])


class Measuring:
    """What the flow does with a run, without Prefect, MLflow, other processes. ``drawn``: images of its last call."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.drawn: list[int] = []
        for name, value in (("run_job", self.draw), ("StageProgress", Silent), ("show_metrics", Silent)):
            patch.setattr(tasks, name, value)
        for name in ("sample_images", "evaluate_samples"):
            patch.setattr(sweep, name, getattr(tasks, name).fn)
        patch.setattr(sweep, "load_networks", lambda *_: {role: MadeUp(16 + i) for i, role in enumerate(NETWORKS)})
        patch.setattr(planning, "missing", lambda *_: [])  # no weight files
        patch.setattr(preparation, "ADM_PX", 16)
        nobody: Any = Silent()
        nobody.reachable = contextlib.nullcontext
        self.tracker = nobody

    def draw(self, module: str, folder: Path, *_: Any) -> None:
        before = ImageFolder(folder / "samples").places.keys()
        generate_images(folder, from_dict(ImageJob, json.loads((folder / "generate.json").read_text())), 0, 1)
        self.drawn = sorted({index for index, _ in ImageFolder(folder / "samples").places.keys() - before})

    def __call__(self, protocol: ProtocolName) -> dict[str, Any]:
        """The record of its one point."""
        planned = plan("small", protocol, {})
        assert planned.lacks() == []
        board(["sample", "evaluate"], lambda line: None)
        self.drawn = []
        (point,) = sweep._measure(planned, planned.preset, self.tracker, lambda line: None)
        return point


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Measuring:
    for name in ("imagenet-50k", "mdm-released", "coco2014-val-30k"):
        monkeypatch.setitem(PROTOCOLS, name, replace(PROTOCOLS[name], num_samples=N))
    return Measuring(monkeypatch)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of four classes of "imagenet", whose originals are kept: one checkpoint, made and not trained."""
    monkeypatch.setenv("MDM_HOME", str(tmp_path))
    data, folder = tmp_path / "datasets" / "imagenet", tmp_path / "runs" / "small"
    write_originals(data / "train", 70, "imagenet", labels=4)
    write_originals(data / "val", 3, "imagenet", labels=4)
    torch.manual_seed(0)
    weights = NestedUNet(MODEL).state_dict()
    save_checkpoint(folder / "16" / "checkpoints", Contents(8, 1, MODEL, weights, weights, {}, {}), Cadence())
    write_json(folder / "16" / "job.json", to_dict(replace(small_job(data), model=MODEL, text=None)))
    write_json(folder / "config.json", to_dict(PRESET))
    return folder


def test_random_labels_are_uniform_and_each_for_itself() -> None:
    prompts = random_labels(8_000, 8, 0)
    counts = np.bincount([prompt.label for prompt in prompts if prompt.label is not None], minlength=8)
    assert counts.sum() == 8_000 and np.abs(counts - 1_000).max() < 5 * 1_000**0.5 and len({*counts}) > 1
    assert random_labels(100, 8, 0) == prompts[:100] != random_labels(100, 8, 1)


def test_random_labels_are_drawn_and_measured_against_all_of_train(run: Path, measuring: Measuring) -> None:
    found = measuring("imagenet-50k")
    assert found["n"] == N and len(measuring.drawn) == N  # three samples are held out: they limit nothing
    names = {metric["name"]: metric for metric in found["metrics"]}
    assert f"fid_{N}_legacy" in names and set(names[f"fid_{N}_clean"]["values"]) == {"samples", "noise", "real images"}
    folder = run / "evaluations" / "imagenet-50k" / "as-trained"
    measured = json.loads((folder / "evaluation" / "results.json").read_text())
    assert measured["real_images"] == 70 and measured["measured"]["reference"]["preparation"] == "adm centre crop 256"
    lines = read_lines(folder / "samples" / "samples")
    assert [line.label for line in lines] == [prompt.label for prompt in random_labels(N, 4, 0)]
    assert len({line.label for line in lines}) == 4
    images = ImageFolder(folder / "samples" / "samples")
    kept = images.read(7, 16)
    images.forget({7})
    assert measuring("imagenet-50k") == found and measuring.drawn == [7]
    assert ImageFolder(images.folder).read(7, 16) == kept


def test_a_model_that_cannot_be_asked_so_is_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="coco2014-val-30k asks with captions, and small is conditioned on labels"):
        plan("small", "coco2014-val-30k", {})
