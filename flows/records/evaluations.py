"""Evaluations -> MLflow: a run per checkpoint, a child per way of drawing, and the checkpoint itself as a model.

The flow never waits for MLflow or fails for it: what could not be sent is said once, and the same command sends it.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mlflow.entities import LoggedModelInput, Metric
from PIL import Image

from evaluation.images.captions import Line, lines_by_key, read_lines
from evaluation.images.image_folder import ImageFolder
from evaluation.measuring.identity import Way
from evaluation.measuring.standard import COSINES
from evaluation.results import SAMPLES
from flows.home import Trouble
from flows.measuring.told import SHEET
from flows.records.tracking import Tracker
from mdm.files import load_json, sha256, write_json
from mdm.run.folder import read_manifest
from mdm.structure import digest
from preprocessing.manifest import read_manifest as read_data_manifest

FIXED_PROMPTS = 8  # whose pictures MLflow lines up over runs and steps
EXTERNAL = "mlflow.model.isExternal"  # MLflow's own tag: the weights lie elsewhere


class EvaluationRecord:
    """What one evaluation sends. ``folder``: RUN/evaluations/…, with a folder per point; ``data``: its prompts' set,
    if they are of one."""

    def __init__(self, run: Path, folder: Path, data: Path | None, say: Callable[[str], None]) -> None:
        self.run, self.folder, self.data, self.say = run, folder, data, say
        self.trackers: dict[str, Tracker] = {}
        self.trouble = ""

    def send(self, weights: Path, point: str, facts: dict[str, Any], way: Way, done: dict[str, Any]) -> None:
        """A point's settings, numbers, prompts and pictures, drawn in some ``way`` from a folder of weights. ``done``:
        its metrics, and when they were made."""
        place = self.folder / point
        prompts = prompt_rows(place)
        write_json(place / "inputs.json", {"digest": digest([facts, done["metrics"], prompts])})  # by which it is known
        if self.trouble:
            return
        try:
            self._send(weights, point, facts, way, done, prompts)
        except Trouble as error:
            self.trouble = str(error)
            self.say(f"{error} The numbers are on the disk, and this evaluation goes on without MLflow.")

    def _send(
        self,
        weights: Path,
        point: str,
        facts: dict[str, Any],
        way: Way,
        done: dict[str, Any],
        prompts: dict[str, list[Any]],
    ) -> None:
        name = f"{self.run.name} {facts['stage']} {facts['protocol']} {facts['checkpoint']}"
        if name not in self.trackers:
            # Silent: a folder has a run per checkpoint, so a new one is no sign of a lost one.
            self.trackers[name] = Tracker(self.folder, name, lambda line: None)
        tracker, pictures = self.trackers[name], list(fixed_pictures(self.folder / point))
        with tracker.reachable():
            of_all = {k: facts[k] for k in ("stage", "protocol", "protocol_digest", "checkpoint", "nimg", "seed", "n")}
            tracker.params("", {"run": self.run.name, **of_all})
            child = tracker.child(point)
            if tracker.is_finished(point):
                return
            model = self._model(tracker, weights, facts)
            tracker.params(point, facts)
            digests = {"mdm.protocol_digest": facts["protocol_digest"], "mdm.ema_sha256": _ema_sha256(weights)}
            tracker.tags(point, digests | {"mdm.training_run": tracker.run_of(self.run)})
            for split, context in (("val", "evaluation"), ("train", "reference")):
                if self.data is not None:
                    told = read_data_manifest(self.data / split)["digest"]
                    tracker.dataset(point, self.data / split, told, context)
            _, values = metric_values(done["metrics"])
            tracker.metrics(point, values, facts["nimg"], done["finished_ms"])
            tracker.client.log_batch(child, metrics=model_metrics(model, facts, way, done))
            tracker.client.log_inputs(child, models=[LoggedModelInput(model)])
            there = {artifact.path for artifact in tracker.client.list_artifacts(child)}
            if "images" not in there:
                for key, picture in pictures:
                    tracker.client.log_image(child, picture, key=key, step=facts["nimg"], synchronous=True)
            if "prompts.json" not in there:  # a table that is there would be added to
                tracker.client.log_table(child, prompts, "prompts.json")
            if (sheet := self.folder / point / SHEET).exists():
                tracker.artifact(point, sheet)
            tracker.finish(point)
            tracker.finish("")

    def _model(self, tracker: Tracker, weights: Path, facts: dict[str, Any]) -> str:
        """The id of the weights as MLflow's model, made on first use; its weights stay where they are."""
        known = _ema_sha256(weights)
        found = tracker.client.search_logged_models([tracker.experiment], f"tags.`mdm.ema_sha256` = '{known}'")
        if found:
            return found[0].model_id
        made = tracker.client.create_logged_model(
            tracker.experiment,
            name=re.sub(r"[^\w-]", "-", f"{self.run.name}-{facts['stage']}-{facts['checkpoint']}"),
            source_run_id=tracker.run_of(self.run) or None,
            tags={EXTERNAL: "true", "mdm.ema_sha256": known},
            params={
                "path": str(weights),
                **{k: str(facts[k]) for k in ("stage", "nimg")},
                "run": self.run.name,
            },
            model_type="mdm checkpoint",
        )
        tracker.client.finalize_logged_model(made.model_id, "READY")
        return made.model_id


