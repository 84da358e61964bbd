"""What the images of a job are conditioned on: caption states or labels; and what guidance leads them away from."""

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from evaluation.images.captions import Line, unique
from mdm.config import Model
from mdm.data.embeddings import TextSource
from mdm.data.shards import Shards
from mdm.data.text import encode_all, known_conditions, online_encoder

Conditions = dict[str, Tensor | int]  # by the prompts' keys


def own_conditions(
    lines: Collection[Line], model: Model, text: TextSource | None, negative: str, device: torch.device
) -> tuple[Conditions, Tensor | int | None]:
    """Of prompts that are of no data set: their labels, or the states of their captions, encoded now."""
    if model.labels is not None:
        labels = {line.key: line.label for line in lines}
        return {key: label for key, label in labels.items() if label is not None}, model.labels.null_class
    encoder = online_encoder(text, device, None)
    if encoder is None:
        raise ValueError("prompts that are of no data set have no stored states: text.way must be online")
    states, null = encode_all(encoder, [line.caption for line in lines], negative)
    return dict(zip((line.key for line in lines), states, strict=True)), null


def conditions_of_samples(
    shards: Shards,
    lines: Collection[Line],
    model: Model,
    text: TextSource | None,
    negative: str,
    device: torch.device,
) -> tuple[Conditions, Tensor | int | None]:
    """Of a split's samples, by their keys; those that were removed have none."""
    present = shards.present()
    number = dict(zip(unique([shards.key(i) for i in present], str(shards.folder)), present, strict=True))
    keys = sorted({line.key for line in lines} & number.keys(), key=number.__getitem__)
    encoder = online_encoder(text, device, Path(shards.folder).parent, negative)
    states, null = known_conditions(shards, [number[key] for key in keys], model, encoder, negative)
    return dict(zip(keys, states, strict=True)), null
