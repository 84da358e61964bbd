"""Samples, metrics and the page are of what decides them: exchanged or removed held-out data never pass as done."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.generate import ImageJob, generate_images
from evaluation.images.image_folder import ImageFolder
from flows import evaluation
from flows.measuring import drawing
from flows.progress import board
from flows.records import export as records
from mdm.config import Labels, Sampling
from mdm.data.shards import Shards
from mdm.files import write_json
from mdm.network.nested import NestedUNet
from mdm.network.weights import save_weights
from mdm.presets import Data, Evaluation, Hardware, Preset
from mdm.stage import Stage, Training
from mdm.structure import from_dict
from preprocessing.remove import find, take_out
from small import small_model, write_dataset
from tests.evaluation.example_records import example_records

MODEL = replace(small_model(2), text=None, labels=Labels(num_classes=4))
PRESET = Preset(
    name="small",
    summary="of the tests",
    data=Data(name="squares"),
    text=None,
    stages={"16": Stage(model=MODEL, training=Training(nimg=8, batch_size=8))},
    sampling=Sampling(steps=1),
    evaluation=Evaluation(num_samples=8, feature_px=32),
    hardware=Hardware(device="cpu", processes=1),
)


class Silent:
    """Stands in for what reports to Prefect and MLflow."""

    def __init__(self, *_: Any) -> None: ...
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


@pytest.fixture
def go(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Sample and measure, as the flow does -> what was drawn and measured, as opposed to reused."""
    shutil.copytree(squares, tmp_path / "data")
    torch.manual_seed(0)
    save_weights(tmp_path / "weights", MODEL, NestedUNet(MODEL).state_dict())
    worked: list[str] = []

    def draw(module: str, folder: Path, *_: Any) -> None:
        before = ImageFolder(folder / "samples").places.keys()
        generate_images(folder, from_dict(ImageJob, json.loads((folder / "generate.json").read_text())), 0, 1)
        new = {index for index, _ in ImageFolder(folder / "samples").places.keys() - before}
        worked.append(" ".join(map(str, sorted(new))))

    measure = evaluation.measure

    def note(*arguments: Any) -> dict[str, Any]:
        worked.append("measured")
        return measure(*arguments)

    for name, value in (("measure", note), ("StageProgress", Silent), ("show_metrics", Silent)):
        monkeypatch.setattr(evaluation, name, value)
    monkeypatch.setattr(drawing, "run_job", draw)

    def run() -> list[str]:
        board(["sample", "evaluate"], lambda line: None)
        worked.clear()
        weights, data = tmp_path / "weights", tmp_path / "data"
        evaluation.sample_images.fn(PRESET, tmp_path / "run" / "samples", weights, data, None)
        evaluation.evaluate_samples.fn(PRESET, tmp_path / "run", weights, data, None)
        return list(worked)

    return run


def test_only_what_depends_on_the_held_out_data_is_made_again(go: Callable[[], list[str]], tmp_path: Path) -> None:
    every = " ".join(map(str, range(8)))
    val = tmp_path / "data" / "val"
    assert go() == [every, "measured"]
    assert go() == []
    take_out(val, find(val, {"val000"}))
    assert go() == ["measured"]  # no image is drawn for a removal
    results = json.loads((tmp_path / "run" / "evaluation" / "results.json").read_text())
    assert [(s["index"], s["key"]) for s in results["samples"]] == [(i, f"val{i:03d}") for i in range(1, 8)]
    shutil.rmtree(val)
    write_dataset(tmp_path / "other", "other", 12, 32)
    (tmp_path / "other" / "other").rename(val)
    assert go() == [every, "measured"]  # other captions
    ImageFolder(tmp_path / "run" / "samples" / "samples").forget({3})
    assert go() == ["3"]
    (tmp_path / "run" / "evaluation" / "results.json").unlink()
    assert go() == ["measured"] and (tmp_path / "run" / "evaluation" / "results.json").exists()
    assert go() == []


def test_samples_of_one_held_out_split_are_not_measured_against_another(
    go: Callable[[], list[str]], tmp_path: Path
) -> None:
    val, run = tmp_path / "data" / "val", tmp_path / "run"
    go()
    evaluation_before = (run / "evaluation" / "results.json").read_bytes()
    val.rename(tmp_path / "val")
    write_dataset(tmp_path / "data", "val", 12, 32)  # the same first captions, and more: other real images
    told = (
        rf"^{val} holds other data \(digest \w+\) than {run}/samples was drawn for \(\w+\): put that set back .*: mv "
    )
    with pytest.raises(ValueError, match=rf"{told}{run}/samples {run}/samples\.old$"):
        go()
    ImageFolder(run / "samples" / "samples").forget({3})  # nor are some of each
    with pytest.raises(ValueError, match=told):
        go()
    assert (run / "evaluation" / "results.json").read_bytes() == evaluation_before
    assert [path.name for path in run.glob("*.old*")] == []
    (run / "samples").rename(run / "samples.old")
    every = " ".join(map(str, range(8)))
    assert go() == [every, "measured"]
    shutil.rmtree(val)
    (tmp_path / "val").rename(val)
    (run / "samples" / "inputs.json").write_text('{"inputs": {}}')  # of other weights, say: they are moved aside
    assert go() == [every, "measured"]


def test_a_page_that_was_lost_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in ("16", "samples", "evaluation"):
        (tmp_path / stage).mkdir()
        write_json(tmp_path / stage / "done.json", {"inputs": stage})
    for name in ("record_stage", "show_link"):
        monkeypatch.setattr(evaluation, name, lambda *_: None)
    monkeypatch.setattr(evaluation, "export_records", lambda *_: example_records())
    board(["report"], lambda line: None)
    nobody: Any = Silent()

    def make() -> Path:
        return evaluation.write_report.fn(PRESET, tmp_path, tmp_path, tmp_path, nobody)

    page = make().read_text()
    for name in ("index.html", "records.json"):
        (tmp_path / "report" / name).unlink()
        assert make().read_text() == page and (tmp_path / "report" / name).exists()


def test_the_page_shows_each_sample_beside_its_own_picture(
    go: Callable[[], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    go()
    take_out(data / "val", find(data / "val", {"val000"}))
    go()
    results = json.loads((run / "evaluation" / "results.json").read_text())
    shown: list[list[Any]] = []
    strip = records.strip

    def note(tiles: list[Any]) -> Any:
        shown.append(tiles)
        return strip(tiles)

    monkeypatch.setattr(records, "strip", note)
    records._sample_grid(PRESET, run / "samples", data, results)
    val, train = Shards(data / "val"), Shards(data / "train")
    number = {val.key(i): i for i in val.present()}
    assert len(shown) == 7
    for sample, (*_, real, nearest) in zip(results["samples"], shown, strict=True):
        np.testing.assert_array_equal(real, val[number[sample["key"]]].image)
        assert train.key(sample["nearest_index"]) == sample["nearest_key"]
        np.testing.assert_array_equal(nearest, train[sample["nearest_index"]].image)
    shown.clear()
    write_json(data / "card.json", {"sheet": False})  # of strangers, and nobody asked
    (grid,) = records._sample_grid(PRESET, run / "samples", data, results)
    assert {len(tiles) for tiles in shown} == {len(MODEL.resolutions)} and "Strangers' pictures" in grid["note"]
    first = results["samples"][0]
    assert f"(nearest: {first['nearest_key']}, distance {first['nearest_distance']:.3g})" in grid["items"][0]["caption"]
    results["samples"][0]["nearest_key"] = "another"
    with pytest.raises(ValueError, match="is not what was measured"):
        records._sample_grid(PRESET, run / "samples", data, results)
