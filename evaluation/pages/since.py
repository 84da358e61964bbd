"""Pixel-space systems since the paper, with where each figure was seen (November 2026); apart from Table 1."""

from dataclasses import dataclass
from typing import Literal

Figure = Literal["imagenet_256", "imagenet_512", "calls"]


@dataclass(frozen=True, kw_only=True)
class Later:
    """FID-50K of class-conditional ImageNet, guided unless said, as the source has it; "": no figure was seen."""

    system: str
    arxiv: str
    parameters: str = ""
    imagenet_256: str = ""
    imagenet_512: str = ""
    calls: str = ""  # of the network or steps per image, as the source counts
    source: str
    second_hand: tuple[Figure, ...] = ()  # what only another text's account of it was seen of
    note: str = ""


SINCE = (
    Later(
        system="SiD2",
        arxiv="2410.19324",
        imagenet_256="1.38",
        imagenet_512="1.5",
        source="its abstract; wizwand's list",
        second_hand=("imagenet_256",),
    ),
    Later(
        system="PixelFlow",
        arxiv="2504.07963",
        parameters="677M",
        imagenet_256="1.98",
        source="README of ShoufaChen/PixelFlow",
    ),
    Later(
        system="PixNerd-XL/16",
        arxiv="2507.23268",
        parameters="700M",
        imagenet_256="1.93",
        imagenet_512="2.42",
        source="README of MCG-NJU/PixNerd",
        note="its paper: 2.15 and 2.84; at 512² fine-tuned",
    ),
    Later(
        system="EPG",
        arxiv="",
        imagenet_256="2.04",
        imagenet_512="2.35",
        calls="75",
        source="getnews.me",
        second_hand=("imagenet_256", "imagenet_512", "calls"),
    ),
    Later(
        system="JiT-G",
        arxiv="2511.13720",
        imagenet_256="1.82",
        imagenet_512="1.78",
        calls="99",
        source="reportify.ai; calls by its code's default, Heun with 50 steps",
        second_hand=("imagenet_256", "imagenet_512"),
    ),
    Later(
        system="DeCo-XL/16",
        arxiv="2511.19365",
        parameters="682M",
        imagenet_256="1.62",
        imagenet_512="2.22",
        source="README of Zehong-Ma/DeCo",
    ),
    Later(
        system="PixelDiT-XL",
        arxiv="2511.20645",
        parameters="797M",
        imagenet_256="1.61",
        imagenet_512="1.81",
        calls="100",
        source="page of NVlabs/PixelDiT",
    ),
    Later(
        system="pMF", arxiv="2601.22158", imagenet_256="2.22", imagenet_512="2.48", calls="1", source="its arXiv page"
    ),
    Later(
        system="PixelGen-XL",
        arxiv="2602.02493",
        parameters="676M",
        imagenet_256="1.83",
        source="its README",
        note="160 epochs; without guidance 5.11 after 80",
    ),
    Later(
        system="JiT-B with FD-SIM",
        arxiv="2604.28190",
        imagenet_256="0.944",
        calls="1",
        source="card of shy0423/JiT-B-FD-SIM-bs1024",
        note="trained on such a distance itself: over six spaces of features it has 5.06 times the real data's own",
    ),
    Later(
        system="PixelDiT2",
        arxiv="2609.24919",
        imagenet_256="1.46",
        imagenet_512="1.48",
        source="huggingface.co/papers/2609.24919",
        note="600 and 680 epochs",
    ),
)
