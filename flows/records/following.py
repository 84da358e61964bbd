"""A trainer's files -> its MLflow run, while it writes them or afterwards."""

import json
import time
from pathlib import Path

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from flows.home import Trouble
from flows.records.tracking import Tracker, returned_to, unreachable
from mdm.files import load_json
from preprocessing.manifest import read_json

BATCH = 1000  # points per request
RETRY_S = 10


class Follower:
    """Copies what a trainer writes into its stage's MLflow run, from the start, each point once.

    Of a training that went back to a checkpoint, the points up to there and those after: the branch that was kept.
    """

    def __init__(self, tracker: Tracker, stage: str) -> None:
        self.tracker, self.stage, self.folder = tracker, stage, tracker.folder(stage)
        self.trouble: str | None = None
        self.retry_at = 0.0
        self.returns: list[int] = []
        self._begin()

    def _begin(self) -> None:
        self.offset = 0
        self.pictures: dict[str, int] = {}
        self.latest: dict[str, float] = {}
        self.nimg, self.knows_config = 0, False

    def poll(self) -> None:
        """Send what is new. A dead server, a torn file is remembered, not raised: the next polls try again."""
        try:
            points = self._read()
            if time.monotonic() < self.retry_at:
                return
            try:
                self._send(points)
            except MlflowException:  # its run was deleted, perhaps: find or make it, and all from the beginning
                self.tracker.connect()
                self._begin()
                self._send(self._read())
            self.trouble = None
        except (MlflowException, OSError) as error:
            self.trouble = unreachable(self.tracker.uri, error)
            self.retry_at = time.monotonic() + RETRY_S
        except ValueError as error:
            self.trouble = str(error)

    def finish(self) -> None:
        """Send the rest; raises Trouble if MLflow is still away (the run folder keeps everything)."""
        self.retry_at = 0
        self.poll()
        if self.trouble is not None:
            raise Trouble(self.trouble)

    def read(self) -> None:
        """Only see how far the trainer is."""
        self._read()

    def _read(self) -> list[tuple[int, Metric]]:
        """New whole lines of the branch that was kept: (offset behind the line, point). Raises ValueError."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(self.offset)
            text = file.read()
        returns = returned_to(self.folder)  # after the lines: whoever writes a branch's first one has written this
        if returns != self.returns:
            self.returns = returns
            self._begin()
            return self._read()
        points, place = [], self.offset
        for line in text[: text.rfind(b"\n") + 1].splitlines(keepends=True):
            place += len(line)
            try:
                point = json.loads(line)
                nimg, time_ms, values = point["nimg"], point["time_ms"], point["values"]
                kept = all(nimg <= to for to in returns[point["returns"] :])
            except (ValueError, KeyError, TypeError) as error:
                where = f"{path}: the line that ends at byte {place} is no metrics line ({error!r})"
                raise ValueError(f"{where}: take it out") from error
            if kept:
                self.nimg = max(self.nimg, nimg)
                self.latest |= values
                points += [(place, Metric(name, value, time_ms, nimg)) for name, value in values.items()]
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
            drawn = picture.stat().st_mtime_ns  # a branch that was given up had one of the same name
            if int(picture.stem) <= self.nimg and self.pictures.get(picture.name) != drawn:
                self.tracker.artifact(self.stage, picture, "samples")
                self.pictures[picture.name] = drawn

    def _send_config(self) -> None:
        """What was trained, as the trainer wrote it down: parameters to compare runs by. How and on what: tags."""
        path = self.folder / "config.json"
        if self.knows_config or not path.exists():
            return
        config = load_json(path)
        job = config["job"]
        px = job["model"]["levels"][-1]["resolution"]
        self.tracker.params(self.stage, {"stage": self.stage, "resolution_px": px, **job["training"]})
        facts = {name: config[name] for name in ("commit", "hardware", "processes")}
        facts |= {f"version.{package}": version for package, version in config["versions"].items()}
        facts |= {f"compute.{name}": value for name, value in job["compute"].items()}  # may change amid a training
        self.tracker.tags(self.stage, facts)
        for split, context in (("train", "training"), ("val", "held out")):
            folder, digest = Path(job[f"{split}_data"]), job.get(f"{split}_digest")
            digest = digest or (read_json(folder / "manifest.json") or {}).get("digest")
            if digest:  # neither the job of an early version says which data it was, nor do they
                self.tracker.dataset(self.stage, folder, digest, context)
        self.knows_config = True


def record_stage(tracker: Tracker, stage: str) -> Follower:
    """Have all that a finished stage wrote in MLflow, unless it is there. Raises Trouble."""
    follower = Follower(tracker, stage)
    with tracker.reachable():
        if tracker.is_finished(stage):
            follower.read()
        else:
            follower.finish()
            tracker.finish(stage)
    return follower


def record_by_outcome(tracker: Tracker, stage: str) -> tuple[Follower, str]:
    """All of a folder that may still be written, and the state its trainer left it in -> that in a word."""
    follower = Follower(tracker, stage)
    follower.finish()
    path = follower.folder / "outcome.json"
    with tracker.reachable():
        if not path.exists():
            return follower, "still training, or killed"
        told = load_json(path)
        tracker.tags(stage, {"outcome": told["outcome"]})
        status = {"done": "FINISHED", "stopped": "KILLED"}.get(told["outcome"], "FAILED")
        tracker.finish(stage, status, told["reason"])
    return follower, told["outcome"]


def stages_of(folder: Path) -> tuple[Path, list[str]]:
    """What a folder that is to be tracked holds: (run folder, stages in it that wrote metrics).

    A run's folder, one of its stages, or a folder trained without a flow, whose one stage is called "train".
    """
    if folder.name in preset_stages(folder.parent):
        return folder.parent, [folder.name]
    if (folder / "metrics.jsonl").exists():
        return folder, ["train"]
    stages = [name for name in preset_stages(folder) if (folder / name / "metrics.jsonl").exists()]
    if not stages:
        raise ValueError(f"{folder} holds no metrics.jsonl")
    return folder, stages


def preset_stages(run: Path) -> list[str]:
    """The stages of a flow's run folder, none of another folder."""
    try:
        return list(load_json(run / "config.json")["stages"])
    except (OSError, ValueError, KeyError, TypeError):  # another program's, or none
        return []
