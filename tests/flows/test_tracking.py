"""Run folders into MLflow: each point once, and a dead server is one clear line."""

import json
import time
from pathlib import Path

import pytest

from flows.home import Trouble, quiet_services
from flows.tracking import Follower, Tracker, history


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
