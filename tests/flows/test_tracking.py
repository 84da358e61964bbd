"""Run folders into MLflow: each point once, and a dead server is one clear line."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import Metric

from flows.cli import main as cli
from flows.home import Trouble, quiet_services
from flows.tracking import Follower, Tracker, history
from mdm.files import write_json
from mdm.structure import to_dict
from small import small_job


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MDM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    quiet_services()
    return tmp_path


def write_points(run: Path, first: int, last: int) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        for i in range(first, last):
            values = {"train/loss": 1 / (i + 1), "lr": 0.1}
            file.write(
                json.dumps({"nimg": i * 10, "time_ms": 1_700_000_000_000 + i, "attempt": 1, "values": values}) + "\n"
            )


def test_points_sent_again_stay_single(home: Path) -> None:
    run = home / "run"
    run.mkdir()
    write_points(run, 0, 5)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"nimg": 50, "time')  # a line being written
    tracker = Tracker(run, "run")
    follower = Follower(tracker, "16", run)
    follower.finish()
    assert len(history(tracker, "16", ["train/loss"])["train/loss"]) == 5
    Follower(Tracker(run, "run"), "16", run).finish()  # another process, from the beginning
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text[: text.rfind("\n") + 1])
    write_points(run, 5, 8)
    follower.finish()
    points = history(tracker, "16", ["train/loss"])["train/loss"]
    assert points == [(i * 10, pytest.approx(1 / (i + 1))) for i in range(8)]


def test_a_server_that_is_away_is_one_line_within_seconds(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    run = home / "run"
    run.mkdir()
    begun = time.monotonic()
    with pytest.raises(Trouble, match=r"MLflow at http://127\.0\.0\.1:9 cannot be used .*nothing that is done is lost"):
        Tracker(run, "run")
    assert time.monotonic() - begun < 60


def test_a_server_that_goes_away_does_not_stop_the_follower(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = home / "run"
    run.mkdir()
    follower = Follower(Tracker(run, "run"), "16", run)
    write_points(run, 0, 3)
    log_batch = follower.tracker.client.log_batch

    def away(*args: object, **kwargs: object) -> None:
        raise OSError("connection refused")

    monkeypatch.setattr(follower.tracker.client, "log_batch", away)
    follower.poll()
    assert "connection refused" in (follower.trouble or "")
    with pytest.raises(Trouble):
        follower.finish()
    monkeypatch.setattr(follower.tracker.client, "log_batch", log_batch)
    follower.finish()
    assert len(history(follower.tracker, "16", ["lr"])["lr"]) == 3


def port_of_nobody() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def mlflow_server(home: Path, port: int) -> Iterator[None]:
    """A real server on the loopback, gone by SIGKILL at the end."""
    store = [f"--backend-store-uri=sqlite:///{home / 'server.db'}", f"--default-artifact-root={home / 'artifacts'}"]
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1", *store]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                break
            time.sleep(0.1)
        else:
            raise RuntimeError("the MLflow server did not start")
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.kills
def test_each_point_arrives_once_in_order_though_server_and_follower_die(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = port_of_nobody()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    (run := home / "run").mkdir()
    with mlflow_server(home, port):
        follower = Follower(Tracker(run, "run"), "16", run)
        write_points(run, 0, 5)
        follower.poll()
        assert follower.trouble is None
    write_points(run, 5, 1205)  # an hour's, more than one request takes
    follower.poll()
    assert f"MLflow at http://127.0.0.1:{port} cannot be used" in (follower.trouble or "")
    assert (follower.nimg, follower.latest["lr"]) == (12_040, 0.1)  # progress is read from the folder all the same
    with mlflow_server(home, port):
        half = follower.tracker.client.log_batch

        def dies_half_way(run_id: str, metrics: list[Metric]) -> None:
            half(run_id, metrics=metrics)
            raise OSError("the follower was killed behind its first request")

        monkeypatch.setattr(follower.tracker.client, "log_batch", dies_half_way)
        with pytest.raises(Trouble):
            follower.finish()
        tracker = Tracker(run, "run")
        Follower(tracker, "16", run).finish()  # another process, which knows the folder alone
        for name, value in (("lr", lambda i: 0.1), ("train/loss", lambda i: 1 / (i + 1))):
            points = tracker.client.get_metric_history(tracker.child("16"), name)
            assert [(p.step, p.timestamp) for p in points] == [(i * 10, 1_700_000_000_000 + i) for i in range(1205)]
            assert [p.value for p in points] == [pytest.approx(value(i)) for i in range(1205)]


def test_a_folder_trained_without_a_flow_is_tracked_by_hand(
    home: Path, squares: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run := home / "by-hand").mkdir()
    write_json(run / "job.json", to_dict(small_job(squares, nimg=32)))
    subprocess.run([sys.executable, "-m", "mdm.train", str(run)], check=True, capture_output=True, timeout=120)
    for _ in range(2):
        assert cli(["track", str(run)]) == 0
    assert "32 images seen" in capsys.readouterr().out
    tracker = Tracker(run, "by-hand")
    stage = tracker.client.get_run(tracker.child("train"))
    assert stage.info.status == "FINISHED"
    assert (stage.data.params["nimg"], stage.data.params["parallel"]) == ("32", "ddp")
    assert stage.data.tags["outcome"] == "done" and {"hardware", "version.torch"} <= stage.data.tags.keys()
    names = stage.data.metrics.keys()
    assert {"train/loss_8", "train/loss_16", "val/loss_16", "speed/images_per_s"} <= names
    assert {name for name in names if name.startswith("system/")}
    assert len(history(tracker, "train", ["train/loss"])["train/loss"]) == 2
    assert {f.path for f in tracker.client.list_artifacts(tracker.child("train"), "samples")} >= {
        "samples/000000000032.png"
    }
