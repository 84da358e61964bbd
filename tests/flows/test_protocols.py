"""Protocols with published networks from the plan to the numbers: what they ask, measure, refuse and draw again."""

import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from evaluation.extract import ExtractJob, run_extract
from evaluation.generate import ImageJob, Painter, generate_images
from evaluation.images import gallery, preparation
from evaluation.images.asked import random_labels
from evaluation.images.captions import read_lines
from evaluation.images.image_folder import ImageFolder
from evaluation.measuring.networks import NETWORKS
from evaluation.networks.features import Extractor, RandomFeatures
from evaluation.protocols import PROTOCOLS
from flows import data as data_tasks
from flows import evaluation as tasks
from flows import sweep
from flows.cli import main
from flows.measuring import drawing, extracting
from flows.measuring import plan as planning
from flows.measuring.plan import Evaluation, plan
from flows.measuring.released import TRAINED_ON, plan_released, write_weights
from flows.measuring.told import result_lines
from flows.progress import board
from made import write_originals
from mdm.config import ENCODERS, MODELS, Labels, Model, Text
from mdm.data.embeddings import TextSource
from mdm.data.text import load_encoder
from mdm.experiments import Protocol as ProtocolName
from mdm.files import load_as, sha256, write_json
from mdm.gallery import GALLERY, PICTURES, RANDOM_LABELS
from mdm.released.keys import model_from_options
from mdm.run.checkpoint import Contents, save_checkpoint
from mdm.stage import Cadence, Stage, Training
from mdm.structure import from_dict, to_dict
from preprocessing.remove import find, take_out
from small import attentive, small_job, small_model, write_t5
from tests.flows.test_evaluation import MODEL, PRESET, Silent

N = 32
GOLDEN = Path(__file__).parents[1] / "golden"
CLASSES = ("goldfish", "coral reef", "tench", "llama")


class MadeUp(RandomFeatures):
    """A network of random weights that is not known as one."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.name = f"made_up_{dim}"

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return features[:, :10]

    def text_features(self, captions: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([np.random.default_rng(len(c)).normal(size=self.dim).astype(np.float32) for c in captions])


def made_up(roles: Sequence[str]) -> dict[str, Extractor]:
    return {role: MadeUp(16 + i) for i, role in enumerate(NETWORKS) if role in roles}


class Measuring:
    """What the flow does with a run, without Prefect, MLflow, other processes. ``drawn``: images of its last call."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.drawn: list[int] = []
        for name, value in (("StageProgress", Silent), ("show_metrics", Silent)):
            patch.setattr(tasks, name, value)
        patch.setattr(drawing, "run_job", self.draw)
        patch.setattr(data_tasks, "StageProgress", Silent)
        patch.setattr(sweep, "embed_text", data_tasks.embed_text.fn)
        for name in ("sample_images", "evaluate_samples"):
            patch.setattr(sweep, name, getattr(tasks, name).fn)
        patch.setattr(sweep, "evaluate_standard", sweep.evaluate_standard.fn)
        patch.setattr(sweep, "load_networks", lambda *_: made_up(list(NETWORKS)))
        patch.setattr(extracting, "run_job", self.extract)
        patch.setattr(planning, "missing", lambda *_: [])  # no weight files
        patch.setattr(preparation, "ADM_PX", 16)
        nobody: Any = Silent()
        nobody.reachable = contextlib.nullcontext
        self.tracker = nobody

    def draw(self, module: str, folder: Path, *_: Any) -> None:
        before = ImageFolder(folder / "samples").places.keys()
        generate_images(folder, from_dict(ImageJob, json.loads((folder / "generate.json").read_text())), 0, 1)
        self.drawn = sorted({index for index, _ in ImageFolder(folder / "samples").places.keys() - before})

    def extract(self, module: str, folder: Path, *_: Any) -> None:
        job = load_as(ExtractJob, folder / "extract.json")
        for rank in range(2):
            run_extract(folder, job, rank, 2, lambda roles, *_: made_up(roles))

    def __call__(
        self, protocol: ProtocolName, planned: Evaluation | None = None, fast: bool = False, npz: bool = False
    ) -> list[dict[str, Any]]:
        """The records of its points."""
        planned = planned or plan("small", protocol, {})
        assert planned.lacks() == []
        board(sweep.ROWS, lambda line: None)
        self.drawn = []
        return sweep._measure(planned, planned.preset, self.tracker, lambda line: None, npz, fast)


LAST = "nimg-000000000008"


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
    write_originals(data / "train", 70, "imagenet", CLASSES)
    write_originals(data / "val", 3, "imagenet", CLASSES)
    write_run(folder, data, MODEL)
    return folder


