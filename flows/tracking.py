"""Run folders -> MLflow. Training never waits for MLflow: this follows its files.

A point keeps the time stamp that the trainer gave it; MLflow's SQL stores key points by (run, name, time, step, value),
so sending one again changes nothing and a follower may always start from the beginning.

Which MLflow run is whose stands in MLflow alone, as tags; the folder keeps no ids. Where a run is missing, because
somebody deleted it or the server is another one, it is made anew and everything is sent again.
"""

import contextlib
import json
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from flows.home import Stopped, Trouble, home, mlflow_database, mlflow_uri, sqlite_address, without_secrets
from flows.store import artifact_root, set_up_store
from mdm.files import is_locked, write_json
from mdm.structure import digest

EXPERIMENT = "mdm/reproduction"
Key = tuple[str, str, int]  # a stage's name, the digest of its inputs, how often its training went back


class Tracker:
    """One MLflow run per run folder, below it a child per stage: per digest of its inputs, and per branch of it.

    A training that returns to an earlier checkpoint leaves its branch: MLflow deletes no points, so the branch that is
    kept is another child. Raises Trouble where MLflow cannot be used.
    """

    def __init__(self, run: Path, name: str, say: Callable[[str], None] = print, alone: bool = False) -> None:
        """``alone``: the folder is no flow's run but that of one training, which is its only stage."""
        self.run, self.name, self.say, self.alone, self.uri = run, name, say, alone, mlflow_uri()
        known = (run / "mlflow.json").exists()
        self.id = folder_id(run)
        with self.reachable():
            if self.uri == sqlite_address(mlflow_database()):
                set_up_store()
            self.client = MlflowClient(self.uri)
            self.connect()
        if known and self.is_new:
            say(f"MLflow at {without_secrets(self.uri)} has no run of {run}: all its points are sent there")

    @contextlib.contextmanager
    def reachable(self) -> Iterator[None]:
        """Raises Trouble instead of what MLflow raises."""
        try:
            yield
        except (MlflowException, OSError) as error:
            raise Trouble(unreachable(self.uri, error)) from error

    # -- which run is which ----------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Find this folder's runs, make the parent where there is none."""
        self.experiment = self._experiment()
        found = self._search(f"tags.`mdm.folder` = '{self.id}'")
        found = [run for run in found if run.data.tags.get("mdm.run") == self.name]  # a copied folder has another name
        self.is_new = not found
        self.parent = found[0].info.run_id if found else self._create_parent()
        children = self._search(f"tags.`mlflow.parentRunId` = '{self.parent}'")
        self.children: dict[Key, str] = {key_of(child): child.info.run_id for child in reversed(children)}

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            if found.lifecycle_stage == "deleted":  # its name stays taken, so another one cannot be made
                self.client.restore_experiment(found.experiment_id)
                self.say(f"the experiment {EXPERIMENT} had been deleted in MLflow: it is restored")
            return found.experiment_id
        artifacts = artifact_root() if self.uri == sqlite_address(mlflow_database()) else None
        # Without the kind MLflow's page opens on its view of chat traces, where a training shows nothing.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return self.client.create_experiment(EXPERIMENT, artifact_location=artifacts, tags=kind)

    def _search(self, what: str) -> list[Run]:
        """Runs that nobody deleted, the newest first."""
        return list(self.client.search_runs([self.experiment], what, max_results=1000))

    def _create_parent(self) -> str:
        tags = {"mdm.folder": self.id, "mdm.run": self.name}
        return self.client.create_run(self.experiment, run_name=self.name, tags=tags).info.run_id

    def child(self, stage: str) -> str:
        """The run of a stage as its folder is now, made on first use; "" is the parent."""
        if not stage:
            return self.parent
        key = (stage, *made_from(self.folder(stage)))
        if key not in self.children:
            for other, run_id in self.children.items():
                if other[0] == stage and self.client.get_run(run_id).info.status == "RUNNING":
                    self._end(run_id, "KILLED", "given up: went back to a checkpoint, or made anew from other inputs")
            _, inputs, branch = key
            tags = {"mdm.stage": stage, "mdm.inputs": inputs, "mdm.branch": str(branch)}
            name = f"{self.name} {stage}" + (f" (return {branch})" if branch else "")
            created = self.client.create_run(
                self.experiment, run_name=name, tags={**tags, "mlflow.parentRunId": self.parent}
            )
            self.children[key] = created.info.run_id
        return self.children[key]

    def folder(self, stage: str) -> Path:
        return self.run if self.alone else self.run / stage

    # -- states ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """While a flow works: its run is RUNNING, and in the end what became of it, with the reason.

        What a killed flow left RUNNING, in this home, is closed first.
        """
        with self.reachable():
            self.close_abandoned()
            self._close_all(self.parent, "KILLED", "its flow was killed")
            self.reopen("")
        try:
            yield
        except BaseException as error:
            asked = not isinstance(error, Exception)  # Ctrl-C, a signal, Prefect's own word for one
            reason = "its flow was asked to stop" if asked else str(error) or type(error).__name__
            with contextlib.suppress(MlflowException, OSError):  # else the next command closes them
                self._close_all(self.parent, "KILLED" if asked or isinstance(error, Stopped) else "FAILED", reason)
            raise
        with self.reachable():
            self.finish("")

    def close_abandoned(self) -> None:
        """Runs of this home that no flow works at are not RUNNING."""
        folders = {folder_id(path.parent): path.parent for path in (home() / "runs").glob("*/mlflow.json")}
        for run in self._search("attributes.status = 'RUNNING'"):
            folder = folders.get(run.data.tags.get("mdm.folder", ""))
            if folder is not None and folder.name != self.name and not is_locked(folder / "flow.lock"):
                self._close_all(run.info.run_id, "KILLED", "its flow was killed")

    def settle(self, outcomes: list[str]) -> None:
        """The parent's state where no flow is at work: that of its stages together."""
        with self.reachable():
            if all(outcome == "done" for outcome in outcomes):
                self.finish("")
            elif "failed" in outcomes:
                self.finish("", "FAILED", "a stage failed")
            elif "stopped" in outcomes:
                self.finish("", "KILLED", "a stage was stopped")

    def _close_all(self, parent: str, status: str, reason: str) -> None:
        for run in [*self._search(f"tags.`mlflow.parentRunId` = '{parent}'"), self.client.get_run(parent)]:
            if run.info.status == "RUNNING":
                self._end(run.info.run_id, status, reason)

    def _end(self, run_id: str, status: str, reason: str) -> None:
        self.client.set_tag(run_id, "reason", without_secrets(reason)[:5000])
        self.client.set_terminated(run_id, status)

    def is_finished(self, stage: str) -> bool:
        return self.client.get_run(self.child(stage)).info.status == "FINISHED"

    def reopen(self, stage: str) -> None:
        """Work goes on: RUNNING again, without the reason why it had ended."""
        run_id = self.child(stage)
        self.client.update_run(run_id, "RUNNING")
        self._forget_reason(run_id)

    def _forget_reason(self, run_id: str) -> None:
        if "reason" in self.client.get_run(run_id).data.tags:
            self.client.delete_tag(run_id, "reason")

    def finish(self, stage: str, status: str = "FINISHED", reason: str = "") -> None:
        run_id = self.child(stage)
        if reason:
            self._end(run_id, status, reason)
            return
        self._forget_reason(run_id)
        self.client.set_terminated(run_id, status)

    # -- what is logged --------------------------------------------------------------------------------------------

    def params(self, stage: str, values: dict[str, Any]) -> None:
        """Parameters are write-once in MLflow: a parent with other ones is the record of something else."""
        wanted = {k: str(v)[:6000] for k, v in values.items()}
        known = self.client.get_run(self.child(stage)).data.params
        if not stage and any(known.get(k, v) != v for k, v in wanted.items()):
            self._close_all(self.parent, "KILLED", "given up: the preset of this name was changed")
            self.parent, self.children, known = self._create_parent(), {}, {}
        new = [Param(k, v) for k, v in wanted.items() if k not in known]
        for start in range(0, len(new), 100):
            self.client.log_batch(self.child(stage), params=new[start : start + 100])

    def tags(self, stage: str, values: dict[str, Any]) -> None:
        self.client.log_batch(self.child(stage), tags=[RunTag(k, str(v)) for k, v in values.items()])

    def metrics(self, stage: str, values: dict[str, float], nimg: int, time_ms: int) -> None:
        points = [Metric(k, v, time_ms, nimg) for k, v in values.items()]
        self.client.log_batch(self.child(stage), metrics=points)

    def times(self, rows: Iterable[tuple[str, float, int]]) -> None:
        """How long each part took, as ``time/NN NAME`` of the parent: (name, seconds, when it ended in ms) in order."""
        points = [Metric(f"time/{i:02d} {name}", s, ms, 0) for i, (name, s, ms) in enumerate(rows) if ms]
        self.client.log_batch(self.parent, metrics=points)

    def artifact(self, stage: str, path: Path, folder: str | None = None) -> None:
        self.client.log_artifact(self.child(stage), str(path), folder)


