"""Run folders -> MLflow. Training never waits for MLflow: this follows its files.

A point keeps the time stamp that the trainer gave it; MLflow's SQL stores key points by (run, name, time, step, value),
so sending one again changes nothing and a follower may always start from the beginning.

Which MLflow run is whose stands in MLflow alone, as tags; the folder keeps no ids. Where a run is missing, because
somebody deleted it or the server is another one, it is made anew and everything is sent again.
"""

import contextlib
import json
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from flows.home import Stopped, Trouble, home, mlflow_database, mlflow_uri, sqlite_address, without_secrets
from flows.records.store import artifact_root, damaged, is_damage, set_up_store
from mdm.files import is_locked, load_json, write_json
from mdm.structure import digest
from preprocessing.manifest import read_json
from preprocessing.sets import name_of

EXPERIMENT = "mdm/reproduction"


class Key(NamedTuple):
    """Which child run holds a stage's points: they are of one folder, and of one branch of its training."""

    stage: str
    inputs: str  # their digest
    branch: int  # how often the training went back
    begun: str  # the id of its folder (markers.py); "" of folders of before, and of trainings without a flow


class Tracker:
    """One MLflow run per run folder, below it a child per stage: per folder that it had, its inputs, its branches.

    A training that returns to an earlier checkpoint leaves its branch: MLflow deletes no points, so the branch that is
    kept is another child. Raises Trouble where MLflow cannot be used.
    """

    def __init__(self, run: Path, name: str, say: Callable[[str], None] = print, alone: bool = False) -> None:
        """``alone``: the folder is no flow's run but that of one training, which is its only stage."""
        self.run, self.name, self.say, self.alone, self.uri = run, name, say, alone, mlflow_uri()
        known = (run / "mlflow.json").exists()
        self.is_own = self.uri == sqlite_address(mlflow_database())
        self.id = folder_id(run, not self.is_own)
        with self.reachable():
            if self.is_own:
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
        except (MlflowException, OSError, sqlite3.Error) as error:
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
        artifacts = artifact_root() if self.is_own else None
        # Without the kind MLflow's page opens on its view of chat traces, where a training shows nothing.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return self.client.create_experiment(EXPERIMENT, artifact_location=artifacts, tags=kind)

    def _search(self, what: str) -> list[Run]:
        """Runs that nobody deleted, the newest first."""
        return list(self.client.search_runs([self.experiment], what, max_results=1000))

    def _create_parent(self) -> str:
        tags = {"mdm.folder": self.id, "mdm.run": self.name}
        return self.client.create_run(self.experiment, run_name=self.name, tags=tags).info.run_id

    def run_of(self, folder: Path) -> str:
        """The parent run of another run's folder, "" where MLflow has none."""
        held = read_json(folder / "mlflow.json") or {}
        found = self._search(f"tags.`mdm.folder` = '{held['id']}'") if "id" in held else []
        named = [run for run in found if run.data.tags.get("mdm.run") == folder.name]
        return named[0].info.run_id if named else ""

    def child(self, stage: str) -> str:
        """The run of a stage as its folder is now, made on first use; "" is the parent."""
        if not stage:
            return self.parent
        key = key_of_folder(stage, self.folder(stage))
        if key not in self.children:
            for other, run_id in self.children.items():
                if other.stage == stage and self.client.get_run(run_id).info.status == "RUNNING":
                    self._end(run_id, "KILLED", "given up: went back to a checkpoint, or begun anew")
            tags = {f"mdm.{field}": str(value) for field, value in key._asdict().items()}
            name = f"{self.name} {stage}" + (f" (return {key.branch})" if key.branch else "")
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
        folders = {
            folder_id(path.parent, not self.is_own): path.parent for path in (home() / "runs").glob("*/mlflow.json")
        }
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

    def dataset(self, stage: str, split: Path, digest: str, context: str) -> None:
        """The split of a data set that a run read, by its digest; again: nothing changes (on SQL stores).

        ``context``: what for, as MLflow's page shows it. MLflow keeps 36 characters of a digest.
        """
        source = f"{split.parent.name}/{split.name}"
        data = Dataset(name_of(split.parent), digest[:36], "mdm", source, profile=json.dumps({"digest": digest}))
        inputs = [DatasetInput(data, [InputTag("mlflow.data.context", context)])]
        self.client.log_inputs(self.child(stage), datasets=inputs)

    def artifact(self, stage: str, path: Path, folder: str | None = None) -> None:
        self.client.log_artifact(self.child(stage), str(path), folder)


def folder_id(run: Path, shared: bool) -> str:
    """The name by which MLflow knows a run folder wherever it lies: random, made on first use.

    A copy has its own in a store that is ``shared`` with others, so that its points do not go among the original's. It
    is known by the original, which is still where mlflow.json was written; one on another machine is not seen.
    """
    file, place = run / "mlflow.json", str(run.resolve())
    held = read_json(file) or {}
    known, original = held.get("id"), Path(held.get("folder", place))
    there = read_json(original / file.name) or {}
    is_copy = known is not None and there.get("id") == known and not original.samefile(run)
    if is_copy and not shared:
        return str(known)
    now = {"id": uuid.uuid4().hex if is_copy or known is None else known, "folder": place}
    if now != held:
        write_json(file, now)
    return now["id"]


def key_of(child: Run) -> Key:
    tags = child.data.tags
    branch = int(tags.get("mdm.branch", "0"))
    return Key(tags.get("mdm.stage", ""), tags.get("mdm.inputs", ""), branch, tags.get("mdm.begun", ""))


def key_of_folder(stage: str, folder: Path) -> Key:
    """Of what a stage's folder holds now."""
    begun = read_json(folder / "inputs.json") or {}
    return Key(stage, begun.get("digest") or _job_digest(folder), len(returned_to(folder)), begun.get("id", ""))


def _job_digest(folder: Path) -> str:
    """What a training without a flow is made from."""
    job = read_json(folder / "job.json") or {}
    return digest({k: job.get(k) for k in ("model", "training", "seed", "init", "train_data")} if job else None)


def returned_to(folder: Path) -> list[int]:
    """The counts of images that a training went back to, in order."""
    path = folder / "returns.json"
    return [entry["to"] for entry in load_json(path)] if path.exists() else []


def unreachable(uri: str, error: Exception) -> str:
    if uri == sqlite_address(mlflow_database()) and is_damage(error):
        return damaged(mlflow_database(), error)
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
