"""The whole flow at a very small size: once through, once again, and killed in every stage."""

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from flows.home import sqlite_address
from flows.records.tracking import EXPERIMENT
from mdm.files import sha256

SMALL = [
    *("--set", "data.limit=120", "--set", "data.val_fraction=0.2"),
    *("--set", "evaluation.num_samples=8", "--set", "evaluation.feature_px=64", "--set", "evaluation.num_real=60"),
    *("--set", 'sampling={"steps": 3, "guidance": [3.0, 1.0], "threshold": "clip"}'),
    *("--set", "hardware.processes=1", "--set", "hardware.threads=1"),
]
for stage in ("16", "32", "64"):
    for name, value in (("training.batch_size", 8), ("training.nimg", 32)):
        SMALL += ["--set", f"stages.{stage}.{name}={value}"]
    for name in ("log_every_nimg", "checkpoint_every_nimg"):
        SMALL += ["--set", f"stages.{stage}.cadence.{name}=8"]

STAGES = ("16", "grow-32", "32", "grow-64", "64", "samples", "evaluation", "report")


def start(home: Path) -> subprocess.Popen[str]:
    # What the caller's environment says must not matter.
    strange = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    strange |= {name: "http://127.0.0.1:9" for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")}
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", "tiny", *SMALL],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **strange, "MDM_HOME": str(home)},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # where the tests run under nohup, too
    )


def finish(home: Path) -> tuple[str, str]:
    process = start(home)
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    return out, err


def run_of(home: Path) -> Path:
    (run,) = (home / "runs").iterdir()
    return run


def markers(run: Path) -> dict[str, str]:
    return {stage: (run / stage / "done.json").read_text() for stage in STAGES if (run / stage / "done.json").exists()}


def states(err: str) -> dict[str, str]:
    """What the board's lines say of each stage at its end."""
    return dict(re.findall(r"^\[\S+\] ([\w ]+): (done|reused)\b", err, re.MULTILINE))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    home = tmp_path_factory.mktemp("home") / "a b%20c?d"  # no address can hold it as it is
    out, _ = finish(home)
    return home, out


@pytest.mark.timeout(400)
def test_the_flow_leaves_a_page_numbers_and_pictures(whole: tuple[Path, str]) -> None:
    home, out = whole
    run = run_of(home)
    assert set(markers(run)) == set(STAGES)
    for line in ("Report ", "Checkpoints ", "Your prompt ", "MLflow UI ", "Prefect UI "):
        assert line in out
    records = json.loads((run / "report" / "records.json").read_text())
    assert [curve["y_label"] for curve in records["curves"]] == ["mean squared error of x"] * 3
    facts = dict(records["facts"])
    assert "faces, people, hands and hearts" in facts["Data source"]
    assert re.search(r"openmoji-\w+: train \w{12}, revision 0; val \w{12}, .*/card\.html$", facts["Data set"])
    assert "predicts x" in facts["Objective"]
    weights = run / "64" / "checkpoints" / "nimg-000000000032" / "ema"
    assert facts["Weights"].startswith(f"EMA, {weights.relative_to(run)}: sha256 ")
    assert facts["Weights"].endswith(sha256(weights / "model.safetensors"))
    names = [metric["name"] for metric in records["metrics"]]
    assert "kid_efficientnet_lite0" in names
    assert not [n for n in names if "fid" in n or "clip" in n]
    page = (run / "report" / "index.html").read_text()
    assert "OpenMoji" in page
    assert "<script" not in page
    from mlflow import MlflowClient

    client = MlflowClient(sqlite_address(home / "mlflow" / "mlflow.db"))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    ids = {one.data.tags.get("mdm.stage", ""): one.info.run_id for one in found}
    assert len(found) == len(ids) and set(ids) == {"", "16", "32", "64", "evaluation"}
    parent = client.get_run(ids[""]).data.metrics
    assert {name for name in parent if name.startswith("eval/kid")} == {"eval/kid_efficientnet_lite0_n8"}
    assert "time/04 grow 32" in parent
    assert len(client.get_metric_history(ids["64"], "train/loss_64")) == 4
    assert [a.path for a in client.list_artifacts(ids["64"], "samples")]
    assert all(client.get_run(i).info.status == "FINISHED" for i in ids.values())
    assert {path.name for path in home.parent.iterdir()} == {home.name}  # nothing outside


