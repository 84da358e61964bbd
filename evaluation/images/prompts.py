"""Pictures of a user's own prompts from a run, at all its resolutions."""

import re
import shlex
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from evaluation.images.captions import image_seed
from mdm.config import SAMPLING_FORMAT, Device, Sampling
from mdm.data.embeddings import same_encoder
from mdm.data.ranges import tile
from mdm.data.text import BATCH, load_encoder
from mdm.diffusion.generate import generate
from mdm.files import sha256
from mdm.network.nested import NestedUNet
from mdm.presets import Preset, load_preset
from mdm.run.checkpoint import Damaged, last_checkpoint, newest_checkpoint
from mdm.run.folder import find_damage, list_folders
from mdm.run.job import Job, load_job
from mdm.structure import digest
from mdm.training.compute import pick_device

STRIP_PICTURES = 10  # of a denoising strip


def sample_prompts(
    run: Path,
    prompts: list[str],
    weights: Path,
    sampling: dict[str, Any],
    seed: int = 0,
    count: int = 4,
    all_levels: bool = False,
    strip: bool = False,
    output: str | None = None,
    checkpoint: Path | None = None,
    device: Device = "auto",
    negative: str = "",
) -> list[Path]:
    """Draw ``count`` images of each prompt with the EMA of a checkpoint -> the pictures' paths.

    ``checkpoint``: none takes the furthest stage's last one.

    A column per image, a row per prompt; with ``all_levels`` a row per resolution, lowest first (Fig. 1). ``sampling``:
    fields to replace in the run's. ``strip``: a second picture of how the first image of each prompt comes out of the
    noise, a row per resolution (Fig. 11). ``negative``: the caption that guidance leads away from, instead of none. For
    a class-conditional run the prompts are labels. ``output``: a picture, or a folder (with a / at its end, or one that
    is there). Raises ValueError naming what is missing.
    """
    if count < 1:
        raise ValueError(f"--count must be at least 1, got {count}")
    for prompt in prompts:
        if not prompt.isprintable() and any("\udc80" <= letter <= "\udcff" for letter in prompt):
            raise ValueError(f"the prompt {prompt!r} is no UTF-8 text")
    path = picture_path(run, prompts, seed, output)
    drawing = open_drawing(run, sampling, checkpoint, device, negative)
    network, settings, drawn_on = drawing.network, drawing.settings, drawing.device
    conditions, null = conditions_of(drawing, prompts, weights)
    rows, strips = [], []
    with tqdm(total=len(prompts) * settings.steps, unit="step", desc="sampling") as bar:
        for condition in conditions:
            steps: list[list[Tensor]] = []  # x of every level, of the first image

            def step(done: int, total: int, xs: list[Tensor], steps: list[list[Tensor]] = steps) -> None:
                steps.append([x[:1].cpu() for x in xs])
                bar.update()

            seeds = [image_seed(seed, i) for i in range(count)]
            xs = generate(network, [condition] * count, null, seeds, settings, drawn_on, step)
            rows.append(torch.from_numpy(tile(xs if all_levels else xs[-1:])))
            shown = min(STRIP_PICTURES, len(steps))
            few = [steps[round((i + 1) * len(steps) / shown) - 1] for i in range(shown)]
            strips.append(torch.from_numpy(tile([torch.cat(level) for level in zip(*few, strict=True)])))
    pictures = {path: rows} | ({path.with_name(f"{path.stem}-strip.png"): strips} if strip else {})
    path.parent.mkdir(parents=True, exist_ok=True)
    for file, parts in pictures.items():
        Image.fromarray(torch.cat(parts).numpy()).save(file)
    return list(pictures)


