"""What a number is of, in three parts that stand beside it in results.json:

- ``measured``: the protocol, the prompts, the reference, N, the networks, the resize, the seed. It must be equal for
  two numbers to stand in one column: its digest is the ``protocol_digest``.
- ``drawn``: how the images were drawn: sampler, steps, spacing, guidance, seed. A sweep's points differ in some of it
  on purpose and are compared along that; whatever else differs is refused (``compare``). ``digest`` is of both parts.
- ``recorded``: versions of libraries, and both splits' digests and revisions, of which one may decide nothing.

The checkpoint is in none: it is what is compared.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from evaluation.images.captions import Line, Prompt
from evaluation.networks.features import EfficientNetLite0
from evaluation.protocols import Protocol
from evaluation.results import METRICS_FORMAT
from mdm.config import SAMPLING_FORMAT, Sampling
from mdm.presets import Evaluation
from mdm.structure import digest, to_dict

LIBRARIES = ("torch", "numpy", "scipy", "pillow", "open_clip_torch", "timm")
PARTS = ("measured", "protocol_digest", "drawn", "digest", "recorded")


@dataclass(frozen=True)
class Origin:
    """How images were drawn: ``seed`` decides the noise of each with its number. ``data``: revisions of both splits."""

    sampling: Sampling
    seed: int
    data: Mapping[str, Mapping[str, Any]]


def identity(measured: dict[str, Any], origin: Origin) -> dict[str, Any]:
    """All parts and their digests. ``measured``: as ``measured_by`` or ``measured_by_stand_ins`` makes it."""
    drawn = to_dict(origin.sampling) | {"seed": origin.seed, "format": SAMPLING_FORMAT}
    del drawn["batch_size"]  # an image does not depend on how many are drawn beside it
    versions = {name: version(name) for name in LIBRARIES}
    return {
        "measured": measured,
        "protocol_digest": digest(measured)[:12],
        "drawn": drawn,
        "digest": digest([measured, drawn]),
        "recorded": {"versions": versions, "data": to_dict(dict(origin.data))},
    }


def measured_by(
    protocol: Protocol, asked: Sequence[Line | Prompt], reference: Any, seed: int, **more: Any
) -> dict[str, Any]:
    """``asked``: the prompts; ``reference``: what is known of real images; ``more``: of networks and pictures."""
    return {
        "protocol": {name: value for name, value in to_dict(protocol).items() if name != "summary"},
        "prompts": digest(sorted([one.key, one.caption, one.label] for one in asked)),
        "n": len(asked),
        "reference": reference,
        "seed": seed,
        "metrics_format": METRICS_FORMAT,
        **more,
    }


def measured_by_stand_ins(
    protocol: Protocol, asked: Sequence[Prompt], settings: Evaluation, origin: Origin
) -> dict[str, Any]:
    """By the network that comes with the packages, against training images; or, of the gallery, by none."""
    reference = {"data": to_dict(dict(origin.data)), "num_real": settings.num_real}
    name, file = EfficientNetLite0.name, EfficientNetLite0.weights_digest()
    networks = {name: [name, file]} if name in protocol.networks else {}
    resize = {name: f"bicubic {settings.feature_px}"} if networks else {}
    return measured_by(protocol, asked, reference, origin.seed, networks=networks, resize=resize)


def compare(a: Mapping[str, Any], b: Mapping[str, Any], along: Collection[str] = ()) -> dict[str, tuple[float, float]]:
    """The samples' values of two results by metric. ``along``: fields of ``drawn`` that may differ, as ``guidance`` in
    a sweep. Raises ValueError naming what else differs: such numbers do not compare."""
    of_a, of_b = (
        {**r["measured"], "drawn": {name: value for name, value in r["drawn"].items() if name not in along}}
        for r in (a, b)
    )
    if differ := "; ".join(_differ(of_a, of_b)):
        raise ValueError(f"not measured in the same way: {differ}. Such numbers do not compare")
    kind = "metrics" if "metrics" in a else "random_metrics"
    rows = {row["name"]: row for row in b[kind]}
    return {row["name"]: (row["values"]["samples"], rows[row["name"]]["values"]["samples"]) for row in a[kind]}


def _differ(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(a.keys() | b.keys()):
        of_a, of_b = a.get(key), b.get(key)
        if isinstance(of_a, dict) and isinstance(of_b, dict):
            yield from (f"{key}.{line}" for line in _differ(of_a, of_b))
        elif of_a != of_b:
            yield f"{key} {_brief(of_a)} and {_brief(of_b)}"


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:28]}…{text[-28:]}"
