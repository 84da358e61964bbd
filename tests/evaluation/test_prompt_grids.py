"""Pictures that the numbers ask for: best and worst by cosine, the same prompts along the training, a run's samples."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from evaluation.images.captions import Line, Prompt, assign, write_lines
from evaluation.images.image_folder import ImageFolder
from evaluation.measuring.identity import drawn_by, way_of
from evaluation.pages.points import Point
from evaluation.pages.prompt_grids import best_and_worst, prompt_grids, seeds_along_training
from evaluation.pages.schema import Grid, Sample
from evaluation.pages.sections import flat, own_identity, own_samples
from mdm.config import Sampling
from mdm.files import write_json
from mdm.presets import PRESETS, Preset
from mdm.structure import to_dict

TINY = PRESETS["tiny"]


def pixels(uri: Any) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def draw(folder: Path, count: int) -> None:
    """Grey pictures, each a shade lighter, with their captions."""
    images = folder / "samples" / "samples"
    greys = torch.arange(count).view(-1, 1, 1, 1).expand(-1, 3, 64, 64) / 127.5 - 1
    ImageFolder(images).save([greys], range(count), range(count))
    write_lines(images, [Line(index=i, key=f"k{i}", caption=f"caption {i}", seed=7 + i) for i in range(count)])


def cosines(folder: Path, values: list[float]) -> None:
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    rows = [{"index": i, "key": f"k{i}", "caption": f"c{i}", "cosines": {"clip": v}} for i, v in enumerate(values)]
    (folder / "evaluation" / "cosines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_best_and_worst_are_shown_with_their_own_picture(tmp_path: Path) -> None:
    draw(tmp_path, 5)
    cosines(tmp_path, [0.3, -0.1, 0.9, 0.2, 0.5])
    ImageFolder(tmp_path / "samples" / "samples").forget({3})  # taken down since
    best, worst = best_and_worst("here", tmp_path)
    assert [item["caption"] for item in best["items"]] == ["0.900  c2", "0.500  c4"]
    assert [item["caption"] for item in worst["items"]] == ["-0.100  c1"]
    assert [pixels(item["image"])[0, 0, 0] for item in best["items"]] == [2, 4]
    for grid in (best, worst):
        Grid.model_validate(grid)


def test_a_run_without_cosines_has_none(tmp_path: Path) -> None:
    draw(tmp_path, 4)
    assert prompt_grids(TINY, tmp_path, []) == []


def test_a_strip_has_one_prompt_all_along(tmp_path: Path) -> None:
    px = {"16": 16, "32": 32}
    for stage, size in px.items():
        folder = tmp_path / stage / "samples"
        folder.mkdir(parents=True)
        for seen in (0, 100):
            rows = 1 if stage == "16" else 2  # a row per level, the highest last
            grid = np.full((rows * size, 2 * size, 3), 255, np.uint8)  # of two prompts
            grid[-size:, :size] = seen + size
            grid[-size:, size:] = 0
            Image.fromarray(grid).save(folder / f"{seen:012d}.png")
    (tmp_path / "64" / "samples").mkdir(parents=True)
    write_json(tmp_path / "64" / "samples" / "captions.json", ["sun", "moon"])
    (along,) = seeds_along_training(TINY, tmp_path)
    assert [item["caption"] for item in along["items"]] == ["sun", "moon"]
    assert "0 (16), 100 (16), 14,720 (32), 14,820 (32)" in along["note"]
    sun, moon = (pixels(item["image"]) for item in along["items"])
    centres = [32 + 68 * i for i in range(4)]
    assert [int(sun[32, x, 0]) for x in centres] == [16, 116, 32, 132]
    assert [int(moon[32, x, 0]) for x in centres] == [0] * 4


def test_which_samples_are_kept_depends_on_the_prompt_alone(tmp_path: Path) -> None:
    for name, count in (("few", 30), ("many", 60)):
        draw(tmp_path / name, count)
    few, many = (own_samples(tmp_path / name) for name in ("few", "many"))
    assert len(few) == len(many) == 24
    of_few = {f"k{i}" for i in range(30)}
    kept = [s["key"] for s in many if s["key"] in of_few]
    assert kept == [s["key"] for s in few][: len(kept)] and len(kept) > 5
    assert all(pixels(s["image"])[0, 0, 0] == s["seed"] - 7 == int(s["key"][1:]) for s in few)
    Sample.model_validate(few[0])


def test_what_decides_the_own_numbers_is_digested(tmp_path: Path) -> None:
    assert own_identity(TINY, tmp_path) == {}
    assign(tmp_path / "samples" / "samples", [Prompt(key=key, caption="b") for key in "abc"], 0)
    split = {"digest": "d", "revision": 0, "removed": ""}
    (tmp_path / "evaluation").mkdir()

    def of(
        preset: Preset = TINY, keys: str = "ab", encoder: str = "e", part: str = "protocol_digest", **told: Any
    ) -> Any:
        samples = {"encoder": encoder, "sampling": to_dict(TINY.sampling), "seed": 0, "format": 2}
        inputs = {"format": 2, "feature_px": 224, "num_real": 600, "train": split, "val": split, "samples": samples}
        write_json(tmp_path / "evaluation" / "results.json", {"samples": [{"key": key} for key in keys]})
        write_json(tmp_path / "evaluation" / "inputs.json", {"inputs": inputs | told})
        return own_identity(preset, tmp_path).get(part)

    first = of()
    assert of(replace(TINY, seed=5)) == first == of(train={"digest": "d", "revision": 0})
    drawn = of(part="drawn")  # as it was, whatever the preset is now
    assert drawn["format"] == 2 and of(replace(TINY, seed=5, sampling=Sampling()), part="drawn") == drawn
    assert of(samples={"encoder": "e"}) is None and of(train={}, val=None) is None  # of an older version
    others = {
        of(num_real=5),
        of(format=1),
        of(feature_px=64),
        of(replace(TINY, stages={"16": TINY.stages["16"]})),  # of other pixels
        of(keys="a"),
        of(encoder="other"),
        of(train={**split, "removed": "some"}),
        of(val={**split, "digest": "other"}),
    }
    assert first not in others and len(others) == 8


def test_settings_are_flat() -> None:
    assert flat({"a": {"b": 1, "c": [2.0]}, "d": None, "e": {}}) == {"a.b": "1", "a.c": "[2.0]", "d": "null", "e": "{}"}
    assert flat({"sampling": {"steps": 3}})["sampling.steps"] == "3"


def test_the_papers_prompts_are_shown_a_row_each(tmp_path: Path) -> None:
    folder = tmp_path / "evaluations" / "gallery" / "guidance-2"
    images = folder / "samples" / "samples"
    greys = torch.arange(6).view(-1, 1, 1, 1).expand(-1, 3, 16, 16) / 127.5 - 1
    ImageFolder(images).save([greys], range(6), range(6))
    names = ["gallery-07-0", "gallery-07-1", "gallery-03-0", "gallery-07-2", "gallery-07-3", "gallery-03-1"]
    write_lines(images, [Line(index=i, key=k, caption=f"row {k[8:10]}", seed=i) for i, k in enumerate(names)])
    sampling = Sampling(guidance=(2.0,))
    way = way_of(drawn_by(sampling, 0))
    point = Point("guidance-2", "gallery", "", "16", 16, 100, sampling, way, [], folder)
    (grid,) = prompt_grids(TINY, tmp_path, [point])
    Grid.model_validate(grid)
    assert [item["caption"] for item in grid["items"]] == ["row 03", "row 07"]
    first, second = (pixels(item["image"]) for item in grid["items"])
    assert [first[0, x, 0] for x in (0, 132)] == [2, 5]
    assert [second[0, x, 0] for x in (0, 132, 264, 396)] == [0, 1, 3, 4]
    assert "guidance 2" in grid["note"] and "gallery/guidance-2/contact-sheet.png" in grid["note"]
    assert prompt_grids(TINY, tmp_path, [replace(point, protocol="embedded")]) == []
