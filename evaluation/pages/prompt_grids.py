"""Pictures of a run's prompts: those that fit best and worst, the paper's own, the same ones all along the training."""

import base64
import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evaluation.images.captions import read_lines
from evaluation.images.image_folder import ImageFolder
from evaluation.measuring.standard import COSINES
from evaluation.pages.points import Point
from mdm.files import load_json
from mdm.gallery import PICTURES
from mdm.presets import Preset, seen_before

TILE_PX = 64
SHOWN = 8  # prompts at either end
PAPER_PX = 128  # of a picture of the paper's prompts

Grid = dict[str, Any]


def prompt_grids(preset: Preset, run: Path, points: list[Point]) -> list[Grid]:
    """The section ``prompts`` of records.json: best and worst by cosine, the paper's, equal seeds along training."""
    measured = {"the run's own samples": run}
    measured |= {
        f"{p.protocol}, stage {p.stage}, {p.nimg:,} images, {p.way.words}": p.folder for p in points if p.folder
    }
    found: list[Grid] = []
    for what, folder in _latest(measured).items():
        found += best_and_worst(what, folder)
    for point in points:
        found += paper_prompts(point)
    return found + seeds_along_training(preset, run)


def _latest(measured: dict[str, Path]) -> dict[str, Path]:
    """Of each protocol the last place that has cosines: a grid per point would bury the page."""
    protocols: dict[str, str] = {}
    for what, folder in measured.items():
        if (folder / "evaluation" / COSINES).exists():
            protocols[what.partition(",")[0]] = what
    return {what: measured[what] for what in protocols.values()}


def best_and_worst(what: str, folder: Path) -> list[Grid]:
    """Of drawn images in ``folder/samples/samples``, by the first network whose cosines were written down."""
    lines = [json.loads(line) for line in (folder / "evaluation" / COSINES).read_text(encoding="utf-8").splitlines()]
    if not lines:
        return []
    network = next(iter(lines[0]["cosines"]))
    ordered = sorted(lines, key=lambda line: (-line["cosines"][network], line["index"]))
    shown, images = min(SHOWN, len(ordered) // 2), ImageFolder(folder / "samples" / "samples")
    ends = {"best": ordered[:shown], "worst": ordered[::-1][:shown]}
    grids = []
    for end, chosen in ends.items():
        pictures = [small_picture(images, line["index"]) for line in chosen]
        items = [
            {"caption": f"{line['cosines'][network]:.3f}  {line['caption']}", "image": png_uri(picture)}
            for line, picture in zip(chosen, pictures, strict=True)
            if picture is not None
        ]
        note = f"Of {len(ordered)} samples, by the cosine of {network}: {what}."
        grids += [{"title": f"Captions that fit {end}", "note": note, "columns": 4, "items": items}] * bool(items)
    return grids


def paper_prompts(point: Point) -> list[Grid]:
    """The prompts of the paper's figures, where that point has drawn them: some pictures of each side by side."""
    if point.protocol != "gallery" or point.folder is None:
        return []
    images, items = ImageFolder(point.folder / "samples" / "samples"), []
    lines = sorted(read_lines(images.folder), key=lambda line: line.key)
    there = [line for line in lines if images.has(line.index, images.resolutions[-1:])]
    for _, group in itertools.groupby(there, lambda line: line.key.rpartition("-")[0]):
        row = list(group)[:PICTURES]
        tiles = [images.load([line.index], images.resolutions[-1])[0] for line in row]
        captions = dict.fromkeys(line.caption for line in row)
        items.append({"caption": ", ".join(captions), "image": png_uri(strip(tiles, PAPER_PX))})
    drawn = f"Drawn by stage {point.stage} after {point.nimg:,} images, {point.way.words}"
    note = f"{drawn}. Larger in evaluations/{point.folder.parent.name}/{point.name}/contact-sheet.png."
    return [{"title": "The prompts of the paper's figures", "note": note, "columns": 2, "items": items}] * bool(items)


def small_picture(images: ImageFolder, index: int, longest_px: int = 256) -> NDArray[np.uint8] | None:
    """An image [H, W, 3], at most so large; None where it was deleted since."""
    if not images.has(index, images.resolutions[-1:]) or not images.resolutions:
        return None
    (pixels,) = images.load([index], images.resolutions[-1])
    picture = Image.fromarray(pixels.transpose(1, 2, 0))
    picture.thumbnail((longest_px, longest_px), Image.Resampling.BOX)
    return np.asarray(picture)


def seeds_along_training(preset: Preset, run: Path) -> list[Grid]:
    """A strip per prompt that the trainings drew all along, from fresh weights to the last ones.

    Stages draw the same prompts from the same seeds; the coarse levels' noise is the same, too.
    """
    moments = []
    for name, stage in preset.stages.items():
        px = stage.model.resolutions[-1]
        for file in sorted((run / name / "samples").glob("*.png")):
            with Image.open(file) as opened:
                top = np.asarray(opened.convert("RGB"))[-px:]  # the highest level is the last row
            tiles = [top[:, i : i + px].transpose(2, 0, 1) for i in range(0, top.shape[1], px)]
            moments.append((seen_before(preset, name) + int(file.stem), name, tiles))
    if len(moments) < 2:
        return []
    when = ", ".join(f"{seen:,} ({name})" for seen, name, _ in moments)
    captions = _captions(preset, run)
    return [
        {
            "title": "The same prompts and seeds along the training",
            "note": f"From left to right after so many images in all (stage): {when}. EMA weights, the highest "
            "level; where that is new, its pictures are grey.",
            "columns": 2,
            "items": [
                {"caption": caption, "image": png_uri(strip([tiles[i] for _, _, tiles in moments if i < len(tiles)]))}
                for i, caption in zip(range(max(len(tiles) for _, _, tiles in moments)), captions, strict=False)
            ],
        }
    ]


def _captions(preset: Preset, run: Path) -> list[str]:
    """Of the grids, where the trainer wrote them down; else their numbers."""
    file = run / list(preset.stages)[-1] / "samples" / "captions.json"
    return load_json(file) if file.exists() else [f"prompt {i + 1}" for i in range(64)]


def strip(tiles: list[NDArray[np.uint8]], px: int = TILE_PX) -> NDArray[np.uint8]:
    """Images [3, H, H] of any size side by side at one size, white between them: [px, W, 3]."""
    gap = np.full((px, 4, 3), 255, np.uint8)
    row: list[NDArray[np.uint8]] = []
    for tile in tiles:
        finer = tile.shape[1] > px  # few pixels are to be seen as they are
        how = Image.Resampling.BOX if finer else Image.Resampling.NEAREST
        picture = Image.fromarray(tile.transpose(1, 2, 0)).resize((px, px), how)
        row += [gap, np.asarray(picture)] if row else [np.asarray(picture)]
    return np.concatenate(row, axis=1)


def png_uri(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
