"""Pictures of a user's own prompts from a run, at all its resolutions."""

import json
import re
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from evaluation.generate import image_seed
from mdm.checkpoint import newest_checkpoint
from mdm.draw import draw
from mdm.heldout import tile
from mdm.nested import NestedUNet
from mdm.presets import Preset
from mdm.structure import from_dict
from mdm.text import load_encoder


def sample_prompts(
    run: Path,
    prompts: list[str],
    weights: Path,
    seed: int = 0,
    count: int = 4,
    steps: int | None = None,
    guidance: float | None = None,
    output: Path | None = None,
) -> Path:
    """Draw ``count`` images of each prompt with the EMA of the run's furthest stage -> the picture's path.

    A column per image, a block of rows (one per resolution, lowest first) per prompt. Raises ValueError naming what
    is missing.
    """
    if not (run / "config.json").exists():
        raise ValueError(f"{run} is no run (`mdm status` lists them)")
    if count < 1:
        raise ValueError(f"--count must be at least 1, got {count}")
    preset = from_dict(Preset, json.loads((run / "config.json").read_text()))
    network = NestedUNet.from_pretrained(furthest_weights(run, preset))
    sampling = preset.sampling
    if steps is not None:
        sampling = replace(sampling, steps=steps)
    if guidance is not None:
        sampling = replace(sampling, guidance=(guidance, *sampling.guidance_scales(2)[1:]))
    encoder = load_encoder(preset.text, weights)
    null = encoder.encode([""])[0][0]
    rows = []
    with tqdm(total=len(prompts) * sampling.steps, unit="step", desc="sampling") as bar:

        def step(*_: object) -> None:
            bar.update()

        for prompt in prompts:
            tokens = encoder.encode([prompt])[0] * count
            seeds = [image_seed(seed, i) for i in range(count)]
            xs = draw(network, tokens, null, seeds, sampling, torch.device("cpu"), step)
            rows.append(torch.from_numpy(tile(xs)))
    picture = Image.fromarray(torch.cat(rows).numpy())
    path = output or run / "prompts" / f"{slug(prompts[0])}-{seed}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def furthest_weights(run: Path, preset: Preset) -> Path:
    """The EMA of the last stage that has a checkpoint."""
    for stage in reversed(preset.stages):
        checkpoint, _ = newest_checkpoint(run / stage / "checkpoints")
        if checkpoint is not None:
            return checkpoint / "ema"
    raise ValueError(f"{run} has no checkpoint yet")


def slug(text: str) -> str:
    """A caption as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "prompt"
