"""Which image is of which prompt: ``captions.jsonl`` of an image folder, the only thing that pairs them.

An image is known by its number, which is in its file's name and its seed; a prompt by the key of its sample. Neither's
place in a list means anything.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.images.image_folder import ImageFolder
from mdm.data.order import hash64
from mdm.data.shards import Shards
from mdm.files import whole_file
from mdm.structure import from_dict, to_dict


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a held-out sample asks for."""

    key: str
    caption: str
    label: int | None = None  # where the model takes labels


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of captions.jsonl: one image and its prompt."""

    index: int
    key: str
    caption: str
    seed: int
    label: int | None = None  # the first format had none

    def is_of(self, prompt: Prompt) -> bool:
        same = (self.key, self.caption) == (prompt.key, prompt.caption)
        return same and (self.label is None or self.label == prompt.label)


def held_out_prompts(shards: Shards, count: int, labelled: bool) -> list[Prompt]:
    """Of the first ``count`` samples of a split as it was made; those that were removed since have none.

    So a removal asks for no other image. Raises ValueError where there are fewer, or a key stands twice.
    """
    if count > len(shards):
        raise ValueError(f"{shards.folder} has {len(shards)} captions, {count} are asked for")
    there = [i for i in range(count) if i not in shards.removed]
    prompts = [
        Prompt(key=shards.key(i), caption=shards.caption(i), label=shards.label(i) if labelled else None) for i in there
    ]
    unique([prompt.key for prompt in prompts], str(shards.folder))
    return prompts


def unique(keys: Sequence[str], where: str) -> dict[str, int]:
    """Each key's place. Raises ValueError naming a key that stands twice."""
    places = {key: place for place, key in enumerate(keys)}
    if len(places) < len(keys):
        twice = next(key for place, key in enumerate(keys) if places[key] != place)
        raise ValueError(f"{where}: two samples have the key {twice!r}: keys must differ, make the shards again")
    return places


def image_seed(seed: int, index: int) -> int:
    """The noise seed of image ``index``: the same for every set, so that sets differ by their weights alone."""
    return hash64(seed, "image", index)


def read_lines(folder: Path) -> list[Line]:
    """captions.jsonl of a folder; none where there is no such file. Raises ValueError naming the line that is wrong."""
    path = folder / "captions.jsonl"
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            lines.append(from_dict(Line, json.loads(text)))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}. Delete the file: its images are drawn anew") from error
    return lines


def lines_by_key(folder: Path) -> list[Line]:
    """In an order that depends on each key alone: the first ones of two folders with prompts in common are the same."""
    return sorted(read_lines(folder), key=lambda line: hashlib.sha256(line.key.encode()).hexdigest())


def write_lines(folder: Path, lines: list[Line]) -> None:
    text = "".join(json.dumps({k: v for k, v in to_dict(line).items() if v is not None}) + "\n" for line in lines)
    with whole_file(folder / "captions.jsonl") as file:
        file.write(text.encode())


def lines_of(folder: Path, prompts: Sequence[Prompt]) -> list[Line]:
    """The lines of a folder that are of these prompts, in the order of their numbers."""
    wanted = {prompt.key: prompt for prompt in prompts}
    return sorted(
        (line for line in read_lines(folder) if line.key in wanted and line.is_of(wanted[line.key])),
        key=lambda line: line.index,
    )


def is_whole(folder: Path, prompts: list[Prompt], resolutions: Sequence[int]) -> bool:
    """Whether every prompt has its image, at every resolution."""
    lines, images = lines_of(folder, prompts), ImageFolder(folder)
    return len(lines) == len(prompts) and all(images.has(line.index, resolutions) for line in lines)


def assign(folder: Path, prompts: list[Prompt], seed: int) -> None:
    """Give every prompt a number, in ``captions.jsonl``, before anything is drawn.

    Images that are there keep theirs; those that no prompt asks for are deleted, and the free numbers go, the lowest
    first, to the prompts that have none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = lines_of(folder, prompts)
    taken, known = {line.index for line in kept}, {line.key for line in kept}
    free = (index for index in range(len(taken) + len(prompts)) if index not in taken)
    new = [
        Line(index=index, seed=image_seed(seed, index), **to_dict(prompt))
        for prompt, index in zip((prompt for prompt in prompts if prompt.key not in known), free, strict=False)
    ]
    ImageFolder(folder).forget({line.index for line in [*read_lines(folder), *new] if line.index not in taken})
    write_lines(folder, sorted([*kept, *new], key=lambda line: line.index))
