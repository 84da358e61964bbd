"""A file of prompts -> pictures for other people's benchmarks (GenEval, DPG and others), and which is of which prompt.

``FOLDER/00000/samples/0000.png`` is a picture of the first prompt, ``FOLDER/00000/metadata.jsonl`` its line: GenEval's
layout (Ghosh et al. 2023). ``FOLDER/manifest.jsonl``, written last, has a line for each picture.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from evaluation.images.captions import image_seed
from evaluation.images.prompts import Drawing, conditions_of
from mdm.data.ranges import to_uint8
from mdm.diffusion.generate import generate
from mdm.files import load_json, whole_file, write_json
from mdm.structure import digest, to_dict

OURS = ("image", "index", "sample", "seed")  # fields of a manifest's line
MANIFEST, SETTINGS = "manifest.jsonl", "settings.json"


def read_prompts(file: Path) -> list[dict[str, Any]]:
    """A .txt with a prompt a line, or a .jsonl of objects that have a ``prompt`` -> the objects, all fields kept.

    Empty lines are passed over. Raises ValueError naming file, line and what is wrong with it.
    """
    if file.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"--prompts {file}: neither .txt (a prompt a line) nor .jsonl (objects with a prompt)")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # a prompt may hold the other ends of line
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--prompts {file} cannot be read: {error}") from error
    found = [_entry(file, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ValueError(f"--prompts {file} has no prompt")
    return found


def _entry(file: Path, number: int, line: str) -> dict[str, Any]:
    if file.suffix == ".txt":
        return {"prompt": line.strip()}
    try:
        entry = json.loads(line, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--prompts {file}, line {number} is no JSON: {error}") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise ValueError(f'--prompts {file}, line {number}: an object with a "prompt" is needed')
    if not entry["prompt"].strip():
        raise ValueError(f"--prompts {file}, line {number}: the prompt is empty")
    if any("\ud800" <= letter <= "\udfff" for letter in entry["prompt"]):
        raise ValueError(f"--prompts {file}, line {number}: the prompt holds half a letter (a lone surrogate)")
    if taken := sorted(set(OURS) & set(entry)):
        raise ValueError(f"--prompts {file}, line {number}: {taken[0]} is a field of the manifest: call it otherwise")
    return entry


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON's")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        _no_number(text)
    return number


def draw_prompts(
    drawing: Drawing, entries: list[dict[str, Any]], weights: Path, seed: int, count: int, folder: Path
) -> Path:
    """``count`` pictures of each prompt -> the manifest. Killed, the same call draws what is missing, the same.

    A picture is known by its prompt and number, which with ``seed`` decide its noise. Raises ValueError for a folder
    that was begun with other prompts, weights or settings.
    """
    if count < 1:
        raise ValueError(f"--count must be at least 1, got {count}")
    settings = {**drawing.identity, "seed": seed, "count": count, "prompts": digest(entries)}
    _refuse_others(folder, settings)
    conditions, null = conditions_of(drawing, [entry["prompt"] for entry in entries], weights)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SETTINGS, to_dict(settings))
    size = drawing.settings.batch_size
    parts = [range(start, min(start + size, count)) for start in range(0, count, size)]
    for index, condition in enumerate(tqdm(conditions, unit="prompt", desc="sampling")):
        for part in parts:
            missing = [number for number in part if not _picture(folder, index, number).exists()]
            if not missing:
                continue
            seeds = [image_seed(seed, number) for number in part]
            given = [condition] * len(part), null, seeds, drawing.settings, drawing.device
            pictures = dict(zip(part, to_uint8(generate(drawing.network, *given)[-1]), strict=True))
            for number in missing:
                file = _picture(folder, index, number)
                file.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(file) as opened:
                    Image.fromarray(pictures[number].permute(1, 2, 0).numpy()).save(opened, format="png")
        with whole_file(folder / f"{index:05d}" / "metadata.jsonl") as opened:
            opened.write(json.dumps(entries[index]).encode() + b"\n")
    with whole_file(folder / MANIFEST) as opened:
        opened.writelines(json.dumps(line).encode() + b"\n" for line in _lines(folder, entries, seed, count))
    return folder / MANIFEST


def _lines(folder: Path, entries: list[dict[str, Any]], seed: int, count: int) -> Iterator[dict[str, Any]]:
    for index, entry in enumerate(entries):
        for number in range(count):
            image = _picture(folder, index, number).relative_to(folder).as_posix()
            yield {**entry, "image": image, "index": index, "sample": number, "seed": image_seed(seed, number)}


def _picture(folder: Path, index: int, number: int) -> Path:
    return folder / f"{index:05d}" / "samples" / f"{number:04d}.png"


def _refuse_others(folder: Path, settings: dict[str, Any]) -> None:
    asked, file = to_dict(settings), folder / SETTINGS
    begun = {"format": 2, **load_json(file)} if file.exists() else asked  # the first one said nothing of its format
    differ = sorted(name for name in asked.keys() | begun.keys() if asked.get(name) != begun.get(name))
    if differ:
        raise ValueError(f"{folder} was begun with other {', '.join(differ)}: give another folder (-o), or remove it")
