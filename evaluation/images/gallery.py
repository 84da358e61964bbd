"""The paper's figures (mdm/gallery.py) as prompts for a model of ours, and their pictures on one sheet."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from evaluation.images.captions import Prompt, read_lines
from evaluation.images.image_folder import ImageFolder
from mdm.config import Model
from mdm.data.order import hash64
from mdm.data.shards import Shards
from mdm.files import whole_file
from mdm.gallery import GALLERY, GUIDANCE, PICTURES, RANDOM_LABELS, Picture

LOOKED_AT = 50_000  # samples of a split, in which every class of ImageNet comes up
CELL_PX, TITLE_PX, GAP_PX = 256, 22, 4  # of the sheet


@dataclass(frozen=True)
class Row:
    """Pictures that are shown side by side."""

    title: str
    prompts: list[Prompt]


def asked_of(model: Model) -> list[Picture]:
    """What a model can be asked for: captions, or classes. A model of clips this project does not have."""
    return [picture for picture in GALLERY if picture.data == ("CC12M" if model.labels is None else "ImageNet")]


def guidance_of(picture: Picture) -> float:
    return GUIDANCE[picture.data] if picture.guidance is None else picture.guidance


def guidances(model: Model) -> list[float]:
    """At which a model's pictures are drawn."""
    return sorted({guidance_of(picture) for picture in asked_of(model)})


def gallery_rows(model: Model, guidance: float, classes: dict[str, int], seed: int) -> list[Row]:
    """The rows of a model at one guidance. ``classes``: words -> number; a class that is not among them has no row."""
    rows = []
    for number, picture in enumerate(GALLERY):
        if picture not in asked_of(model) or guidance_of(picture) != guidance:
            continue
        name, title = f"gallery-{number:02d}", f"{picture.figure}, {picture.px[-1]} px there: {picture.prompt}"
        if model.labels is None:
            prompts = [Prompt(key=f"{name}-{i}", caption=picture.prompt) for i in range(PICTURES)]
        elif not picture.prompt:
            drawn = [hash64(seed, picture.figure, i) % model.labels.num_classes for i in range(RANDOM_LABELS)]
            prompts = [Prompt(key=f"{name}-{i:02d}", caption=f"class {n}", label=n) for i, n in enumerate(drawn)]
        elif picture.prompt in classes:
            label = classes[picture.prompt]
            prompts = [Prompt(key=f"{name}-{i}", caption=picture.prompt, label=label) for i in range(PICTURES)]
        else:
            continue
        for part in (prompts[start : start + PICTURES] for start in range(0, len(prompts), PICTURES)):
            labels = "" if picture.prompt else ", ".join(prompt.caption for prompt in part)
            rows.append(Row(title + labels, part))
    return rows


@lru_cache(maxsize=8)
def class_numbers(data: Path, model: Model) -> dict[str, int]:
    """Which number the classes have that the figures name: as the captions and labels of a data set say.

    Looked up once in a process.
    """
    wanted = {picture.prompt for picture in asked_of(model)} - {""} if model.labels is not None else set()
    found: dict[str, int] = {}
    for shards in (Shards(data / split) for split in ("val", "train")):
        for i in shards.present()[:LOOKED_AT]:
            if wanted <= found.keys():
                return found
            if (caption := shards.caption(i)) in wanted:
                found[caption] = shards.label(i)
    return found


def left_out(model: Model, classes: dict[str, int]) -> Iterator[str]:
    """A line for each kind of picture that a model is not asked for, and why."""
    lacking = [picture.prompt for picture in asked_of(model) if picture.prompt and picture.prompt not in classes]
    if model.labels is not None and lacking:
        yield f"left out, as its data set has no class of these words: {'; '.join(lacking)}"
    for data in ("ImageNet", "CC12M", "WebVid-10M"):
        figures = dict.fromkeys(picture.figure for picture in GALLERY if picture.data == data)
        if data != asked_of(model)[0].data:
            needs = {"ImageNet": "a run of ImageNet", "CC12M": "a run of captions"}.get(data, "a model of clips")
            yield f"left out: {data}'s {', '.join(figures)} ({needs} has them)"
    yield "Figs. 6 and 7: the paper's text does not give their prompts"


def write_sheet(images: Path, rows: list[Row], file: Path) -> None:
    """The pictures of a folder that generate.py drew, a title above each row, at most 256 px wide each."""
    numbers, drawn = {line.key: line.index for line in read_lines(images)}, ImageFolder(images)
    cells = CELL_PX + GAP_PX
    sheet = Image.new("RGB", (PICTURES * cells, len(rows) * (cells + TITLE_PX)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for place, row in enumerate(rows):
        top = place * (cells + TITLE_PX)
        draw.text((GAP_PX, top + 2), row.title, "black", font)
        for column, prompt in enumerate(row.prompts):
            (pixels,) = drawn.load([numbers[prompt.key]], drawn.resolutions[-1])
            picture = Image.fromarray(pixels.transpose(1, 2, 0))
            shown = picture.resize((CELL_PX, CELL_PX), _sampling(picture.width))
            sheet.paste(shown, (column * cells, top + TITLE_PX))
    with whole_file(file) as opened:
        sheet.save(opened, format="png")


def _sampling(px: int) -> Image.Resampling:
    """Small pictures show their pixels."""
    return Image.Resampling.NEAREST if px < CELL_PX else Image.Resampling.BOX
