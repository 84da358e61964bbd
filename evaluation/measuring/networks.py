"""The networks that protocols ask for, by their roles; and what is not there yet of what a protocol needs."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from evaluation.measuring.protocol_metrics import roles
from evaluation.networks.clip import Clip
from evaluation.networks.dinov2 import DinoV2
from evaluation.networks.features import Extractor
from evaluation.networks.inception import InceptionV3
from evaluation.networks.weights import (
    CLIP_B_16,
    CLIP_B_32,
    CLIP_L_14,
    CLIP_L_14_336,
    DINOV2_L_14,
    INCEPTION_V3,
    TABLE,
    WeightFile,
    Weights,
    find_weights,
)
from evaluation.protocols import Protocol
from mdm.data.shards import choose_tier
from mdm.data.tars import load_manifest

Make = Callable[[Weights, str | torch.device], Extractor]
NETWORKS: dict[str, tuple[WeightFile, Make]] = {
    "inception_v3_clean": (INCEPTION_V3, lambda weights, device: InceptionV3(weights, "clean", device)),
    "inception_v3_legacy": (INCEPTION_V3, lambda weights, device: InceptionV3(weights, "legacy", device)),
    "clip_vit_b_32": (CLIP_B_32, lambda weights, device: Clip(weights, "clip", device)),
    "clip_vit_b_16": (CLIP_B_16, lambda weights, device: Clip(weights, "clip", device)),
    "clip_vit_l_14": (CLIP_L_14, lambda weights, device: Clip(weights, "clip", device)),
    "clip_vit_l_14_336_cmmd": (CLIP_L_14_336, lambda weights, device: Clip(weights, "cmmd", device)),
    "dinov2_vit_l_14": (DINOV2_L_14, lambda weights, device: DinoV2(weights, device)),
}


def load_networks(protocol: Protocol, folder: Path, device: str | torch.device = "cpu") -> dict[str, Extractor]:
    """Those that the protocol's metrics have roles for: ``load_roles``."""
    return load_roles([role for part in roles(protocol) for role in part], folder, device)


def load_roles(asked: Sequence[str], folder: Path, device: str | torch.device = "cpu") -> dict[str, Extractor]:
    """Networks by their roles, from the folder of weights. Nothing is downloaded.

    Raises ValueError for a file that is missing or not the right one (``missing`` names all of them at once).
    """
    rows = dict.fromkeys(NETWORKS[role][0] for role in asked)
    files = {row.name: find_weights(row, folder, download=False) for row in rows}
    return {role: NETWORKS[role][1](files[NETWORKS[role][0].name], device) for role in asked}


def missing(protocol: Protocol, weights: Path, splits: Sequence[Path] = ()) -> list[str]:
    """A line for each thing that a measurement lacks, with the command that gets it; none: it can begin.

    ``weights``: the folder of weight files, whose content is checked. ``splits``: the reference's folders.
    """
    lines = []
    for row in (row for row in TABLE if row.name in protocol.networks):
        try:
            find_weights(row, weights, download=False)
        except ValueError as error:
            lines.append(str(error))
    name = protocol.data or "NAME"
    if protocol.data and not splits:
        lines.append(f"data set {name}: `mdm data {name}` makes it")
    for split in splits:
        try:
            manifest = load_manifest(split)
            if protocol.preparation == "adm centre crop 256":
                choose_tier(split, manifest, 0)
        except ValueError as error:
            lines.append(f"data set {name}: {error}: `mdm data {name}` makes it")
    return lines
