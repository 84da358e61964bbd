"""Run folders -> MLflow -> records.json. Training never waits for MLflow: this follows its files.

A point keeps the time stamp that the trainer gave it; MLflow's SQL stores key points by (run, name, time, step, value),
so sending one again changes nothing and a follower may always start from the beginning.
"""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from flows.home import Trouble, home, mlflow_uri
from mdm.files import write_json

EXPERIMENT = "mdm/reproduction"
BATCH = 1000  # points per request


class Tracker:
    """One MLflow run per flow, a child run per stage; their ids are kept in ``mlflow.json`` of the run folder."""

    def __init__(self, run: Path, name: str) -> None:
        self.run, self.name, self.uri = run, name, mlflow_uri()
        self.file = run / "mlflow.json"
        try:
            if self.uri.startswith("sqlite:///"):
                Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            self.client = MlflowClient(self.uri)
            self.experiment = self._experiment()
            self.ids: dict[str, str] = self._known()
            if "" not in self.ids:
                self._create("", name, {})
        except (MlflowException, OSError) as error:
            raise Trouble(unreachable(self.uri, error)) from error

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return found.experiment_id
        artifacts = str(home() / "mlflow" / "artifacts") if self.uri.startswith("sqlite:") else None
        # Without the kind MLflow's page opens on its view of chat traces, where a training shows nothing.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return self.client.create_experiment(EXPERIMENT, artifact_location=artifacts, tags=kind)

    def _known(self) -> dict[str, str]:
        """Ids of an earlier start of this run, if they are this server's."""
        if not self.file.exists():
            return {}
        saved = json.loads(self.file.read_text())
        if saved["uri"] != self.uri or saved["experiment"] != self.experiment:
            return {}
        return saved["runs"]

    def _create(self, child: str, name: str, tags: dict[str, str]) -> str:
        parent = {"mlflow.parentRunId": self.ids[""]} if child else {}
        run = self.client.create_run(self.experiment, run_name=name, tags={**tags, **parent})
        self.ids[child] = run.info.run_id
        write_json(self.file, {"uri": self.uri, "experiment": self.experiment, "runs": self.ids})
        return run.info.run_id

    def child(self, stage: str, tags: dict[str, str] | None = None) -> str:
        """The run id of a stage, made on first use."""
        return self.ids.get(stage) or self._create(stage, f"{self.name} {stage}", tags or {})

    def params(self, stage: str, values: dict[str, Any]) -> None:
        """Log parameters once (they are write-once in MLflow)."""
        run_id = self.child(stage) if stage else self.ids[""]
        known = self.client.get_run(run_id).data.params
        new = [Param(k, str(v)[:6000]) for k, v in values.items() if k not in known]
        for start in range(0, len(new), 100):
            self.client.log_batch(run_id, params=new[start : start + 100])

    def tags(self, stage: str, values: dict[str, Any]) -> None:
        run_id = self.child(stage) if stage else self.ids[""]
        self.client.log_batch(run_id, tags=[RunTag(k, str(v)) for k, v in values.items()])

    def metrics(self, stage: str, values: dict[str, float], nimg: int, time_ms: int) -> None:
        points = [Metric(k, v, time_ms, nimg) for k, v in values.items()]
        self.client.log_batch(self.child(stage), metrics=points)

    def times(self, seconds: dict[str, float], order: list[str]) -> None:
        """How long each stage took, as ``time/NN NAME`` of the parent run; a reused stage keeps its first time."""
        known = self.client.get_run(self.ids[""]).data.metrics
        names = {f"time/{order.index(name):02d} {name}": value for name, value in seconds.items()}
        points = [Metric(k, v, int(time.time() * 1000), 0) for k, v in names.items() if k not in known]
        self.client.log_batch(self.ids[""], metrics=points)

    def artifact(self, stage: str, path: Path, folder: str | None = None) -> None:
        run_id = self.child(stage) if stage else self.ids[""]
        self.client.log_artifact(run_id, str(path), folder)

    def finish(self, stage: str, status: str = "FINISHED") -> None:
        self.client.set_terminated(self.child(stage) if stage else self.ids[""], status)


