"""One stage of the progressive schedule (App. B): where it starts, how it trains, how that is computed, what it keeps.

Images, not steps, are counted. What determines the weights stands in ``Start`` and ``Training``; ``Compute`` and
``Cadence`` change speed, memory and the record, and the weights by rounding at most.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from mdm.config import LossSpace, Model, check

Parallel = Literal["ddp", "fsdp"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


# Raise it by hand where the code computes other weights from the same settings and data: finished stages are trained
# anew. Nothing else about the code is compared.
TRAINING_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Training:
    """The optimisation. Defaults are the paper's (App. B) where it speaks."""

    nimg: int  # images to see
    batch_size: int  # global
    lr: float = 1e-4
    warmup_nimg: int = 0  # linear; App. B: 30,000 steps
    lr_decay: float = 0.0  # fraction of the stage, at its end, over which lr falls to 0 (our choice; paper: constant)
    beta1: float = 0.9
    beta2: float = 0.99
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip: float = 2.0
    ema_decay: float = 0.9999  # per step
    ema_halflife_nimg: int = 0  # > 0: instead of ema_decay, the images after which a weight counts half
    ema_rampup: float = 0.0  # > 0: half-life at most this fraction of the images seen, for short runs
    loss: LossSpace = "noise"  # the paper leaves omega_t open; the released code takes the error in the noise
    low_only: float = 0.0  # fraction of a batch that skips the top level (Sec. 4.1 mixed-resolution; its value is open)
    level_weights: tuple[float, ...] = ()  # of the losses, innermost first; none: 1 each, which is Eq. 3's default
    caption_dropout: float = 0.0  # stated nowhere in the paper
    label_dropout: float = 0.0  # App. F: none
    flip: bool = False  # random horizontal flips
    window_shards: int = 0  # 0: every order of all samples; else shuffled within so many shards (networked storage)
    max_skips: int = 20  # non-finite steps in a row before the run returns to its last checkpoint
    max_returns: int = 3  # such returns before it gives up

    def __post_init__(self) -> None:
        for name in ("nimg", "batch_size", "max_skips"):
            check(getattr(self, name) >= 1, f"training.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup_nimg", "ema_halflife_nimg", "window_shards", "max_returns"):
            check(getattr(self, name) >= 0, f"training.{name} must not be negative, got {getattr(self, name)}")
        check(self.lr > 0, f"training.lr must be positive, got {self.lr}")
        for name in ("lr_decay", "caption_dropout", "label_dropout", "ema_rampup"):
            check(0 <= getattr(self, name) <= 1, f"training.{name} must lie in 0..1, got {getattr(self, name)}")
        check(0 <= self.low_only < 1, f"training.low_only must lie in 0..1, below 1, got {self.low_only}")
        check(all(w >= 0 for w in self.level_weights), "training.level_weights must not be negative")
        check(0 <= self.ema_decay < 1, f"training.ema_decay must lie in 0..1, got {self.ema_decay}")
        check(self.grad_clip > 0, f"training.grad_clip must be positive, got {self.grad_clip}")

    def lr_at(self, nimg: int) -> float:
        """Learning rate after nimg images of this stage."""
        warm = min(1.0, (nimg + self.batch_size) / self.warmup_nimg) if self.warmup_nimg else 1.0
        left = (self.nimg - nimg) / (self.lr_decay * self.nimg) if self.lr_decay else 1.0
        return self.lr * warm * min(1.0, left)

    def ema_decay_at(self, nimg: int) -> float:
        """Decay of the step that ends at nimg images."""
        decay = 0.5 ** (self.batch_size / self.ema_halflife_nimg) if self.ema_halflife_nimg else self.ema_decay
        return min(decay, 0.5 ** (self.batch_size / (self.ema_rampup * nimg))) if self.ema_rampup else decay

    def carries_top(self, place: int) -> bool:
        """Whether the sample at a place of the global batch carries the top level (Sec. 4.1): evenly spread ones do."""
        share = 1 - self.low_only
        return math.floor((place + 1) * share + 1e-9) > math.floor(place * share + 1e-9)


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How a stage is computed. Each switch changes speed or memory, not what is computed beyond rounding."""

    max_batch_per_process: int = 64  # more is accumulated
    parallel: Parallel = "ddp"  # fsdp: weights, gradients, optimizer state and EMA sharded over the processes
    precision: Precision = "auto"  # of convolutions and matrix products; auto: bfloat16 on a GPU that has it
    compile: bool = False  # torch.compile
    channels_last: bool | None = None  # none: yes, but uncompiled on CUDA, where it is slower (measured)
    fused_adam: bool = True  # off: reads a flag from the device at every step
    recompute: tuple[int, ...] = ()  # levels (px) whose activations are computed again in the backward pass
    deterministic: bool = False  # bit-equal runs on a GPU too, for the price that `make gpu-check` prints
    hang_s: int = 1800  # without a sign of life for so long, a process writes its stacks and ends

    def __post_init__(self) -> None:
        check(self.max_batch_per_process >= 1, "compute.max_batch_per_process must be at least 1")
        check(self.hang_s >= 1, f"compute.hang_s must be at least 1, got {self.hang_s}")


@dataclass(frozen=True, kw_only=True)
class Cadence:
    """How often a stage reports and saves, and what it keeps."""

    log_every_nimg: int = 100_000
    eval_every_nimg: int = 5_000_000  # held-out loss and sample grid
    checkpoint_every_nimg: int = 1_000_000  # 0: by the clock alone
    checkpoint_every_minutes: float = 0.0  # > 0: and when so long has passed since the last one
    keep_checkpoints: int = 2  # the newest so many
    keep_every_nimg: int = 0  # and the first one after each multiple of this
    keep_ema_every_nimg: int = 0  # > 0: the EMA alone at each multiple, never pruned; the last checkpoint has the end's
    milestones: dict[str, int] = field(default_factory=dict)  # name -> images: saved there, never pruned
    average_every_nimg: int = 0  # > 0: snapshots from which an EMA of any length can be rebuilt (mdm ema)

    def __post_init__(self) -> None:
        for name in ("log_every_nimg", "eval_every_nimg"):
            check(getattr(self, name) >= 1, f"cadence.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("checkpoint_every_nimg", "checkpoint_every_minutes", "keep_every_nimg", "keep_ema_every_nimg"):
            check(getattr(self, name) >= 0, f"cadence.{name} must not be negative, got {getattr(self, name)}")
        check(
            self.average_every_nimg >= 0, f"cadence.average_every_nimg must not be negative: {self.average_every_nimg}"
        )
        check(
            self.checkpoint_every_nimg > 0 or self.checkpoint_every_minutes > 0,
            "cadence.checkpoint_every_nimg is 0: set checkpoint_every_minutes, else a kill costs the whole stage",
        )
        check(self.keep_checkpoints >= 2, "cadence.keep_checkpoints must be at least 2: the newest may be damaged")
        for name, nimg in self.milestones.items():
            check(name.replace("-", "").isalnum(), f"cadence.milestones: {name!r} may hold letters, digits and - only")
            check(nimg >= 1, f"cadence.milestones.{name} must be at least 1, got {nimg}")


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a stage starts from: another stage, grown to this one's model by any number of levels (Sec. 3.3, App. B)."""

    stage: str
    milestone: str = ""  # of that stage; none: its end
    weights: Literal["ema", "raw"] = "ema"  # the paper does not say: our choice
    optimizer: Literal["reset", "carried"] = "reset"  # Adam's state of the parameters that were there before


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training of the progressive schedule; without ``start`` it begins with fresh weights."""

    model: Model
    training: Training
    start: Start | None = None
    compute: Compute = field(default_factory=Compute)
    cadence: Cadence = field(default_factory=Cadence)

    def __post_init__(self) -> None:
        levels = self.model.resolutions
        weights = self.training.level_weights
        check(len(weights) in (0, len(levels)), f"training.level_weights needs {len(levels)} values, or none")
        for px in self.compute.recompute:
            check(px in levels, f"compute.recompute: {px} px is no level of {levels}")
        for name, nimg in self.cadence.milestones.items():
            check(
                nimg <= self.training.nimg,
                f"cadence.milestones.{name}: {nimg} is beyond the stage's {self.training.nimg}",
            )


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How the trainer reads its shards."""

    max_open_files: int = 64  # per process
    check: Literal["size", "digest"] = "size"  # size: of every shard, at the start; digest: of each when first read
    tolerate: int = 0  # unreadable samples that may be replaced by others before the run gives up

    def __post_init__(self) -> None:
        check(self.max_open_files >= 1, f"storage.max_open_files must be at least 1, got {self.max_open_files}")
        check(self.tolerate >= 0, f"storage.tolerate must not be negative, got {self.tolerate}")
