"""What a protocol asks a model to draw: its prompts."""

from pathlib import Path

from evaluation.captions import Prompt, held_out_prompts
from evaluation.protocols import Protocol
from mdm.config import Model
from mdm.data.order import hash64
from mdm.data.shards import Shards


def prompts_of(protocol: Protocol, model: Model, data: Path, count: int) -> list[Prompt]:
    """``count`` of them: the first samples of a data set's folder, without those removed; or labels drawn at random."""
    if protocol.prompts == "random labels":
        assert model.labels is not None, "refuse was not asked"
        return random_labels(count, model.labels.num_classes, protocol.label_seed)
    prompts = held_out_prompts(Shards(data / protocol.split), count, labelled=model.labels is not None)
    return [prompt for prompt in prompts if prompt.caption.isascii() or not protocol.ascii_captions]


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