def folder_id(run: Path) -> str:
    """The name by which MLflow knows a run folder wherever it lies: random, made on first use."""
    file = run / "mlflow.json"
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        return str(json.loads(file.read_text())["id"])
    made = uuid.uuid4().hex
    write_json(file, {"id": made})
    return made


def key_of(child: Run) -> Key:
    tags = child.data.tags
    return tags.get("mdm.stage", ""), tags.get("mdm.inputs", ""), int(tags.get("mdm.branch", "0"))


def made_from(folder: Path) -> tuple[str, int]:
    """What a stage's folder holds now: the digest of its inputs, and how often its training went back."""
    return _inputs(folder), len(returned_to(folder))


def _inputs(folder: Path) -> str:
    for name in ("inputs.json", "job.json"):
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            held = json.loads((folder / name).read_text())
            if name == "inputs.json":
                return held["digest"]
            return digest({k: held[k] for k in ("model", "training", "seed", "init", "train_data")})
    return digest(None)


def returned_to(folder: Path) -> list[int]:
    """The counts of images that a training went back to, in order."""
    path = folder / "returns.json"
    return [entry["to"] for entry in json.loads(path.read_text())] if path.exists() else []


def unreachable(uri: str, error: Exception) -> str:
    why = without_secrets(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
    return (
        f"MLflow at {without_secrets(uri)} cannot be used ({why}). Start it or set MLFLOW_TRACKING_URI, then run the "
        "same command again: nothing that is done is lost."
    )


def history(tracker: Tracker, stage: str, names: Iterable[str]) -> dict[str, list[tuple[int, float]]]:
    """Metric curves of a stage as MLflow has them, of the branch that was kept: name -> [(images seen, value)]."""
    run_id = tracker.child(stage)
    curves = {}
    for name in names:
        points = sorted((m.step, m.value) for m in tracker.client.get_metric_history(run_id, name))
        if points:
            curves[name] = points
    return curves