def write_run(folder: Path, data: Path, model: Model, source: TextSource | None = None, **changes: Any) -> None:
    weights, job = attentive(model).state_dict(), replace(small_job(data), model=model, text=source)
    save_checkpoint(folder / "16" / "checkpoints", Contents(8, 1, model, weights, weights, {}, {}), Cadence())
    write_json(folder / "16" / "job.json", to_dict(job))
    stage = Stage(model=model, training=Training(nimg=8, batch_size=8))
    write_json(folder / "config.json", to_dict(replace(PRESET, stages={"16": stage}, **changes)))


def test_random_labels_are_uniform_and_each_for_itself() -> None:
    prompts = random_labels(8_000, 8, 0)
    counts = np.bincount([prompt.label for prompt in prompts if prompt.label is not None], minlength=8)
    assert counts.sum() == 8_000 and np.abs(counts - 1_000).max() < 5 * 1_000**0.5 and len({*counts}) > 1
    assert random_labels(100, 8, 0) == prompts[:100] != random_labels(100, 8, 1)


def test_random_labels_are_drawn_and_measured_against_all_of_train(run: Path, measuring: Measuring) -> None:
    (found,) = measuring("imagenet-50k", npz=True)
    assert found["n"] == N and len(measuring.drawn) == N  # three samples are held out: they limit nothing
    names = {metric["name"]: metric for metric in found["metrics"]}
    beside = {"noise", "real images", "samples beside real images"}
    assert f"fid_{N}_legacy" in names and set(names[f"fid_{N}_clean"]["values"]) == {"samples", *beside}
    folder = run / "evaluations" / "imagenet-50k" / LAST
    measured = json.loads((folder / "evaluation" / "results.json").read_text())
    assert measured["real_images"] == 70 and measured["measured"]["reference"]["preparation"] == "adm centre crop 256"
    lines = read_lines(folder / "samples" / "samples")
    assert [line.label for line in lines] == [prompt.label for prompt in random_labels(N, 4, 0)]
    assert len({line.label for line in lines}) == 4
    images = ImageFolder(folder / "samples" / "samples")
    with np.load(folder / "samples.npz", allow_pickle=False) as batch:
        assert batch["arr_0"].shape == (N, 16, 16, 3) and batch["arr_0"].dtype == np.uint8
        assert batch["arr_1"].tolist() == [line.label for line in lines]
        drawn = images.load([line.index for line in lines], 16)
        np.testing.assert_array_equal(batch["arr_0"], drawn.transpose(0, 2, 3, 1))
    kept = images.read(7, 16)
    images.forget({7})
    assert measuring("imagenet-50k") == [found] and measuring.drawn == [7]
    assert ImageFolder(images.folder).read(7, 16) == kept


def test_the_fast_path_gives_the_same_numbers_and_keeps_no_image(
    run: Path, measuring: Measuring, capsys: pytest.CaptureFixture[str]
) -> None:
    (fast,) = measuring("imagenet-50k", fast=True)
    folder = run / "evaluations" / "imagenet-50k" / "as-trained"
    assert not [*folder.rglob("*.png"), *folder.rglob("*.tar"), *folder.rglob("*.npz")] and measuring.drawn == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Painter, "draw", lambda *_: pytest.fail("all is known"))
        assert measuring("imagenet-50k", fast=True) == [fast]
    assert measuring("imagenet-50k") == [fast] and len(measuring.drawn) == N
    for more, told in (
        (["--protocol", "watch"], "protocol watch needs them"),
        (["--protocol", "imagenet-50k", "--npz"], "--npz needs them"),
        (["--protocol", "imagenet-50k", "--part", "1/2"], "which --part draws for others"),
        ([], "give --protocol"),
    ):
        assert main(["evaluate", "small", "--fast", *more]) == 1 and told in capsys.readouterr().err