def _ema_sha256(weights: Path) -> str:
    """As the checkpoint's manifest has it, where they are one's."""
    files: dict[str, dict[str, Any]] = read_manifest(weights.parent).get("files", {})
    known = files.get("ema/model.safetensors", {}).get("sha256", "")
    return known or sha256(weights / "model.safetensors")


def model_metrics(model: str, facts: dict[str, Any], way: Way, done: dict[str, Any]) -> list[Metric]:
    """The samples' numbers as a model's, by which models are ranked: ``guidance G NAME_nN N steps SAMPLER
    PROTOCOL-DIGEST``, so that what does not compare is no column of one name. MLflow's charts show the first 20 letters
    of a name or so: what tells most bars apart is in them."""
    own, _ = metric_values(done["metrics"])
    protocol, metrics = f"{facts['protocol']}-{facts['protocol_digest']}", []
    for name, value in own.items():
        key = f"guidance {way.guidance} {name.removeprefix('eval/')} {way.but_for_guidance} {protocol}"
        admitted = re.sub(r"[^\w. -]", "-", key.replace(",", ""))  # "/" would end the name of a chart's section
        metrics.append(Metric(admitted, value, done["finished_ms"], facts["nimg"], model_id=model))
    return metrics


def metric_values(metrics: Iterable[dict[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """``eval/NAME_nN`` of the samples; and these with what they stand beside, ``eval/NAME_nN/WHAT``, and intervals; of
    what was measured on another number of images than the samples, ``eval/NAME_nN/WHAT_nM``."""
    own: dict[str, float] = {}
    values: dict[str, float] = {}
    for metric in metrics:
        name = f"eval/{metric['name']}_n{metric['n']}"
        if SAMPLES in metric["values"]:
            own[name] = metric["values"][SAMPLES]
        for i, (what, value) in enumerate(metric["values"].items()):
            size = metric.get("sizes", {}).get(what, metric["n"])
            other = what.replace(" ", "_") + (f"_n{size}" if size != metric["n"] else "")
            prefix = name if i == 0 else f"{name}/{other}"
            values[prefix] = value
            if what in metric["interval"]:
                low, high = metric["interval"][what]
                values |= {f"{prefix}_low": low, f"{prefix}_high": high}
    return own, values


def prompt_rows(place: Path) -> dict[str, list[Any]]:
    """A column per fact of a point's prompts: key, caption, seed, cosine by each network, nearest training image."""
    lines = read_lines(place / "samples" / "samples")
    cosines, results = place / "evaluation" / COSINES, place / "evaluation" / "results.json"
    measured: dict[str, dict[str, Any]] = {line.key: {} for line in lines}
    if results.exists():
        for sample in load_json(results).get("samples", []):
            near = {name: sample.get(name) for name in ("nearest_key", "nearest_distance")}
            measured.setdefault(sample["key"], {}).update(near)
    if cosines.exists():
        for text in cosines.read_text(encoding="utf-8").splitlines():
            row = json.loads(text)
            measured.setdefault(row["key"], {}).update({f"cosine {k}": v for k, v in row["cosines"].items()})
    names = dict.fromkeys(name for row in measured.values() for name in row)
    table: dict[str, list[Any]] = {
        "key": [line.key for line in lines],
        "caption": [line.caption for line in lines],
        "label": [line.label for line in lines],
        "seed": [str(line.seed) for line in lines],  # beyond what a page's numbers hold
    }
    return table | {name: [measured[line.key].get(name) for line in lines] for name in names}


def fixed_pictures(place: Path) -> Iterable[tuple[str, Image.Image]]:
    """Of a few prompts, the same in every run of the same captions: what MLflow knows them by, and the picture."""
    images = ImageFolder(place / "samples" / "samples")
    by_key = lines_by_key(images.folder)
    px = images.resolutions[-1:]
    for line in [line for line in by_key if px and images.has(line.index, px)][:FIXED_PROMPTS]:
        (pixels,) = images.load([line.index], px[0])
        yield image_key(line), Image.fromarray(pixels.transpose(1, 2, 0))


def image_key(line: Line) -> str:
    """Caption and key, in the letters that MLflow admits in a key."""
    text = f"{line.caption or f'label {line.label}'} {line.key}"
    return " ".join(re.sub(r"[^A-Za-z0-9_.-]", " ", text).split())[:100]
