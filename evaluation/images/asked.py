"""What a protocol asks a model to draw: its prompts."""

from pathlib import Path

from evaluation.images import preparation
from evaluation.images.captions import Prompt, held_out_prompts
from evaluation.images.gallery import Row, class_numbers, gallery_rows
from evaluation.protocols import Protocol
from mdm.config import Model
from mdm.data.order import hash64
from mdm.data.shards import Shards


def prompts_of(protocol: Protocol, model: Model, data: Path | None, count: int, guidance: float = 1.0) -> list[Prompt]:
    """``count`` of them: the first samples of a data set's folder, without those removed; or labels drawn at random.

    Or those of the figures that are drawn at this guidance; ``data`` has the words of their classes.
    """
    if protocol.prompts == "figures":
        return [prompt for row in rows_of(protocol, model, data, guidance) for prompt in row.prompts]
    if protocol.prompts == "random labels":
        assert model.labels is not None, "refuse was not asked"
        return random_labels(count, model.labels.num_classes, protocol.label_seed)
    assert data is not None, "held-out samples are of a data set"
    prompts = held_out_prompts(Shards(data / protocol.split), count, labelled=model.labels is not None)
    return [prompt for prompt in prompts if prompt.caption.isascii() or not protocol.ascii_captions]


def rows_of(protocol: Protocol, model: Model, data: Path | None, guidance: float) -> list[Row]:
    """The figures' pictures at a guidance, row by row."""
    classes = {} if data is None else class_numbers(data, model)
    return gallery_rows(model, guidance, classes, protocol.label_seed)


def random_labels(count: int, num_classes: int, seed: int) -> list[Prompt]:
    """App. F's "randomly sampled class labels": each uniform and for itself, known by seed and number (our choice).

    So the first are the same whatever ``count`` is, and classes come up as often as chance has it.
    """
    labels = [hash64(seed, "label", i) % num_classes for i in range(count)]
    return [Prompt(key=f"label-{i:05d}", caption=f"class {label}", label=label) for i, label in enumerate(labels)]


def refuse(protocol: Protocol, model: Model, run: str) -> None:
    """Raises ValueError where the model cannot be asked so."""
    if protocol.prompts == "random labels" and model.labels is None:
        raise ValueError(f"protocol {protocol.name} asks with labels, and {run} is conditioned on captions")
    if "clip_score" in protocol.metrics and model.text is None:
        raise ValueError(f"protocol {protocol.name} asks with captions, and {run} is conditioned on labels")
    px = preparation.ADM_PX
    if protocol.preparation == "adm centre crop 256" and px not in model.resolutions:
        there = ", ".join(map(str, model.resolutions))
        raise ValueError(f"protocol {protocol.name} measures images of {px} px, and {run} draws {there} px")