def test_the_gallery_of_classes_has_each_figure_at_its_guidance(
    run: Path, measuring: Measuring, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="trained with its labels always there"):
        plan("small", "gallery", {})
    data = run.parent.parent / "datasets" / "imagenet"
    write_run(run, data, replace(MODEL, labels=Labels(num_classes=4, null=True)))
    random, named = measuring("gallery")
    assert (random["n"], named["n"]) == (2 * RANDOM_LABELS, 2 * PICTURES) and random["metrics"] == []  # Figs. 5 and 15
    assert (random["sampling.guidance"], named["sampling.guidance"]) == ([2.0], [2.5])
    folder = run / "evaluations" / "gallery"
    lines = read_lines(folder / f"{LAST}_guidance-2.5" / "samples" / "samples")
    assert [(line.caption, line.label) for line in lines[::PICTURES]] == [("coral reef", 1), ("llama", 3)]
    with Image.open(folder / f"{LAST}_guidance-2.5" / "contact-sheet.png") as sheet:
        assert sheet.size == (PICTURES * 260, 2 * 282) and len(sheet.getcolors(1 << 20) or []) > 10
    write_json(folder / "results.json", [random, named])
    assert main(["evaluate", "small", "--protocol", "gallery", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "2 points, 40 images, " in told and "no class of these words: rhinoceros beetle; Siberian husky" in told
    assert "WebVid-10M's Fig. 1, Fig. 19 (a model of clips has them)" in told
    assert [line.split(maxsplit=2)[2] for line in result_lines(folder)] == [
        f"no numbers: {folder}/{LAST}_guidance-{guidance}/contact-sheet.png" for guidance in ("2", "2.5")
    ]
    with pytest.raises(ValueError, match="--sweep guidance: each figure has its own"):
        plan("small", "gallery", {"guidance": ["3"]})


def test_the_gallery_of_captions_needs_no_data(
    run: Path, measuring: Measuring, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = replace(small_model(2), text=Text(dim=384, proj_dim=16, num_layers=1))
    source = TextSource(encoder="minilm", encoder_digest=load_encoder("minilm", Path("/nowhere")).digest())
    write_run(run, run / "gone", text, source=source, text="minilm")
    monkeypatch.setattr(gallery, "PICTURES", 1)
    (found,) = measuring("gallery")
    lines = read_lines(run / "evaluations" / "gallery" / f"{LAST}_guidance-7" / "samples" / "samples")
    assert [line.caption for line in lines] == [picture.prompt for picture in GALLERY if picture.data == "CC12M"]
    assert found["n"] == len(lines) == 31 and found["sampling.guidance"] == [7.0]
    measuring("gallery")
    assert measuring.drawn == []


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of the released form, of the golden network as if it were 256x256; and a COCO without training data."""
    monkeypatch.setenv("MDM_HOME", str(tmp_path))
    spec, tensors = json.loads((GOLDEN / "nested16_64.json").read_text()), load_file(GOLDEN / "nested16_64.safetensors")
    model = model_from_options(spec["config"], spec["resolutions"], spec["text_dim"])
    monkeypatch.setitem(MODELS, "256x256", model)
    monkeypatch.setitem(ENCODERS, "flan-t5-xl", replace(ENCODERS["flan-t5-xl"], dim=spec["text_dim"]))
    write_t5(tmp_path / "weights", ["a", "picture"], spec["text_dim"])
    weights = {key.removeprefix("weights/"): t.float() for key, t in tensors.items() if key.startswith("weights/")}
    torch.save({"state_dict": weights}, tmp_path / "vis_model.pth")
    for split, count in (("train", 0), ("val", 70)):
        write_originals(tmp_path / "datasets" / "coco2014-val" / split, count, "coco2014-val")
    quick = replace(PROTOCOLS["coco2014-val-30k"], sampling={"steps": 1}, metrics=("kid", "fd_dinov2", "clip_score"))
    monkeypatch.setitem(PROTOCOLS, "coco2014-val-30k", quick)
    return tmp_path / "vis_model.pth"


def test_a_released_file_is_measured_as_what_it_is(
    released: Path, measuring: Measuring, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    planned = plan_released(released, "coco2014-val-30k", {})
    write_weights(released, planned)
    with pytest.raises(ValueError, match="a released file is one checkpoint"):
        plan_released(released, "coco2014-val-30k", {"checkpoint": ["all"]})
    with pytest.raises(ValueError, match="that is no file, but a folder or a device"):
        plan_released(released.parent, "coco2014-val-30k", {})
    with pytest.raises(ValueError, match="there is no such file"):
        plan_released(released.parent / "none.pth", "coco2014-val-30k", {})
    (found,) = measuring("coco2014-val-30k", planned, npz=True)
    known = f"256x256-{sha256(released)[:12]}"
    assert planned.folder == tmp_path / "released" / known / "evaluations" / "coco2014-val-30k"
    assert (tmp_path / "weights" / f"released-{known}" / "TERMS.txt").exists()
    with np.load(planned.folder / "as-released" / "samples.npz", allow_pickle=False) as batch:
        assert batch.files == ["arr_0"]  # no labels
    assert found["about"] == TRAINED_ON and found["checkpoint"] == "vis_model.pth" and found["n"] == N
    assert all(metric["note"].startswith(f"{TRAINED_ON}. ") for metric in found["metrics"])
    names = {metric["name"] for metric in found["metrics"]}
    assert {f"kid_{N}_clean", f"clip_score_{N}_vit_l_14", f"fd_dinov2_{N}"} <= names
    write_weights(released, planned)
    assert measuring("coco2014-val-30k", planned) == [found] and measuring.drawn == []
    write_json(planned.folder / "results.json", [found])
    assert next(iter(result_lines(planned.folder))) == TRAINED_ON
    assert main(["evaluate", "--released", str(released), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert f"{TRAINED_ON}; its numbers are no reproduction" in told and "ddim, 1000 steps, guidance 1" in told


def test_the_released_script_leads_away_from_its_negative_prompt(
    released: Path, measuring: Measuring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With states that are stored, among which it is not."""
    row = PROTOCOLS["mdm-released"]
    monkeypatch.setitem(PROTOCOLS, "mdm-released", replace(row, sampling={**row.sampling, "steps": 1}))
    planned = plan_released(released, "mdm-released", {"guidance": ["2"]})
    write_weights(released, planned)
    (found,) = measuring("mdm-released", planned)
    folder = planned.folder / "guidance-2"
    job = from_dict(ImageJob, json.loads((folder / "samples" / "generate.json").read_text()))
    assert job.negative_prompt == "low quality" and job.text is not None and job.text.way == "cached"
    assert [drawn.name for drawn in job.sets] == ["samples"]  # an untrained model's are measured by stand-ins alone
    assert json.loads((folder / "samples" / "inputs.json").read_text())["inputs"]["negative_prompt"] == "low quality"
    settings = job.sets[0].sampling
    assert (settings.sampler, settings.eta, settings.threshold, settings.guidance) == ("ddim", 1.0, "clip", (2.0,))
    assert {f"fid_{N}_legacy", f"clip_score_{N}_vit_b_16"} <= {metric["name"] for metric in found["metrics"]}
    measuring("mdm-released", planned)
    assert measuring.drawn == []


def test_a_removal_draws_nothing_and_an_exchanged_split_is_refused(
    released: Path, measuring: Measuring, tmp_path: Path
) -> None:
    """Of standard protocols, whose data set is not the run's own."""
    planned = plan_released(released, "coco2014-val-30k", {})
    write_weights(released, planned)
    (before,) = measuring("coco2014-val-30k", planned, npz=True)
    images = planned.folder / "as-released" / "samples" / "samples"
    pictures = {path.name: path.read_bytes() for path in images.glob("*.png")}
    val = tmp_path / "datasets" / "coco2014-val" / "val"
    take_out(val, find(val, {"real003"}))
    (after,) = measuring("coco2014-val-30k", plan_released(released, "coco2014-val-30k", {}))
    assert measuring.drawn == [] and {path.name: path.read_bytes() for path in images.glob("*.png")} == pictures
    with np.load(planned.folder / "as-released" / "samples.npz") as batch:  # though it was not asked for again
        assert len(batch["arr_0"]) == N - 1
    assert (before["n"], after["n"]) == (N, N - 1) and before["protocol_digest"] != after["protocol_digest"]
    assert {metric["n"] for metric in after["metrics"]} == {N - 1}
    shutil.rmtree(val)
    write_originals(val, 71, "coco2014-val")
    with pytest.raises(ValueError, match=r"begun with another val split of coco2014-val \(digest .* move the folder"):
        plan_released(released, "coco2014-val-30k", {})
    plan_released(released, "mdm-released", {})  # which was not begun


def test_of_random_labels_the_training_split_is_what_may_not_be_exchanged(run: Path, measuring: Measuring) -> None:
    data = run.parent.parent / "datasets" / "imagenet"
    (found,) = measuring("imagenet-50k")
    shutil.rmtree(data / "val")
    write_originals(data / "val", 4, "imagenet", CLASSES)
    (again,) = measuring("imagenet-50k")
    assert measuring.drawn == [] and again["metrics"] == found["metrics"]
    shutil.rmtree(data / "train")
    write_originals(data / "train", 72, "imagenet", CLASSES)
    with pytest.raises(ValueError, match="begun with another train split of imagenet"):
        plan("small", "imagenet-50k", {})


def test_what_a_released_file_lacks_is_said_before_work(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MDM_OFFLINE", "1")
    shutil.rmtree(tmp_path / "weights")
    assert main(["evaluate", "--released", str(released), "--protocol", "gallery"]) == 1
    ended = capsys.readouterr()
    assert ended.out.count("missing: ") == 1 and "missing: text encoder flan-t5-xl: " in ended.out
    assert "protocol gallery cannot be measured here: what is missing stands above" in ended.err
    with pytest.raises(ValueError, match=r"asks with a run's own held-out samples, .* take coco2014-val-30k, "):
        plan_released(released, "watch", {})
    with pytest.raises(ValueError, match=r"50k asks with labels, and .* is conditioned on captions"):
        plan_released(released, "imagenet-50k", {})
    assert main(["evaluate", "small", "--released", str(released)]) == 1
    assert "--released FILE is instead of a run" in capsys.readouterr().err
    assert not (tmp_path / "released").exists()


def test_a_model_that_cannot_be_asked_so_is_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="coco2014-val-30k asks with captions, and small is conditioned on labels"):
        plan("small", "coco2014-val-30k", {})
    with pytest.raises(ValueError, match="imagenet-50k measures images of 256 px, and small draws 8, 16 px"):
        plan("small", "imagenet-50k", {})
