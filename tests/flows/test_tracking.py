"""Run folders into MLflow: each point once, and a dead server is one clear line."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Metric
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking._tracking_service import utils

from flows import evaluation
from flows.cli import main as cli
from flows.evaluation import log_results
from flows.home import Stopped, Trouble, mlflow_database, quiet_services, sqlite_address, without_secrets
from flows.markers import once
from flows.progress import board
from flows.records.following import Follower, record_stage
from flows.records.store import set_up_store
from flows.records.tracking import Tracker, folder_id, history
from flows.reproduction import part_times
from mdm.files import write_json
from mdm.structure import to_dict
from preprocessing.manifest import read_manifest
from small import small_job, write_dataset


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole store: to set one up takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MDM_HOME", str(tmp_path_factory.mktemp("store") / "home"))
        set_up_store()
        return mlflow_database()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Path:
    monkeypatch.setenv("MDM_HOME", str(tmp_path / "home"))
    mlflow_database().parent.mkdir(parents=True)
    shutil.copyfile(empty_store, mlflow_database())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    quiet_services()
    return tmp_path


def write_points(run: Path, first: int, last: int, returns: int = 0) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        for i in range(first, last):
            values = {"train/loss": 1 / (i + 1) + returns, "lr": 0.1}
            time_ms = 1_700_000_000_000 + i + 1000 * returns
            point = {"nimg": i * 10, "time_ms": time_ms, "attempt": 1, "returns": returns, "values": values}
            file.write(json.dumps(point) + "\n")


def test_points_sent_again_stay_single(home: Path) -> None:
    run = home / "run"
    run.mkdir()
    write_points(run, 0, 5)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"nimg": 50, "time')  # a line being written
    tracker = Tracker(run, "run", alone=True)
    follower = Follower(tracker, "16")
    follower.finish()
    assert len(history(tracker, "16", ["train/loss"])["train/loss"]) == 5
    Follower(Tracker(run, "run", alone=True), "16").finish()  # another process, from the beginning
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
        Tracker(run, "run", alone=True)
    assert time.monotonic() - begun < 60


def test_a_server_that_goes_away_does_not_stop_the_follower(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = home / "run"
    run.mkdir()
    follower = Follower(Tracker(run, "run", alone=True), "16")
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
@pytest.mark.slow
def test_each_point_arrives_once_in_order_though_server_and_follower_die(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = port_of_nobody()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    (run := home / "run").mkdir()
    with mlflow_server(home, port):
        follower = Follower(Tracker(run, "run", alone=True), "16")
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
        tracker = Tracker(run, "run", alone=True)
        Follower(tracker, "16").finish()  # another process, which knows the folder alone
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
    tracker = Tracker(run, "by-hand", alone=True)
    stage = tracker.client.get_run(tracker.child("train"))
    assert stage.info.status == "FINISHED"
    assert (stage.data.params["nimg"], stage.data.tags["compute.parallel"]) == ("32", "ddp")
    assert tracker.client.get_run(tracker.parent).info.status == "FINISHED"
    assert stage.data.tags["outcome"] == "done" and {"hardware", "version.torch"} <= stage.data.tags.keys()
    names = stage.data.metrics.keys()
    assert {"train/loss_8", "train/loss_16", "val/loss_16", "speed/images_per_s"} <= names
    assert {name for name in names if name.startswith("system/")}
    assert len(history(tracker, "train", ["train/loss"])["train/loss"]) == 2
    assert {f.path for f in tracker.client.list_artifacts(tracker.child("train"), "samples")} >= {
        "samples/000000000032.png"
    }


def flow_run(home: Path, stages: tuple[str, ...] = ("16",)) -> Path:
    """A run folder as a flow leaves it, its stages trained."""
    run = home / "home" / "runs" / "small"
    for stage in stages:
        (run / stage).mkdir(parents=True)
        write_json(run / stage / "inputs.json", {"digest": f"made from {stage}", "inputs": {}})
        write_points(run / stage, 0, 4)
    write_json(run / "config.json", {"stages": {stage: {} for stage in stages}})
    return run


def losses(tracker: Tracker, stage: str = "16") -> list[int]:
    return [nimg for nimg, _ in history(tracker, stage, ["train/loss"])["train/loss"]]


def runs_in_mlflow(tracker: Tracker) -> int:
    return len(tracker.client.search_runs([tracker.experiment]))


def test_a_return_to_a_checkpoint_is_another_run_with_the_branch_that_was_kept(home: Path) -> None:
    run = flow_run(home)
    tracker = Tracker(run, "small")
    follower = Follower(tracker, "16")
    follower.poll()
    left = tracker.child("16")
    write_json(run / "16" / "returns.json", [{"to": 10, "offset": 30, "from": 30}])
    write_points(run / "16", 2, 4, returns=1)
    follower.finish()
    kept = tracker.child("16")
    assert kept != left
    assert [value for _, value in history(tracker, "16", ["train/loss"])["train/loss"]] == pytest.approx(
        [1, 1 / 2, 1 / 3 + 1, 1 / 4 + 1]
    )
    assert tracker.client.get_run(left).info.status == "KILLED"
    again = Tracker(run, "small")
    assert again.child("16") == kept  # another process knows the same


def test_a_stage_made_from_other_inputs_is_another_run(home: Path) -> None:
    run = flow_run(home)
    first = record_stage(tracker := Tracker(run, "small"), "16").tracker.child("16")
    write_json(run / "16" / "inputs.json", {"digest": "made from other data", "inputs": {}})
    (run / "16" / "metrics.jsonl").unlink()
    write_points(run / "16", 0, 2)
    record_stage(tracker, "16")
    assert tracker.child("16") != first and losses(tracker) == [0, 10]


def test_a_folder_that_is_begun_again_from_the_same_inputs_is_another_run(home: Path) -> None:
    run = flow_run(home)
    stage, before = run / "16", run / "16.old"
    shutil.rmtree(stage)

    def train(first: int) -> str:
        def work() -> dict[str, Any]:
            write_points(stage, first, first + 2)
            Follower(tracker, "16").finish()
            raise Stopped("asked to")

        tracker = Tracker(run, "small")
        with pytest.raises(Stopped):
            once(stage, {"rate": 1}, work, print)
        return tracker.child("16")

    first = train(0)
    assert train(2) == first and losses(Tracker(run, "small")) == [0, 10, 20, 30]  # resumed
    stage.rename(before)
    second = train(0)
    assert second != first and losses(Tracker(run, "small")) == [0, 10]
    shutil.rmtree(stage)
    before.rename(stage)
    assert Tracker(run, "small").child("16") == first
    begun = json.loads((stage / "inputs.json").read_text())
    write_json(stage / "inputs.json", {"digest": begun["digest"], "inputs": begun["inputs"]})  # of before
    assert (tracker := Tracker(run, "small")).child("16") not in (first, second)
    assert Tracker(run, "small").child("16") == tracker.child("16")


def test_a_copied_home_goes_on_as_a_run_of_its_own_in_a_store_of_both(
    home: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, copied, moved = flow_run(home), home / "copy", home / "moved"
    (server := home / "server").mkdir()
    shutil.copyfile(empty_store, server / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_address(server / "mlflow.db"))
    Tracker(run, "small")
    shutil.copytree(home / "home", copied)
    of_copy = copied / "runs" / "small"
    assert folder_id(of_copy, shared=False) == folder_id(run, shared=False)  # a store of its own was copied with it
    record_stage(original := Tracker(run, "small"), "16")
    original.reopen("")
    monkeypatch.setenv("MDM_HOME", str(copied))
    write_points(of_copy / "16", 4, 6)
    with (copy := Tracker(of_copy, "small")).recording():  # closes what it finds abandoned: not the original
        record_stage(copy, "16")
    assert losses(original) == [0, 10, 20, 30] and losses(copy) == [0, 10, 20, 30, 40, 50]
    assert (status_of(original, ""), status_of(copy, "")) == (("RUNNING", ""), ("FINISHED", ""))
    copied.rename(moved)
    for again, parent in ((moved / "runs" / "small", copy.parent), (run, original.parent)):
        assert Tracker(again, "small").parent == parent


def test_another_server_and_a_run_deleted_by_hand_have_all_points_at_the_next_command(
    home: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = flow_run(home)
    tracker = Tracker(run, "small")
    record_stage(tracker, "16")
    tracker.client.delete_run(tracker.child("16"))
    record_stage(again := Tracker(run, "small"), "16")
    assert losses(again) == [0, 10, 20, 30] and again.parent == tracker.parent
    tracker.client.delete_experiment(tracker.experiment)
    record_stage(again := Tracker(run, "small"), "16")
    assert losses(again) == [0, 10, 20, 30]
    assert "it is restored" in capsys.readouterr().out
    tracker.client.delete_run(again.parent)
    follower = Follower(again, "16")  # deleted while a flow was at work
    follower.finish()
    assert losses(again) == [0, 10, 20, 30]
    (other := home / "other").mkdir()
    shutil.copyfile(empty_store, other / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_address(other / "mlflow.db"))
    assert cli(["track", str(run)]) == 0
    assert f"has no run of {run}: all its points are sent there" in capsys.readouterr().out
    assert losses(there := Tracker(run, "small")) == [0, 10, 20, 30]
    assert runs_in_mlflow(there) == 2


def test_a_flows_stage_is_tracked_as_the_flow_does(home: Path) -> None:
    run = flow_run(home, ("16", "32"))
    write_json(run / "16" / "outcome.json", {"outcome": "done", "reason": ""})
    tracker = Tracker(run, "small")
    record_stage(tracker, "16")
    assert cli(["track", str(run / "16")]) == cli(["track", str(run)]) == 0
    assert runs_in_mlflow(tracker) == 3


def status_of(tracker: Tracker, stage: str) -> tuple[str, str]:
    run = tracker.client.get_run(tracker.child(stage))
    return run.info.status, run.data.tags.get("reason", "")


def test_a_runs_state_is_true(home: Path) -> None:
    run = flow_run(home)
    tracker = Tracker(run, "small")
    for error, state in (
        (RuntimeError("lost"), ("FAILED", "lost")),
        (Stopped("stopped by hand"), ("KILLED", "stopped by hand")),
        (KeyboardInterrupt(), ("KILLED", "its flow was asked to stop")),
    ):
        with pytest.raises(type(error)), tracker.recording():
            tracker.reopen("16")
            assert status_of(tracker, "") == status_of(tracker, "16") == ("RUNNING", "")
            raise error
        assert status_of(tracker, "") == status_of(tracker, "16") == state
    tracker.reopen("16")
    tracker.reopen("")  # and its flow is killed
    (other := run.with_name("other")).mkdir()
    with Tracker(other, "other").recording():
        assert status_of(tracker, "") == status_of(tracker, "16") == ("KILLED", "its flow was killed")
    with tracker.recording():
        record_stage(tracker, "16")
    assert status_of(tracker, "") == status_of(tracker, "16") == ("FINISHED", "")


def test_a_home_moves_as_a_whole(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a name that no address can hold as it is."""
    run = flow_run(home)
    Tracker(run, "small").artifact("16", run / "config.json")
    moved = home / "a b%20c?d#e"
    shutil.copytree(home / "home", moved)
    shutil.rmtree(home / "home")
    monkeypatch.setenv("MDM_HOME", str(moved))
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._artifact_repos_cache", {})
    tracker = Tracker(moved / "runs" / "small", "small")
    tracker.artifact("16", moved / "runs" / "small" / "16" / "inputs.json")
    assert {a.path for a in tracker.client.list_artifacts(tracker.child("16"))} == {"config.json", "inputs.json"}
    assert runs_in_mlflow(tracker) == 2
    assert {path.name for path in home.iterdir()} == {moved.name}
    assert {path.name for path in (moved / "mlflow").iterdir()} == {"mlflow.db", "artifacts"}