@dataclass(frozen=True)
class Drawing:
    """What draws: a checkpoint's EMA on its device, and how it is sampled."""

    network: NestedUNet
    settings: Sampling
    device: torch.device
    job: Job  # of its training
    encoder: str | None  # of captions
    negative: str
    file: Path  # of the weights

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its pictures beside prompts and seeds."""
        drawn = {"sampling": self.settings, "format": SAMPLING_FORMAT, "negative": self.negative}
        return {"weights": sha256(self.file), **drawn}


def open_drawing(
    run: Path, sampling: dict[str, Any], checkpoint: Path | None, device: Device, negative: str
) -> Drawing:
    """Raises ValueError for what is no run, has no such checkpoint, or cannot be sampled so."""
    if not (run / "config.json").exists():
        raise ValueError(f"{run} is no run (`mdm status` lists them)")
    preset = load_preset(run / "config.json")
    stage, chosen = this_checkpoint(run, checkpoint) if checkpoint else furthest_checkpoint(run, preset)
    drawn_on = pick_device(device)
    network = NestedUNet.from_pretrained(chosen).to(drawn_on)
    settings = replace(preset.sampling, **sampling)
    network.config.check_sampling(settings)
    if negative and all(scale == 1 for scale in settings.guidance):
        raise ValueError(f"--negative {negative!r} does nothing without guidance: give --guidance, too")
    file = chosen / "ema" / "model.safetensors"
    return Drawing(network, settings, drawn_on, load_job(stage), preset.text, negative, file)


def conditions_of(
    drawing: Drawing, prompts: list[str], weights: Path
) -> tuple[Sequence[Tensor | int], Tensor | int | None]:
    """What the prompts ask for, and what guidance leads away from: encoder states, or labels."""
    job, encoder_name, negative = drawing.job, drawing.encoder, drawing.negative
    if encoder_name is not None and job.text is not None:
        encoder = load_encoder(encoder_name, weights)
        if not same_encoder(encoder.digest(), job.text.encoder_digest):
            raise ValueError(
                f"{encoder.folder} holds another {encoder_name} than this run was trained with: put that one back"
            )
        if Path(job.train_data).is_dir():  # the run may have outlived its data
            encoder.check(Path(job.train_data).parent)
        captions = [*prompts, negative]
        parts = [encoder.encode(captions[start : start + BATCH])[0] for start in range(0, len(captions), BATCH)]
        states = [state for part in parts for state in part]
        return states[:-1], states[-1]
    assert job.model.labels is not None
    if negative:
        raise ValueError(f"--negative {negative!r}: this run is conditioned on labels, and reads no captions")
    number = job.model.labels.num_classes
    for prompt in prompts:
        if not prompt.isdigit() or int(prompt) >= number:
            raise ValueError(f"this run is conditioned on labels: give numbers from 0 to {number - 1}, not {prompt!r}")
    return [int(prompt) for prompt in prompts], job.model.labels.null_class


def furthest_checkpoint(run: Path, preset: Preset) -> tuple[Path, Path]:
    """The last stage that has a checkpoint, and its last one. An unfinished run is told as such.

    Raises ValueError where that checkpoint is damaged: an earlier one is another model.
    """
    for stage in reversed(preset.stages):
        try:
            checkpoint = last_checkpoint(run / stage / "checkpoints")
        except Damaged as error:
            others = [newest_checkpoint(run / name / "checkpoints")[0] for name in reversed(preset.stages)]
            whole = error.whole or next(filter(None, others), None)
            take = f"; to draw from another: --checkpoint {shlex.quote(str(whole))}" if whole else ""
            raise ValueError(f"{error}{take}") from error
        if checkpoint is not None:
            if not (run / list(preset.stages)[-1] / "done.json").exists():
                print(f"the run is not finished: drawing from {stage}, {checkpoint.name}", file=sys.stderr)
            return run / stage, checkpoint
    raise ValueError(f"{run} has no checkpoint yet")


def this_checkpoint(run: Path, checkpoint: Path) -> tuple[Path, Path]:
    """A checkpoint that was asked for, and its stage. Raises ValueError where it is none of the run's, or damaged."""
    folder = checkpoint.resolve()
    stage = folder.parent.parent
    if stage.parent != run.resolve() or folder not in list_folders(stage / "checkpoints"):
        raise ValueError(f"{checkpoint} is no checkpoint of {run}: give a folder {run}/STAGE/checkpoints/nimg-…")
    problem = find_damage(folder)
    if problem is not None:
        raise Damaged(folder, problem, None)
    return stage, folder


def picture_path(run: Path, prompts: list[str], seed: int, output: str | None) -> Path:
    """Where the pictures go; other prompts never share a name. Raises ValueError for a file that is no picture."""
    folder = run / "prompts" if output is None else Path(output)
    if output is None or output.endswith("/") or folder.is_dir():
        return folder / f"{slug(prompts[0])}-{digest(prompts)[:6]}-{seed}.png"
    if Image.registered_extensions().get(folder.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"-o {output}: no picture is written as {folder.name!r}: give FILE.png, or FOLDER/")
    return folder


def slug(text: str) -> str:
    """A caption as a part of a file name, in any script; two captions may have the same."""
    return re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", text).lower()).strip("-")[:40] or "prompt"