class Follower:
    """Copies what a trainer writes into its stage's MLflow run, from the start, each point once."""

    def __init__(self, tracker: Tracker, stage: str, folder: Path) -> None:
        self.tracker, self.stage, self.folder = tracker, stage, folder
        self.offset = 0
        self.pictures: set[str] = set()
        self.latest: dict[str, float] = {}
        self.nimg, self.knows_config = 0, False
        self.trouble: str | None = None
        self.retry_at = 0.0

    def poll(self) -> None:
        """Send what is new. A dead server is remembered, not raised: the next polls try again."""
        points = self._read()
        if time.monotonic() < self.retry_at:
            return
        try:
            self._send(points)
            self.trouble = None
        except (MlflowException, OSError) as error:
            self.trouble = unreachable(self.tracker.uri, error)
            self.retry_at = time.monotonic() + 10

    def finish(self) -> None:
        """Send the rest; raises Trouble if MLflow is still away (the run folder keeps everything)."""
        self.retry_at = 0
        self.poll()
        if self.trouble is not None:
            raise Trouble(self.trouble)

    def _read(self) -> list[tuple[int, Metric]]:
        """New whole lines: (offset behind the line, point)."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(self.offset)
            text = file.read()
        points, place = [], self.offset
        for line in text[: text.rfind(b"\n") + 1].splitlines(keepends=True):
            place += len(line)
            point = json.loads(line)
            self.nimg = max(self.nimg, point["nimg"])
            self.latest |= point["values"]
            values = point["values"].items()
            points += [(place, Metric(name, value, point["time_ms"], point["nimg"])) for name, value in values]
        return points

    def _send(self, points: list[tuple[int, Metric]]) -> None:
        run_id = self.tracker.child(self.stage)
        self._send_config()
        for start in range(0, len(points), BATCH):
            batch = points[start : start + BATCH]
            self.tracker.client.log_batch(run_id, metrics=[point for _, point in batch])
        if points:
            self.offset = points[-1][0]
        for picture in sorted(self.folder.glob("samples/*.png")):
            if picture.name not in self.pictures:
                self.tracker.artifact(self.stage, picture, "samples")
                self.pictures.add(picture.name)

    def _send_config(self) -> None:
        """What was trained and on what, as the trainer wrote it down: parameters to compare runs by, and tags."""
        path = self.folder / "config.json"
        if self.knows_config or not path.exists():
            return
        config = json.loads(path.read_text())
        job = config["job"]
        px = job["model"]["levels"][-1]["resolution"]
        self.tracker.params(self.stage, {"stage": self.stage, "resolution_px": px, **job["training"], **job["compute"]})
        versions = {f"version.{package}": version for package, version in config["versions"].items()}
        facts = {name: config[name] for name in ("commit", "hardware", "processes")}
        self.tracker.tags(self.stage, facts | versions)
        self.knows_config = True


def close_by_outcome(follower: Follower) -> str:
    """End the MLflow runs of a folder that was trained without a flow, as its trainer ended -> the outcome's name."""
    path = follower.folder / "outcome.json"
    if not path.exists():
        return "still training, or killed"
    told, tracker = json.loads(path.read_text()), follower.tracker
    tracker.tags(follower.stage, {"outcome": told["outcome"], "reason": told["reason"]})
    for stage in (follower.stage, ""):
        tracker.finish(stage, {"done": "FINISHED", "stopped": "KILLED"}.get(told["outcome"], "FAILED"))
    return told["outcome"]


def unreachable(uri: str, error: Exception) -> str:
    return (
        f"MLflow at {uri} cannot be used ({type(error).__name__}: {str(error).splitlines()[0][:200]}). Start it or set "
        "MLFLOW_TRACKING_URI, then run the same command again: nothing that is done is lost."
    )


def history(tracker: Tracker, stage: str, names: Iterable[str]) -> dict[str, list[tuple[int, float]]]:
    """Metric curves of a stage as MLflow has them: name -> [(images seen, value)]."""
    run_id = tracker.child(stage)
    curves = {}
    for name in names:
        points = sorted((m.step, m.value) for m in tracker.client.get_metric_history(run_id, name))
        if points:
            curves[name] = points
    return curves
