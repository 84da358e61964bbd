"""What a model costs to train: parameters and FLOP, counted without computing, and what GPUs can do of them.

FLOP are 2 per multiply-add. Backward costs twice the forward pass, so training is 3 x forward: the model FLOP, which
the utilisation (MFU) goes by. Activations that are computed again come on top, as hardware FLOP.
"""

import re
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mdm.config import Model
from mdm.network.blocks import ResBlock
from mdm.network.nested import NestedUNet
from mdm.stage import Compute, Precision, Training

TOKENS = 32  # of the caption that FLOP are stated for; the innermost level's attention and the text layers see them


@cache
def parameters(model: Model) -> int:
    """How many parameters a model has."""
    with torch.device("meta"):
        return sum(p.numel() for p in NestedUNet(model).parameters())


def total_flops(model: Model, tokens: int = TOKENS) -> int:
    """FLOP of one image's forward pass."""
    return _count(model, tokens)["NestedUNet"]


def forward_flops(model: Model, tokens: int = TOKENS) -> tuple[int, ...]:
    """The same per level, innermost first (with it the text layers); an adapter counts for its outer level.

    A sample that leaves out the top level (Sec. 4.1) costs all but the last.
    """
    nests = [replace(model, levels=model.levels[:r]) for r in range(1, len(model.levels) + 1)]
    totals = [total_flops(nest, tokens) for nest in nests]
    return tuple(outer - inner for outer, inner in zip(totals, [0, *totals], strict=False))


def block_flops(model: Model, tokens: int = TOKENS) -> tuple[int, ...]:
    """FLOP of one image's forward pass in the residual blocks of each level: what ``Compute.recompute`` repeats."""
    counts = _count(model, tokens)
    with torch.device("meta"):
        levels = NestedUNet(model).levels
    return tuple(
        sum(counts[f"NestedUNet.levels.{r}.{name}"] for name, m in level.named_modules() if isinstance(m, ResBlock))
        for r, level in enumerate(levels)
    )


def top_share(model: Model, training: Training) -> float:
    """The fraction of a batch that carries the top level (mixed-resolution batches, Sec. 4.1)."""
    if len(model.levels) == 1:
        return 1.0
    return sum(map(training.carries_top, range(training.batch_size))) / training.batch_size


def model_flops_per_image(model: Model, training: Training, tokens: int = TOKENS) -> float:
    """Model FLOP of one training image, the mean over a batch: 3 x forward."""
    return 3 * _mean(forward_flops(model, tokens), model, training)


def hardware_flops_per_image(model: Model, training: Training, compute: Compute, tokens: int = TOKENS) -> float:
    """The same with what is computed twice to save memory."""
    again = [
        flops if px in compute.recompute else 0
        for px, flops in zip(model.resolutions, block_flops(model, tokens), strict=True)
    ]
    return model_flops_per_image(model, training, tokens) + _mean(again, model, training)


def _mean(per_level: list[int] | tuple[int, ...], model: Model, training: Training) -> float:
    *lower, top = per_level
    return sum(lower) + top * top_share(model, training)


def empty_condition(model: Model, count: int, tokens: int = TOKENS) -> dict[str, Tensor]:
    """What the network takes besides images and time, without content, on the device that is set."""
    if model.text:
        return {"text": torch.empty(count, tokens, model.text.dim), "text_mask": torch.ones(count, tokens)}
    return {"labels": torch.zeros(count, dtype=torch.long)} if model.labels else {}


@cache  # models share their inner levels
def _count(model: Model, tokens: int) -> dict[str, int]:
    """FLOP of one image's forward pass by the module's name, the whole as ``NestedUNet``."""
    with torch.device("meta"):
        network = NestedUNet(model)
        zs, t = [torch.empty(1, 3, px, px) for px in model.resolutions], torch.empty(1)
        condition = empty_condition(model, 1, tokens)
    with FlopCounterMode(display=False) as counter:
        network(zs, t, **condition)
    return {name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()}


