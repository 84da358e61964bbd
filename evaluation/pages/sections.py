"""The sections of records.json that a run's folder alone gives: no data set, no server is asked, and they are made anew
whenever its page is, so that what was evaluated since stands on it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluation.images.captions import lines_by_key, read_lines
from evaluation.images.image_folder import ImageFolder
from evaluation.measuring.identity import Origin, drawn_by, identity, measured_by_stand_ins, way_of
from evaluation.pages.beside import beside_paper
from evaluation.pages.figures import figures
from evaluation.pages.points import Point, read_points, tables
from evaluation.pages.prompt_grids import png_uri, prompt_grids, small_picture
from evaluation.pages.speed import read_paces, speeds
from evaluation.protocols import PROTOCOLS
from evaluation.results import FRECHET, KID, NOISE, SAMPLES, SHUFFLED, TEXT_IMAGE, UNTRAINED
from mdm.config import Sampling
from mdm.experiments import TRAININGS, stage_key
from mdm.files import load_json
from mdm.network.costs import parameters
from mdm.presets import Preset
from mdm.structure import from_dict, to_dict

KEPT_SAMPLES = 24  # of a run's own, to stand beside another run's


def sections(preset: Preset, run: Path, metrics: list[dict[str, Any]], protocol: str = "embedded") -> dict[str, Any]:
    """``metrics``: of the run's own samples, under ``protocol``. Raises ValueError naming a file that is torn."""
    points, paces, own = read_points(preset, run), read_paces(preset, run), own_identity(preset, run)
    last, stage = list(preset.stages.items())[-1]
    digest, way = own.get("protocol_digest", ""), way_of(own.get("drawn") or drawn_by(preset.sampling, preset.seed))
    drawn = Point(
        "own",
        protocol,
        digest,
        last,
        preset.px,
        stage.training.nimg,
        preset.sampling,
        way,
        metrics,
    )
    rows = speeds(preset, run)
    return {
        "run": run.name,  # which a copy changes
        "verdict": verdict(preset, metrics, points, sorted({row["hardware"] for row in rows})),
        "evaluations": tables(preset, points),
        "figures": figures(preset, points, paces),
        "speeds": rows,
        "prompts": prompt_grids(preset, run, points),
        "paper": beside_paper(preset, run.name, [drawn, *points], rows),
        "settings": flat(to_dict(preset)),
        "digest": digest,
        "drawn": way._asdict(),
        "samples": own_samples(run),
    }


# -- the verdict -------------------------------------------------------------------------------------------------------


def verdict(preset: Preset, metrics: list[dict[str, Any]], points: list[Point], hardware: list[str]) -> str:
    """What was run, at which scale, what stands in for what, and what the numbers say: words that follow from them."""
    own = stage_key(preset, list(preset.stages)[-1])
    papers = [
        name
        for name, trained in TRAININGS.items()
        if not trained.absent and stage_key(replace(trained.resolved, seed=preset.seed), trained.stage) == own
    ]
    what = f"the paper's training {papers[0]}" if papers else "a stand-in for the paper's experiments, not one of them"
    images = sum(stage.training.nimg for stage in preset.stages.values())
    size = parameters(preset.model) / 1e6
    scale = f"{size:,.1f} M parameters, {images:,} images seen in {len(preset.stages)} stages"
    where = f" on {', '.join(hardware)}" if hardware else ""
    standards = sorted({p.protocol for p in points if any(m["name"].startswith(("fid_", "clip_")) for m in p.metrics)})
    scores = (
        f"FID and CLIP scores stand under {', '.join(standards)}"
        if standards
        else "none of its numbers is a FID or CLIP score"
    )
    text = ", MiniLM for FLAN-T5 XL" if preset.text == "minilm" else ""
    return " ".join(
        [
            f"Preset {preset.name} on {preset.data.name} at {preset.px} px, {scale}{where}: {what}.",
            f"EfficientNet-Lite0 stands in for Inception-V3, learned heads for CLIP{text} where the run's own samples "
            f"are measured; {scores}.",
            _distances(metrics),
        ]
    )


def _distances(metrics: list[dict[str, Any]]) -> str:
    by_name = {metric["name"]: metric for metric in metrics}
    frechet, kernel = (_against(by_name[metric.name]["values"]) for metric in (FRECHET, KID))
    interval = by_name[KID.name]["interval"]
    apart = all(interval[SAMPLES][1] < interval[other][0] for other in (UNTRAINED, NOISE))
    fits = ""
    if TEXT_IMAGE.name in by_name:
        text = by_name[TEXT_IMAGE.name]["values"]
        higher = "higher" if text[SAMPLES] > text[SHUFFLED] else "NOT higher"
        fits = f" Captions score {higher} on their own samples than shuffled ones do."
    return (
        f"The samples' distance to real images is {kernel:.0%} (kernel distance; the intervals "
        f"{'do not overlap' if apart else 'OVERLAP'}) and {frechet:.0%} (Fréchet distance) of an untrained model's or "
        f"of noise's, whichever is nearer; the aim was 50% or less.{fits}"
    )


def _against(values: dict[str, float]) -> float:
    """The samples' distance as a fraction of the lesser one of those that know nothing."""
    return values[SAMPLES] / min(values[UNTRAINED], values[NOISE])


# -- what runs are compared by -----------------------------------------------------------------------------------------


def flat(value: Any, path: str = "") -> dict[str, str]:
    """Nested settings by their dotted names, as ``--set`` takes them."""
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{path}.{key}" if path else key).items()}
    return {path: json.dumps(value)}


def own_identity(preset: Preset, run: Path) -> dict[str, Any]:
    """What the numbers of the run's own samples are of (identity.py), as at a point of a sweep, by what was written
    when they were made; {} before there are any, and where an older version wrote something else."""
    results, begun = run / "evaluation" / "results.json", run / "evaluation" / "inputs.json"
    if not results.exists() or not begun.exists():
        return {}
    inputs, keys = load_json(begun)["inputs"], {sample["key"] for sample in load_json(results)["samples"]}
    lines = [line for line in read_lines(run / "samples" / "samples") if line.key in keys]
    try:
        samples, splits = inputs["samples"], {split: inputs[split] for split in ("val", "train")}
        data = {split: {name: value for name, value in of.items() if value != ""} for split, of in splits.items()}
        origin = Origin(from_dict(Sampling, samples["sampling"]), samples["seed"], data, samples["format"])
        settings = replace(preset.evaluation, feature_px=inputs["feature_px"], num_real=inputs["num_real"])
        own = measured_by_stand_ins(PROTOCOLS["embedded"], lines, settings, origin, preset.px, samples["encoder"])
        return identity(own | {"metrics_format": inputs["format"]}, origin)
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}


def own_samples(run: Path) -> list[dict[str, Any]]:
    """Some of the run's own samples. Which ones depends on the prompts' keys alone: two runs of some prompts in common
    keep the same of them."""
    images = ImageFolder(run / "samples" / "samples")
    lines = lines_by_key(images.folder)
    found = []
    for line in lines[:KEPT_SAMPLES]:
        picture = small_picture(images, line.index)
        if picture is not None:
            caption = line.caption or f"label {line.label}"
            found.append({"key": line.key, "seed": line.seed, "caption": caption, "image": png_uri(picture)})
    return found
