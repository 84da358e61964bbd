"""What a number is of, in three parts that stand beside it in results.json:

- ``measured``: the protocol, the prompts, the reference, N, the networks, the resize. It must be equal for two numbers
  to stand in one column: its digest is the ``protocol_digest``.
- ``drawn``: how the images were drawn: sampler, steps, spacing, guidance, seed. A sweep's points differ in some of it
  on purpose: whatever they stand in says in what, in the words of ``Way``. ``digest`` is of both parts.
- ``recorded``: versions of libraries, and both splits' digests and revisions, of which one may decide nothing.

The checkpoint is in none: it is what is compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

from evaluation.images.captions import Line, Prompt
from evaluation.networks.features import EfficientNetLite0
from evaluation.protocols import Protocol
from evaluation.results import METRICS_FORMAT
from mdm.config import SAMPLING_FORMAT, Sampling, brief_guidance
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
    noise_format: int = SAMPLING_FORMAT


class Way(NamedTuple):
    """How images were drawn, in a few words: what stands on pages, in tables and in MLflow's names."""

    guidance: str  # per level, innermost first
    steps: int
    sampler: str  # its name and spacing, and whatever else is not as it usually is

    @property
    def but_for_guidance(self) -> str:
        return f"{self.steps} steps, {self.sampler}"

    @property
    def words(self) -> str:
        """Ways of equal words differ in nothing that decides an image."""
        return f"guidance {self.guidance}, {self.but_for_guidance}"


def way_of(drawn: Mapping[str, Any]) -> Way:
    """``drawn``: as ``drawn_by`` makes it; what it lacks is as usual."""
    usual = drawn_by(Sampling(), 0)
    given = usual | dict(drawn)
    others = {name: value for name, value in given.items() if name not in _NAMED and value != usual[name]}
    sampler = " ".join(filter(None, (given["sampler"], given["spacing"])))
    told = [f"{_WORDS.get(name, name).replace('_', ' ')} {_shown(value)}" for name, value in others.items()]
    return Way(_shown([*brief_guidance(given["guidance"])]), given["steps"], ", ".join([sampler, *told]))


_NAMED = ("sampler", "spacing", "steps", "guidance")  # always
_WORDS = {"format": "noise_format"}


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(map(_shown, value))
    return str(value).removesuffix(".0")


def drawn_by(sampling: Sampling, seed: int, noise_format: int = SAMPLING_FORMAT) -> dict[str, Any]:
    """All that decides an image beside its prompt, its number and the weights."""
    drawn = to_dict(sampling) | {"seed": seed, "format": noise_format}
    del drawn["batch_size"]  # an image does not depend on how many are drawn beside it
    return drawn


def identity(measured: dict[str, Any], origin: Origin) -> dict[str, Any]:
    """All parts and their digests. ``measured``: as ``measured_by`` or ``measured_by_stand_ins`` makes it."""
    drawn = drawn_by(origin.sampling, origin.seed, origin.noise_format)
    versions = {name: version(name) for name in LIBRARIES}
    return {
        "measured": measured,
        "protocol_digest": digest(measured)[:12],
        "drawn": drawn,
        "digest": digest([measured, drawn]),
        "recorded": {"versions": versions, "data": to_dict(dict(origin.data))},
    }


def measured_by(protocol: Protocol, asked: Sequence[Line | Prompt], reference: Any, **more: Any) -> dict[str, Any]:
    """``asked``: the prompts; ``reference``: what is known of real images; ``more``: of networks and pictures."""
    return {
        "protocol": {name: value for name, value in to_dict(protocol).items() if name != "summary"},
        "prompts": digest(sorted([one.key, one.caption, one.label] for one in asked)),
        "n": len(asked),
        "reference": reference,
        "metrics_format": METRICS_FORMAT,
        **more,
    }


def measured_by_stand_ins(
    protocol: Protocol,
    asked: Sequence[Line | Prompt],
    settings: Evaluation,
    origin: Origin,
    px: int,
    encoder: str | None,
) -> dict[str, Any]:
    """By the network that comes with the packages, against training images; or, of the gallery, by none.

    ``encoder``: digest of the captions' encoder, whose states the learned heads read.
    """
    reference = {"data": to_dict(dict(origin.data)), "num_real": settings.num_real}
    name, file = EfficientNetLite0.name, EfficientNetLite0.weights_digest()
    networks = {name: [name, file]} if name in protocol.networks else {}
    resize = {name: f"bicubic {settings.feature_px}"} if networks else {}
    return measured_by(protocol, asked, reference, px=px, networks=networks, resize=resize, encoder=encoder)