def test_a_store_whose_set_up_was_killed_is_made_anew(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = flow_run(home)
    (database := mlflow_database()).unlink()
    with monkeypatch.context() as patch:

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("mlflow.store.db.utils._upgrade_db", killed)
        with pytest.raises(KeyboardInterrupt):
            Tracker(run, "small")
    assert not database.exists()
    (left := database.with_name("set-up-killed")).mkdir()
    os.utime(left, (0, 0))
    with contextlib.closing(sqlite3.connect(database)) as left_by_an_earlier_version:
        left_by_an_earlier_version.execute("CREATE TABLE experiments (experiment_id INTEGER)")
        left_by_an_earlier_version.execute("CREATE TABLE evaluation_datasets (x INTEGER)")
    Follower(tracker := Tracker(run, "small"), "16").finish()
    assert losses(tracker) == [0, 10, 20, 30]
    assert not left.exists()


def as_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow has no connection open, as in the next command."""
    utils._tracking_store_registry._get_store_with_resolved_uri.cache_clear()
    monkeypatch.setattr(SqlAlchemyStore, "_engine_map", {})


@pytest.mark.parametrize("damage", ["text", "truncated", "inside"])
def test_a_damaged_store_is_named_and_the_advice_makes_a_new_one_with_all_points(
    home: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, database = flow_run(home), mlflow_database()
    record_stage(Tracker(run, "small"), "16")
    whole = database.read_bytes()
    page = int.from_bytes(whole[16:18])
    database.write_bytes(
        {
            "text": b"no database\n" * 100,
            "truncated": whole[: len(whole) // 2],
            "inside": whole[: 8 * page] + bytes(len(whole) - 8 * page),
        }[damage]
    )
    as_another_process(monkeypatch)
    with pytest.raises(Trouble) as trouble:
        record_stage(Tracker(run, "small"), "16")
    assert str(trouble.value).startswith(f"{database} is damaged (") and "\n" not in str(trouble.value)
    advice = re.search(r"mv [^,]*", str(trouble.value))
    assert advice is not None
    subprocess.run(shlex.split(advice[0]), check=True)
    as_another_process(monkeypatch)
    record_stage(tracker := Tracker(run, "small"), "16")
    assert losses(tracker) == [0, 10, 20, 30]


def test_a_torn_line_is_named_and_ends_nothing(home: Path) -> None:
    run = flow_run(home)
    with (run / "16" / "metrics.jsonl").open("a") as file:
        file.write("no JSON\n")
    follower = Follower(Tracker(run, "small"), "16")
    follower.poll()
    assert "metrics.jsonl: the line that ends at byte" in (follower.trouble or "")


def test_a_login_reaches_mlflow_and_no_file_or_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:se%20cret@127.0.0.1:9")
    (run := home / "run").mkdir()
    with pytest.raises(Trouble) as trouble:
        Tracker(run, "run", alone=True)
    assert "se%20cret" not in str(trouble.value) and "http://127.0.0.1:9 " in str(trouble.value)
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("ann", "se cret")
    assert "se%20cret" not in (run / "mlflow.json").read_text()
    assert without_secrets("postgresql://ann:se:cret@host/db is away") == "postgresql://ann:***@host/db is away"


def test_a_parts_time_is_that_of_its_marker_in_every_server_and_of_its_last_making(home: Path) -> None:
    run = flow_run(home)
    board(["data", "shards", "train 16", "report"], lambda line: None)
    board().finish("data", "done", 2)
    board().finish("shards", "reused", 0)  # how long they took is not known any more
    tracker = Tracker(run, "small")
    for seconds in (30.0, 20.0):  # trained, and trained anew
        write_json(run / "16" / "done.json", {"seconds": seconds, "finished_ms": 1_700_000_000_000 - int(seconds)})
        tracker.times(part_times(run, ["data", "shards", "train 16", "report"]))
    times = tracker.client.get_run(tracker.parent).data.metrics
    assert times == {"time/00 data": 2, "time/02 train 16": 20}


def data_of(tracker: Tracker, stage: str) -> list[tuple[str, str, str, str]]:
    """Name, digest, source and use of each data set that MLflow has of a stage's run."""
    inputs = tracker.client.get_run(tracker.child(stage)).inputs
    assert inputs is not None
    return sorted((i.dataset.name, i.dataset.digest, i.dataset.source, i.tags[0].value) for i in inputs.dataset_inputs)


def test_a_run_says_once_which_data_it_read(home: Path) -> None:
    run = home / "run"
    run.mkdir()
    job = {**to_dict(small_job(home / "datasets" / "squares-0123456789ab")), "train_digest": "a" * 64}
    facts = {"commit": "c", "hardware": "h", "processes": 1, "versions": {}}
    write_json(run / "config.json", {"job": job, **facts})
    write_points(run, 0, 2)
    for _ in range(2):  # as by two commands
        follower = Follower(Tracker(run, "run", alone=True), "16")
        follower.finish()
    name = "squares-0123456789ab"  # the set is not here: its folder's name is all that is known
    trained = (name, "a" * 36, f"{name}/train", "training")
    assert data_of(follower.tracker, "16") == [trained]
    follower.tracker.dataset("16", home / "datasets" / name / "val", "b" * 64, "held out")
    assert data_of(follower.tracker, "16") == [trained, (name, "b" * 36, f"{name}/val", "held out")]


def test_an_evaluation_says_which_data_it_compared_with(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "show_metrics", lambda *_: None)
    data, run = home / "datasets" / "squares-0123456789ab", home / "run"
    digests = [read_manifest(write_dataset(data, split, 2, 8))["digest"] for split in ("val", "train")]
    (run / "evaluation").mkdir(parents=True)
    write_json(run / "evaluation" / "results.json", {})
    tracker = Tracker(run, "run")
    for _ in range(2):
        log_results(tracker, run / "evaluation", data, {"metrics": [], "finished_ms": 1})
    assert data_of(tracker, "evaluation") == sorted(
        ("squares", digest[:36], f"{data.name}/{split}", use)
        for digest, split, use in zip(digests, ("val", "train"), ("evaluation", "training"), strict=True)
    )
