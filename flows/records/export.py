"""MLflow, samples, the run's folder -> records.json: all that the report page knows of a run."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from evaluation.images.image_folder import ImageFolder
from evaluation.measuring.identity import drawn_by, way_of
from evaluation.pages.prompt_grids import png_uri, strip
from evaluation.pages.sections import sections
from flows.records.tracking import Tracker, history
from flows.training import trained_weights
from mdm.config import LossSpace
from mdm.data.shards import Shards
from mdm.presets import Preset, seen_before
from preprocessing.catalogue import find
from preprocessing.manifest import read_json, read_manifest, samples_left
from preprocessing.sets import SPLITS

SHOWN = 24  # captions on the page


def export_records(preset: Preset, run: Path, data: Path, images: Path, tracker: Tracker) -> dict[str, Any]:
    """Numbers, curves and facts from MLflow; pictures from the image folder; the rest by pages/sections.py."""
    parent = tracker.client.get_run(tracker.parent).data
    results = json.loads((Path(_download(tracker, "evaluation", "results.json"))).read_text())
    manifest = read_manifest(data / "train")
    protocol = results.get("protocol", "embedded")  # the only one until November 2026
    return sections(preset, run, results["metrics"], protocol) | {
        "format": 1,
        "title": f"Matryoshka Diffusion Models: {preset.name}",
        "preset": preset.name,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "facts": _facts(preset, run, data, images, parent.tags, results),
        "stages": _stages(preset, parent.metrics, tracker),
        "curves": _curves(preset, tracker),
        "metrics": [{"protocol": protocol} | metric for metric in results["metrics"]],
        "grids": _sample_grid(preset, images, data, results),
        "alive": alive(data),
        "credits": [
            *[manifest["credit"]] * bool(manifest["credit"]),
            f"Licence of the pictures that this was trained on: {manifest['licence']}; {find(manifest['name']).terms}.",
        ],
    }


def alive(data: Path) -> str:
    """How much of what its authors published a set has, where they say how much that is: some of the web is gone."""
    manifests = [read_manifest(data / split) for split in SPLITS]
    published, there = find(manifests[0]["name"]).published, sum(map(samples_left, manifests))
    if not published:
        return ""
    of_all = f"Of the {published:,} published items of {manifests[0]['name']}"
    return f"{of_all} {there:,} were there ({there / published:.1%})."


def _data_set(data: Path) -> str:
    """The folder, both splits by digest and revision, and where its card lies."""
    splits = []
    for split in SPLITS:
        manifest = read_manifest(data / split)
        splits.append(f"{split} {manifest['digest'][:12]}, revision {manifest.get('revision', 0)}")
    card = f"; its card: {data.parent.name}/{data.name}/card.html" if (data / "card.html").exists() else ""
    return f"{data.name}: {'; '.join(splits)}{card}"


def _facts(
    preset: Preset, run: Path, data: Path, images: Path, tags: dict[str, str], results: dict[str, Any]
) -> list[list[str]]:
    manifest = read_manifest(data / "train")
    widths = {name: "/".join(map(str, stage.model.resolutions)) for name, stage in preset.stages.items()}
    last, stage = list(preset.stages.items())[-1]
    weights = trained_weights(run / last).relative_to(run)
    drawn_from = json.loads((images / "inputs.json").read_text())["inputs"]["weights"]  # their sha256
    return [
        [
            "Data",
            f"{manifest['name']}: {manifest['samples']:,} images trained on; distances are taken to "
            f"{results['real_images']:,} of them",
        ],
        ["Data set", _data_set(data)],
        ["Data source", described(manifest["source"])],
        ["Data's licence", manifest["licence"]],
        *[["Data's credit", manifest["credit"]]] * bool(manifest["credit"]),
        ["Text encoder", f"{preset.text} (frozen)"],
        ["Image features", f"EfficientNet-Lite0 at {results['feature_px']} px, a stand-in for Inception-V3"],
        ["Text-image score", "linear heads learned on the training pairs, a stand-in for CLIP"],
        ["Stages", "; ".join(f"{n}: {w} px, {preset.stages[n].training.nimg:,} images" for n, w in widths.items())],
        [
            "Objective",
            f"the network predicts {stage.model.prediction}; {loss_name(stage.training.loss)} per level",
        ],
        ["Sampler", f"{way_of(drawn_by(preset.sampling, preset.seed)).words} (guidance per level, innermost first)"],
        ["Weights", f"EMA, {weights}: sha256 {drawn_from}"],
        ["Seed", str(preset.seed)],
        *[[label, tags[f"mdm.{key}"]] for key, label in FACT_TAGS.items() if f"mdm.{key}" in tags],
    ]


def described(source: dict[str, Any]) -> str:
    """What a set was made of, in a line: digests by their first 12 digits, by which they can be told apart."""

    def short(value: Any) -> str:
        if isinstance(value, dict):
            return "; ".join(f"{name} {short(inner)}" for name, inner in value.items())
        if isinstance(value, list):
            return " ".join(map(short, value))
        return re.sub(r"\b[0-9a-f]{32,}\b", lambda found: found[0][:12], str(value))

    return ", ".join(f"{name}: {short(value)}" for name, value in source.items())


def loss_name(space: LossSpace) -> str:
    return f"mean squared error of {'the noise' if space == 'noise' else space}"


FACT_TAGS = {"machine": "Machine", "versions": "Versions", "commit": "Commit", "config": "Configuration digest"}


def _stages(preset: Preset, metrics: dict[str, float], tracker: Tracker) -> list[dict[str, Any]]:
    rows = []
    for name, seconds in sorted(metrics.items()):
        if not name.startswith("time/"):
            continue
        title = name[len("time/00 ") :]
        cost = detail = ""
        if title.startswith("train "):
            stage = title.removeprefix("train ")
            cost = (
                f"{preset.stages[stage].training.nimg:,} images, {preset.hardware.processes} × {preset.hardware.device}"
            )
            losses = history(tracker, stage, [f"val/loss_{px}" for px in preset.stages[stage].model.resolutions])
            ends = [f"{name.rpartition('_')[2]} px {v[0][1]:.3f} → {v[-1][1]:.3f}" for name, v in losses.items()]
            detail = f"held-out loss of the EMA: {', '.join(ends)}"
        rows.append({"name": title, "state": "done", "seconds": seconds, "cost": cost, "detail": detail})
    return rows


def _curves(preset: Preset, tracker: Tracker) -> list[dict[str, Any]]:
    """Per resolution: training loss and the EMA's held-out loss, over all images seen since fresh weights."""
    top = max(px for stage in preset.stages.values() for px in stage.model.resolutions)
    last = list(preset.stages.values())[-1]
    resolutions = [px for px in last.model.resolutions if px <= top]
    curves = []
    for px in resolutions:
        series = []
        for name in preset.stages:
            before = seen_before(preset, name)
            found = history(tracker, name, [f"train/loss_{px}", f"val/loss_{px}"])
            for metric, points in found.items():
                kind = "training" if metric.startswith("train/") else "held out (EMA)"
                xs, ys = [before + x for x, _ in points], [y for _, y in points]
                series.append({"name": f"{kind}, stage {name}", "x": xs, "y": ys})
        curves.append(
            {
                "title": f"Loss at {px} × {px}",
                "x_label": "images seen",
                "y_label": loss_name(last.training.loss),
                "log_y": True,
                "series": series,
            }
        )
    return curves


