"""Evaluations in MLflow: checkpoints are models that rank, prompts line up, nothing is sent twice or waited for."""

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.images.captions import Line, write_lines
from evaluation.images.image_folder import ImageFolder
from evaluation.measuring.identity import drawn_by, way_of
from flows.records.evaluations import EvaluationRecord, image_key, metric_values
from flows.records.tracking import Tracker
from mdm.config import Sampling
from mdm.files import write_json
from small import write_dataset
from tests.flows.test_tracking import empty_store, home

assert home and empty_store  # fixtures

KID = "kid_efficientnet_lite0"


@pytest.fixture
def run(home: Path) -> Path:
    """Two checkpoints of a run that MLflow knows, and images of one point each."""
    run = home / "runs" / "small"
    for nimg in (100, 200):
        checkpoint = run / "16" / "checkpoints" / f"nimg-{nimg:012d}"
        checkpoint.mkdir(parents=True)
        write_json(checkpoint / "manifest.json", {"files": {"ema/model.safetensors": {"sha256": f"{nimg:064d}"}}})
    for split in ("train", "val"):
        write_dataset(home / "data", split, 4, 8)
    Tracker(run, "small")
    return run


def draw(folder: Path, count: int = 10) -> None:
    images = folder / "samples" / "samples"
    ImageFolder(images).save([torch.zeros(count, 3, 8, 8)], range(count), range(count))
    write_lines(images, [Line(index=i, key=f"k{i}", caption=f"<b>cat {i}", seed=i) for i in range(count)])
    (folder / "evaluation").mkdir()
    rows = [{"index": i, "key": f"k{i}", "caption": "", "cosines": {"clip": i / 10}} for i in range(count)]
    (folder / "evaluation" / "cosines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def send(record: EvaluationRecord, nimg: int, kid: float, way: str = "", **sampling: Any) -> None:
    checkpoint = record.run / "16" / "checkpoints" / f"nimg-{nimg:012d}"
    point = "_".join(filter(None, (checkpoint.name, way)))
    if not (record.folder / point).exists():
        draw(record.folder / point)
    facts: dict[str, Any] = {
        "stage": "16",
        "protocol": "embedded",
        "protocol_digest": "0123456789ab",
        "checkpoint": checkpoint.name,
    }
    facts |= {"nimg": nimg, "seed": 0, "n": 10, "sampling.steps": 4}
    metric = {"name": KID, "n": 10, "values": {"samples": kid, "noise": 9.0}, "interval": {"samples": [0, 10]}}
    drawn = drawn_by(Sampling(guidance=(3.0, 1.0) if way else (1.0,), **sampling), 0)
    done = {"metrics": [metric], "finished_ms": 1_700_000_000_000}
    record.send(checkpoint / "ema", point, facts, way_of(drawn), done)


def record_of(run: Path, said: list[str]) -> EvaluationRecord:
    folder = run / "evaluations" / "embedded"
    folder.mkdir(parents=True, exist_ok=True)
    return EvaluationRecord(run, folder, run.parents[1] / "data", said.append)


def client_of(run: Path) -> tuple[Any, str]:
    tracker = Tracker(run, "small")
    return tracker.client, tracker.experiment


def test_checkpoints_are_models_that_rank(run: Path) -> None:
    record = record_of(run, [])
    for nimg, kid, way in ((100, 0.5, ""), (200, 0.2, ""), (200, 0.9, "guidance-3")):
        send(record, nimg, kid, way)
    client, experiment = client_of(run)
    usual = f"guidance 1 {KID}_n10 250 steps ddpm embedded-0123456789ab"
    key = f"metrics.{usual}"
    for ascending, first in ((True, "200"), (False, "100")):
        order: Any = [{"field_name": key, "ascending": ascending}]
        found = client.search_logged_models([experiment], order_by=order)
        assert len(found) == 2 and found[0].params["nimg"] == first
    best = next(model for model in found if model.params["nimg"] == "200")
    assert best.params["path"].endswith("nimg-000000000200/ema") and best.tags["mdm.ema_sha256"] == f"{200:064d}"
    assert {m.key: m.value for m in best.metrics} == {
        usual: 0.2,
        usual.replace("guidance 1", "guidance 3-1"): 0.9,
    }
    training = Tracker(run, "small").parent
    assert best.source_run_id == training and best.status == "READY"


def test_what_is_in_one_column_was_drawn_in_one_way(run: Path) -> None:
    """Of points that a sweep names alike: what they differ in was not swept, but is the runs' own."""
    record = record_of(run, [])
    send(record, 100, 0.5)
    send(record, 200, 0.2, sampler="ddim", eta=0.5, threshold="clip", guidance_interval=(0.0, 0.8))
    client, experiment = client_of(run)
    models = client.search_logged_models([experiment])
    assert {metric.key.partition(f" {KID}_n10 ")[2] for model in models for metric in model.metrics} == {
        "250 steps ddpm embedded-0123456789ab",
        "250 steps ddim eta 0.5 guidance interval 0-0.8 threshold clip embedded-0123456789ab",
    }


def test_a_run_per_checkpoint_a_child_per_way_and_nothing_twice(run: Path) -> None:
    def send_all(kid: float = 0.2) -> EvaluationRecord:
        record = record_of(run, [])
        for nimg, way in ((100, ""), (200, ""), (200, "guidance-3")):
            send(record, nimg, kid, way)
        return record

    record = send_all()
    send_all()  # the same command again
    client, experiment = client_of(run)
    names = {
        r.info.run_name: r for r in client.search_runs([experiment]) if {"protocol", "run"} <= r.data.params.keys()
    }
    assert set(names) == {"small 16 embedded nimg-000000000100", "small 16 embedded nimg-000000000200"}
    late = names["small 16 embedded nimg-000000000200"]
    assert late.info.status == "FINISHED"
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{late.info.run_id}'")
    assert len(children) == 2 and {child.info.status for child in children} == {"FINISHED"}
    child = next(c for c in children if c.info.run_name.endswith("guidance-3"))
    assert child.data.tags["mdm.training_run"] == Tracker(run, "small").parent
    assert child.data.params["sampling.steps"] == "4" and child.data.metrics[f"eval/{KID}_n10/noise"] == 9.0
    (point,) = client.get_metric_history(child.info.run_id, f"eval/{KID}_n10")
    assert (point.step, point.value) == (200, 0.2)
    inputs = client.get_run(child.info.run_id).inputs
    assert (len(inputs.dataset_inputs), len(inputs.model_inputs)) == (2, 1)
    images = [a.path for a in client.list_artifacts(child.info.run_id, "images") if a.path.endswith(".png")]
    assert len(images) == 8 and all("+step+200+" in path for path in images)
    table = json.loads(Path(client.download_artifacts(child.info.run_id, "prompts.json")).read_text())
    assert table["columns"] == ["key", "caption", "label", "seed", "cosine clip"]
    assert table["data"][3] == ["k3", "<b>cat 3", None, "3", 0.3] and len(table["data"]) == 10
    send_all(0.3)  # measured anew: other numbers are another child's
    assert len(client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{late.info.run_id}'")) == 4
    assert record.trouble == ""


def test_n_stands_in_every_name() -> None:
    values = {"samples": 20.0, "noise": 300.0, "real images": 12.0}
    metric = {"name": "fid_24", "n": 24, "values": values, "sizes": {"real images": 12}}
    own, found = metric_values([metric | {"interval": {"real images": [11.0, 13.0]}}])
    real = "eval/fid_24_n24/real_images_n12"
    assert own == {"eval/fid_24_n24": 20.0}
    assert found == own | {"eval/fid_24_n24/noise": 300.0, real: 12.0, f"{real}_low": 11.0, f"{real}_high": 13.0}


def test_a_key_has_the_letters_that_mlflow_admits() -> None:
    line = Line(index=0, key="1F3CA-200D", caption='<b>wo/man "§" swimming', seed=1)
    assert image_key(line) == "b wo man swimming 1F3CA-200D"
    assert image_key(Line(index=1, key="k", caption="", seed=1, label=3)) == "label 3 k"


def test_a_server_that_is_away_is_said_once_and_waited_for_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{probe.getsockname()[1]}")
    said: list[str] = []
    record = record_of(run, said)
    begun = time.monotonic()
    send(record, 100, 0.5)
    first = time.monotonic() - begun
    for nimg in (100, 200, 200):
        send(record, nimg, 0.5)
    assert time.monotonic() - begun - first < 1 and first < 30
    (line,) = said
    assert "cannot be used" in line and "goes on without MLflow" in line
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    send(record_of(run, said), 100, 0.5)  # the same command, once it is back
    client, experiment = client_of(run)
    assert len(client.search_logged_models([experiment])) == 1 and len(said) == 1
