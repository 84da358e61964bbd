"""One of the authors' checkpoints as something to measure: never a reproduction, and named as what it is."""

from dataclasses import replace
from pathlib import Path

import torch

from evaluation.images.asked import refuse
from evaluation.protocols import PROTOCOLS
from flows.home import home, weights
from flows.measuring.plan import Evaluation, Point, as_begun, fitted_to, prompts_set, samplings, swept
from mdm.config import MODELS
from mdm.data.embeddings import TextSource
from mdm.data.text import encoder_digest, find_encoder
from mdm.experiments import Protocol as ProtocolName
from mdm.files import sha256
from mdm.presets import PRESETS, Hardware
from mdm.released.convert import convert
from mdm.training.compute import gpu_kind

TRAINED_ON = "released weights, trained on 50 M pairs from Flickr, not on CC12M"


def plan_released(file: Path, protocol: ProtocolName, sweep: dict[str, list[str]]) -> Evaluation:
    """A released file under a protocol, sampled as the paper's preset is, where the protocol does not say how.

    Its results lie in MDM_HOME/released/MODEL-<12 digits of its sha256>. Raises ValueError for a file that is none of
    the released ones, and a protocol that it cannot be measured by. Nothing is written.
    """
    if not file.is_file():
        what = "that is no file, but a folder or a device" if file.exists() else "there is no such file"
        raise ValueError(f"--released {file}: {what}")
    chosen, known = PROTOCOLS[protocol], sha256(file)[:12]
    if not chosen.data and chosen.prompts == "held out":
        others = ", ".join(name for name, row in PROTOCOLS.items() if row.data or row.prompts == "figures")
        raise ValueError(f"protocol {protocol} asks with a run's own held-out samples, {file} has none: take {others}")
    name = convert(file, file.with_name(f"{file.name}.never-written"), dry_run=True)
    like = PRESETS["cc12m-256"]
    stage = replace(like.stages["64"], model=MODELS[name])
    here = Hardware(device=gpu_kind() or "cpu", processes=max(1, torch.cuda.device_count()))
    preset = replace(like, name=f"released-{name}", summary=TRAINED_ON, stages={name: stage}, hardware=here)
    refuse(chosen, stage.model, str(file))
    number = chosen.num_samples or preset.evaluation.num_samples
    preset = replace(preset, evaluation=replace(preset.evaluation, num_samples=number))
    data = prompts_set(chosen) if chosen.data else None
    if data is not None:
        preset = fitted_to(preset, data / chosen.split)
    if "checkpoint" in sweep:
        raise ValueError("--sweep checkpoint is of a run, and a released file is one checkpoint")
    found = samplings(replace(preset.sampling, **chosen.sampling), swept(chosen, stage.model, sweep))
    ema = weights() / f"released-{name}-{known}"
    points = [Point(point or "as-released", file.name, ema, 0, sampling) for point, sampling in found]
    run = home() / "released" / f"{name}-{known}"
    return as_begun(Evaluation(run, preset, chosen, data, _text(preset.text), points, about=TRAINED_ON))


def write_weights(file: Path, planned: Evaluation) -> None:
    """The file as a folder of ours, below MDM_HOME/weights, if it is not there."""
    folder = planned.points[0].weights
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        convert(file, folder)


def _text(encoder: str | None) -> TextSource | None:
    """Its encoder, which nothing pinned but its name; None where it is missing here (``lacks`` says so)."""
    assert encoder is not None
    try:
        folder = find_encoder(encoder, weights(), download=False)
    except ValueError:
        return None
    return TextSource(encoder=encoder, encoder_digest=encoder_digest(encoder, folder), way="online", folder=str(folder))