def _sample_grid(preset: Preset, images: Path, data: Path, results: dict[str, Any]) -> list[dict[str, Any]]:
    """One strip per caption: every level, the real image, the nearest training image.

    Strangers' pictures are not shown, but their keys and distances: see ``_shows_real``.
    """
    resolutions = preset.model.resolutions
    drawn = ImageFolder(images / "samples")
    real, train = Shards(data / "val"), Shards(data / "train")
    held_out = {real.key(i): i for i in real.present()}
    items, shows_real = [], _shows_real(data)
    every = max(1, len(results["samples"]) // SHOWN)
    for sample in results["samples"][::every][:SHOWN]:
        tiles = [drawn.load([sample["index"]], px)[0] for px in resolutions]
        nearest = train[sample["nearest_index"]]
        if nearest.key != sample.get("nearest_key", nearest.key):  # the first format has numbers alone
            raise ValueError(f"{train.folder} is not what was measured: run the same command again")
        near = sample["nearest_caption"] if shows_real else f"{nearest.key}, distance {sample['nearest_distance']:.3g}"
        if shows_real:
            tiles += [real[held_out[sample["key"]]].image.numpy(), nearest.image.numpy()]
        items.append({"caption": f"{sample['caption']}  (nearest: {near})", "image": png_uri(strip(tiles))})
    sizes = ", ".join(f"{px} px" for px in resolutions)
    searched, there = results["nearest_among"]["images"], results["nearest_among"]["of"]
    among = f"all {there:,}" if searched == there else f"{searched:,} of the {there:,}"
    beside = (
        "the real picture of that caption, never trained on; and the training image nearest to the sample, of "
        f"{among}, to see whether it was copied."
        if shows_real
        else f"beside it the key of the training image nearest to the sample, of {among}. Strangers' pictures are not "
        f"shown (`mdm data {train.manifest['name']} --sheet` asks for them)."
    )
    return [
        {
            "title": "Samples of held-out captions",
            "note": f"Each strip: {sizes} of one sample; {beside} Captions are taken at equal distances from the list, "
            "whatever came out.",
            "columns": 3,
            "items": items,
        }
    ]


def _shows_real(data: Path) -> bool:
    """Whether pages show pictures of a set: as its card does, by the catalogue or because somebody asked for it."""
    card = read_json(data / "card.json")
    return bool(find(read_manifest(data / "train")["name"]).sheet if card is None else card["sheet"])


def _download(tracker: Tracker, stage: str, path: str) -> str:
    return tracker.client.download_artifacts(tracker.child(stage), path)
