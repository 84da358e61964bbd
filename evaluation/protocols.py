"""Ways to measure a checkpoint, as data: which prompts, which reference, prepared how, by which networks and metrics.

Two results of different protocols are never one column. A protocol's digest stands beside each of its results.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from mdm.experiments import Protocol as ProtocolName

Preparation = Literal["as drawn", "adm centre crop 256"]  # of real images; ADM: BOX halvings, bicubic, centre crop
Reference = Literal["all of the split", "all of train", "the prompts' own", "none"]
Prompts = Literal["held out", "random labels", "figures"]  # the split's first ones (COCO's order is drawn by seed), …


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way; ``version`` goes up when a rule changes."""

    name: ProtocolName
    version: int = 1
    summary: str
    data: str = ""  # a data set of the catalogue; "": the run's own
    split: Literal["train", "val"] = "val"  # whose captions or labels are asked for
    prompts: Prompts = "held out"
    label_seed: int = 0  # by which random labels are drawn: the same for every run
    num_samples: int = 0  # prompts; 0: as the run's preset has
    reference: Reference
    preparation: Preparation = "as drawn"
    networks: tuple[str, ...]  # rows of evaluation/networks/weights.py, or what comes with the packages
    metrics: tuple[str, ...]
    sampling: Mapping[str, Any] = field(default_factory=dict)  # fields of mdm/config.py:Sampling instead of the run's
    negative_prompt: str = ""  # the caption that guidance leads away from; "": the null caption
    ascii_captions: bool = False  # samples whose captions hold other letters are left out
    caption_letters: int = 0  # that the CLIP score reads; 0: all that its own tokens reach

    @property
    def reference_splits(self) -> tuple[str, ...]:
        """Whose pictures it measures against."""
        splits = {"all of train": ("train",), "none": ()}
        return splits.get(self.reference, (self.split,))


_DISTANCES = ("fid_clean", "fid_legacy", "kid", "prdc", "inception_score", "cmmd", "fd_dinov2", "relative")
_NETWORKS = ("inception_v3", "clip_vit_l_14_336", "dinov2_vit_l_14")  # of the distances
_CLIPS = ("clip_vit_b_32", "clip_vit_b_16", "clip_vit_l_14")  # of the CLIP scores

_UNGUIDED = {"guidance": (1.0,)}
# Our choice: the second-order solver at its own spacing (samplers.py), which keeps images' variance at few steps. Cheap
# enough for every kept checkpoint; its numbers stand beside others of this protocol alone.
_FEW_STEPS = {"sampler": "dpmpp", "steps": 25, "spacing": None, **_UNGUIDED}
# What generate_batch and run_torchmetrics of apple/ml-mdm do unless they are told otherwise: DDIM with eta 1, which is
# DDPM, at all 1,000 steps; no guidance (--sweep guidance=1.35 guides, and then away from "low quality"); predicted
# images clipped. What they were told for Table 1 is not published: not the captions, nor how many, nor the steps.
_RELEASED_SCRIPT = {"sampler": "ddim", "eta": 1.0, "steps": 1000, "spacing": None, "threshold": "clip", **_UNGUIDED}

PROTOCOLS: dict[ProtocolName, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="embedded",
            version=2,
            summary="the run's own held-out captions and packaged features: stand-ins, under their names",
            reference="all of train",  # or as much of it as the run's preset has (evaluation.num_real)
            networks=("efficientnet_lite0",),
            metrics=("fd1280_efficientnet_lite0", "kid_efficientnet_lite0", "text_image_cosine"),
        ),
        Protocol(
            name="watch",
            version=3,
            summary="the run's held-out captions, unguided, in 25 steps of DPM-Solver++: what a training is watched by",
            num_samples=1_000,
            reference="all of train",
            networks=("efficientnet_lite0",),
            metrics=("fd1280_efficientnet_lite0", "kid_efficientnet_lite0"),
            sampling=_FEW_STEPS,
        ),
        Protocol(
            name="coco2014-val-30k",
            version=2,
            summary="30,000 captions of COCO 2014's validation pictures against all 40,504 of them, zero-shot",
            data="coco2014-val",
            num_samples=30_000,
            reference="all of the split",
            preparation="adm centre crop 256",
            networks=(*_NETWORKS, *_CLIPS),
            metrics=(*_DISTANCES, "clip_score"),
        ),
        Protocol(
            name="mdm-released",
            version=2,
            summary="as the authors' script has it: 1,000 steps, against the same captions' pictures",
            data="coco2014-val",
            num_samples=30_000,
            reference="the prompts' own",
            networks=("inception_v3", "clip_vit_b_16"),
            metrics=("fid_legacy", "clip_score"),
            sampling=_RELEASED_SCRIPT,
            negative_prompt="low quality",
            ascii_captions=True,
            caption_letters=77,
        ),
        Protocol(
            name="imagenet-50k",
            version=2,
            summary="50,000 samples of random labels against all training images (App. F)",
            data="imagenet",
            prompts="random labels",
            num_samples=50_000,
            reference="all of train",
            preparation="adm centre crop 256",
            networks=_NETWORKS,
            metrics=_DISTANCES,
        ),
        Protocol(
            name="cc12m-heldout",
            version=3,
            summary="every held-out pair that is alive, without guidance (Figs. 4b, 4c, 8b)",
            data="cc12m",
            num_samples=30_000,  # more than there are: 1/1000 of 12.4 M
            reference="all of the split",
            networks=(*_NETWORKS, *_CLIPS),
            metrics=(*_DISTANCES, "clip_score"),
            sampling=_UNGUIDED,
        ),
        Protocol(
            name="gallery",
            summary="the prompts of the paper's figures, each at its guidance: pictures, no numbers",
            prompts="figures",
            reference="none",
            networks=(),
            metrics=(),
        ),
    )
}
assert set(PROTOCOLS) == set(get_args(ProtocolName))
STAND_INS = ("embedded", "watch")  # by packaged features (measure.py); others are standard.py's
