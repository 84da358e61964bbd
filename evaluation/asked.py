"""What a protocol asks a model to draw: its prompts."""

from pathlib import Path

from evaluation.captions import Prompt, held_out_prompts
from evaluation.protocols import Protocol
from mdm.config import Model
from mdm.data.shards import Shards


def prompts_of(protocol: Protocol, model: Model, data: Path, count: int) -> list[Prompt]:
    """The first ``count`` of the samples that the protocol asks for in a data set's folder, without those removed."""
    prompts = held_out_prompts(Shards(data / protocol.split), count, labelled=model.labels is not None)
    return [prompt for prompt in prompts if prompt.caption.isascii() or not protocol.ascii_captions]


def refuse(protocol: Protocol, model: Model, run: str) -> None:
    """Raises ValueError where the model cannot be asked so."""
    if "clip_score" in protocol.metrics and model.text is None:
        raise ValueError(f"protocol {protocol.name} asks with captions, and {run} is conditioned on labels")