# -- what GPUs can do ------------------------------------------------------------------------------------------------
# Dense peaks in FLOP/s from the vendor's datasheets and architecture papers; where those print figures "with sparsity",
# half of them. Words of the device's name; the first row whose words all occur in it is taken.

_HALF, _BF16 = ("float16",), ("float16", "bfloat16")


def _peaks(half: tuple[str, ...], matrix: float, tf32: float | None, plain: float) -> dict[str, float]:
    """Units of 1e12: half precision with float32 accumulation, TF32 where there is one, float32."""
    found = {name: matrix * 1e12 for name in half} | {"float32": plain * 1e12}
    return found if tf32 is None else found | {"tf32": tf32 * 1e12}


_GPUS: tuple[tuple[tuple[str, ...], dict[str, float]], ...] = (
    (("V100", "PCIE"), _peaks(_HALF, 112, None, 14.0)),  # NVIDIA V100 datasheet (2020)
    (("V100",), _peaks(_HALF, 125, None, 15.7)),  # the same, SXM2
    (("T4",), _peaks(_HALF, 65, None, 8.1)),  # NVIDIA T4 datasheet
    (("A10",), _peaks(_BF16, 125, 62.5, 31.2)),  # NVIDIA A10 datasheet
    (("A40",), _peaks(_BF16, 149.7, 74.8, 37.4)),  # NVIDIA A40 datasheet
    (("A100",), _peaks(_BF16, 312, 156, 19.5)),  # NVIDIA A100 datasheet, 40 and 80 GB, PCIe and SXM alike
    (("L4",), _peaks(_BF16, 121, 60, 30.3)),  # NVIDIA L4 datasheet (with sparsity: 242)
    (("L40S",), _peaks(_BF16, 362, 183, 91.6)),  # NVIDIA L40S datasheet
    (("3090",), _peaks(_BF16, 71, 35.6, 35.6)),  # NVIDIA GA102 whitepaper, float32 accumulation
    (("4090",), _peaks(_BF16, 165.2, 82.6, 82.6)),  # NVIDIA Ada whitepaper, float32 accumulation
    (("H100", "PCIE"), _peaks(_BF16, 756, 378, 51)),  # NVIDIA H100 datasheet (with sparsity: 1,513)
    (("H100", "NVL"), _peaks(_BF16, 835, 417, 60)),  # NVIDIA H100 datasheet (with sparsity: 1,671)
    (("H100",), _peaks(_BF16, 989, 494, 67)),  # NVIDIA H100 datasheet, SXM (with sparsity: 1,979)
    (("H200", "NVL"), _peaks(_BF16, 835, 417, 60)),  # NVIDIA H200 datasheet (with sparsity: 1,671)
    (("H200",), _peaks(_BF16, 989, 494, 67)),  # NVIDIA H200 datasheet, SXM (with sparsity: 1,979)
    (("B200",), _peaks(_BF16, 2250, 1125, 75)),  # NVIDIA HGX B200 datasheet, one of eight (with sparsity: 4,500)
)
GPUS = tuple(dict.fromkeys(words[0] for words, _ in _GPUS))


def peak_flops(device_name: str, precision: Precision) -> float | None:
    """Dense peak in FLOP/s of a GPU, by the name that CUDA gives it; None for one that is not listed, for a part of one
    (MIG), and for a precision that it lacks. ``auto``: bfloat16 where it has it, else float32."""
    words = set(re.findall(r"[A-Z0-9]+", device_name.upper()))
    if words & {"MIG", "LAPTOP"}:
        return None
    peaks = next((peaks for row, peaks in _GPUS if words.issuperset(row)), {})
    return peaks.get(precision_on(device_name) if precision == "auto" else precision)


def precision_on(device_name: str) -> Precision:
    """What ``auto`` stands for on a GPU of that name."""
    return "float32" if peak_flops(device_name, "bfloat16") is None else "bfloat16"