@pytest.mark.timeout(400)
def test_again_nothing_is_done_twice_and_a_prompt_can_be_drawn(whole: tuple[Path, str], tmp_path: Path) -> None:
    home, _ = whole
    before = markers(run_of(home))
    _, err = finish(home)
    assert markers(run_of(home)) == before
    assert {state for stage, state in states(err).items() if stage != "data"} == {"reused"}
    picture = tmp_path / "heart.png"
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "sample",
        run_of(home).name,
        "red heart",
        "--count",
        "2",
        "--all-levels",
        "--strip",
        "--sampler",
        "dpmpp",
        "--steps",
        "3",
        "-o",
        str(picture),
    ]
    drawn = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MDM_HOME": str(home)})
    assert drawn.returncode == 0, drawn.stderr
    from PIL import Image

    with Image.open(picture) as image:
        assert image.size == (2 * 64, 3 * 64)
    with Image.open(tmp_path / "heart-strip.png") as image:
        assert image.size == (3 * 64, 3 * 64)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_ends_the_flow_at_once_and_prefect_knows(number: int, tmp_path: Path) -> None:
    """Ctrl-C and a batch system signal every process of the group, Prefect's temporary server included."""
    process = start(tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if "] shards: started" in line:
            break
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "mdm: interrupted; the same command goes on from here"
    with contextlib.closing(sqlite3.connect(tmp_path / "prefect" / "prefect.db")) as database:
        assert database.execute("SELECT state_type FROM flow_run").fetchall() == [("CRASHED",)]


@pytest.mark.slow
@pytest.mark.kills
@pytest.mark.timeout(1200)
def test_killed_in_every_stage_it_finishes_and_repeats_nothing(whole: tuple[Path, str], tmp_path: Path) -> None:
    """SIGKILL of the flow as each stage begins; the same command goes on, and ends with the same weights."""
    reference, _ = whole
    begun_at = ["shards", "text embeddings", "train 16", "train 32", "train 64", "sample", "evaluate", "report"]
    finished: dict[str, str] = {}
    for stage in begun_at:
        process = start(tmp_path)
        assert process.stderr is not None
        for line in process.stderr:
            if f"] {stage}: started" in line:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()  # not communicate(): the temporary Prefect server outlives its flow and holds the pipes
        process.stderr.close()
        now = markers(run_of(tmp_path))
        assert finished.items() <= now.items(), f"a finished stage ran again before {stage}"
        finished = now
    finish(tmp_path)
    now = markers(run_of(tmp_path))
    assert finished.items() <= now.items()
    assert set(now) == set(STAGES)
    weights = [
        sorted((run_of(h) / "64" / "checkpoints").glob("*/ema/model.safetensors"))[-1] for h in (reference, tmp_path)
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert all(
        json.loads((run_of(tmp_path) / s / "done.json").read_text())["attempts"] == 1 for s in ("16", "32", "64")
    )


@pytest.mark.slow
@pytest.mark.kills
@pytest.mark.timeout(600)
def test_a_killed_trainer_is_started_again_by_its_flow(whole: tuple[Path, str], tmp_path: Path) -> None:
    reference, _ = whole
    process = start(tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if "] train 16: started" in line:
            break
    run = run_of(tmp_path) / "16"
    while not list(run.glob("checkpoints/nimg-0*")):
        assert process.poll() is None
    os.kill(json.loads((run / "attempts" / "1.json").read_text())["pid"], signal.SIGKILL)
    _, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert json.loads((run / "done.json").read_text())["attempts"] >= 2
    weights = [
        sorted((h / "64" / "checkpoints").glob("*/ema/model.safetensors"))[-1]
        for h in (run_of(reference), run_of(tmp_path))
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()
