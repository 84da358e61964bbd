"""What gpu_check.py measures: the speed of features, trainer, drawing and stages, and memory beside its estimate."""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "evaluation"), str(Path(__file__).parent)]

from benchmarks.gpu_parts import CPU_BATCH, DRAWN_STEPS, STEPS, Section, Step, synchronize  # noqa: E402
from benchmarks.kill_and_resume import launch  # noqa: E402
from evaluation.extract import PER_GPU  # noqa: E402
from evaluation.images.image_folder import ImageFolder  # noqa: E402
from evaluation.images.preparation import Drawn  # noqa: E402
from evaluation.measuring.streaming import extract_blocks, plan_extraction  # noqa: E402
from evaluation.networks.clip import Clip  # noqa: E402
from evaluation.networks.features import Extractor  # noqa: E402
from evaluation.networks.inception import InceptionV3  # noqa: E402
from evaluation.networks.weights import find_weights  # noqa: E402
from mdm.config import Model, Sampling  # noqa: E402
from mdm.diffusion.generate import generate  # noqa: E402
from mdm.files import write_json  # noqa: E402
from mdm.forecast.memory import step_memory  # noqa: E402
from mdm.network.costs import model_flops_per_image, peak_flops  # noqa: E402
from mdm.network.nested import NestedUNet  # noqa: E402
from mdm.presets import PRESETS  # noqa: E402
from mdm.stage import Cadence, Stage  # noqa: E402
from mdm.structure import to_dict  # noqa: E402
from mdm.training.compute import DTYPE_NAMES, pick_dtype, set_determinism  # noqa: E402
from random_weights import row_of, whole_layers, write_inception  # noqa: E402
from small import TEXT_DIM, small_job, write_dataset  # noqa: E402

SECONDS, TRAINED_STEPS = 20.0, 40  # most for a stage's speed; steps of the trainer


def features(section: Section, device: torch.device) -> None:
    """Images/s of networks of the published measures, with random weights, which cost the same: in memory, and the
    whole path from the tars of PNG that ``mdm evaluate`` reads, in as many processes as it starts for a GPU."""
    count, size, processes = (1024, 64, PER_GPU) if device.type == "cuda" else (16, 8, 1)
    section.say("To beat on one H100: 175 images/s of Inception-V3 with Pillow's resize, 72 of CLIP ViT-L/14.\n")
    section.table(
        "network", "images/s in memory", *(f"from tars of PNG, {n} processes" for n in sorted({1, processes}))
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        drawn = written_images(folder / "samples", count)
        in_memory = [np.concatenate(list(drawn.batches(0, size)))] * (count // size)
        write_inception(folder / "inception.pt", whole_layers().eval())
        save_file(open_clip.create_model("ViT-L-14").state_dict(), folder / "clip.safetensors")
        for name in ("Inception-V3, clean resize", "CLIP ViT-L/14, its resize"):
            network = extractor(name, folder, device)
            network.extract(in_memory[:1], size)
            begun = time.monotonic()
            network.extract(in_memory, size)
            rates = [count / (time.monotonic() - begun)]
            for world in sorted({1, processes}):
                work = folder / f"{network.name}-{world}"
                plan_extraction([network], work, count, "made up", size)
                context = torch.multiprocessing.get_context("spawn")
                taken, together = context.SimpleQueue(), context.Barrier(world)
                share = name, folder, device, drawn, work, world, taken, together
                torch.multiprocessing.spawn(extract_share, share, world)
                begins, ends = zip(*(taken.get() for _ in range(world)), strict=True)
                rates.append(count / (max(ends) - min(begins)))
            section.row(name, *(f"{rate:.1f}" for rate in rates))


def trainer(section: Section, device: torch.device) -> None:
    """A preset's first stage by the trainer itself on made-up pictures: what its loader, record and saves add."""
    name, stage_name = ("cc12m-256", "64") if device.type == "cuda" else ("tiny", "16")
    stage = PRESETS[name].stages[stage_name]
    batch = min(stage.compute.max_batch_per_process, stage.training.batch_size)
    assert stage.model.text is not None
    model = replace(stage.model, text=replace(stage.model.text, dim=TEXT_DIM))  # of the made-up states
    with tempfile.TemporaryDirectory() as folder:
        run, data = Path(folder) / "run", Path(folder) / "data"
        run.mkdir()
        for split, count in (("train", 4 * batch), ("val", batch)):
            write_dataset(data, split, count, model.resolutions[-1], 64)
        job = replace(
            small_job(data),
            model=model,
            training=replace(stage.training, nimg=batch * TRAINED_STEPS, batch_size=batch, window_shards=0),
            compute=replace(stage.compute, compile=False),
            cadence=Cadence(
                log_every_nimg=batch * TRAINED_STEPS // 4,
                eval_every_nimg=batch * TRAINED_STEPS,
                checkpoint_every_nimg=batch * TRAINED_STEPS // 2,
            ),
            device=device.type,
            threads=0,
            data_workers=2,
        )
        write_json(run / "job.json", to_dict(job))
        begun = time.monotonic()
        if launch(run, 1).wait() != 0:
            raise RuntimeError((run / "log.txt").read_text()[-1500:])
        seconds = time.monotonic() - begun
        lines = [json.loads(line)["values"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds = [values for values in lines if "speed/images_per_s" in values]
    section.say(
        f"{name} {stage_name}, {TRAINED_STEPS} steps of {batch}, not compiled: {seconds:.0f} s with start and end.\n"
    )
    section.table("images/s", "step, s", "data wait, s", "checkpoint stall, s", "loss")
    for values in speeds:
        cells = [values[f"speed/{what}"] for what in ("images_per_s", "step_s", "data_wait_s", "checkpoint_stall_s")]
        section.row(*(f"{cell:.4g}" for cell in [*cells, values["train/loss"]]))
    section.passed = all(np.isfinite(values["train/loss"]) for values in speeds) and bool(speeds)


def drawing_speed(section: Section, device: torch.device, compiled: bool, stages: Collection[str]) -> None:
    """Images of every preset's models at its own batch, guided where they can be: seconds for an image and a call."""
    section.table("preset", "stage", "batch", "format", "s per call and image", "images/hour at the preset's steps")
    for name, stage_name, stage in distinct(device, stages, lambda stage: to_dict(stage.model)):
        asked = PRESETS[name].sampling
        guidance = (2.0,) if stage.model.labels is None or stage.model.labels.null else (1.0,)
        sampling = replace(asked, guidance=guidance)
        each = seconds_per_call(stage.model, sampling, device, compiled)
        how = asked.precision + (", compiled" if compiled else "")
        rate = 3600 / (each * sampling.calls)
        section.row(name, stage_name, asked.batch_size, how, f"{each:.4f}", f"{rate:,.0f}")


def speed(section: Section, device: torch.device, compiled: bool, stages: Collection[str]) -> None:
    """Every stage of every preset at the paper's batch per GPU: images/s, and memory beside the estimate."""
    if device.type == "cpu":
        section.say(f"On a CPU only the small presets, {CPU_BATCH} images at a time; no peak memory.\n")
    set_determinism(False)
    section.table("preset", "stage", "format", "batch", "images/s", "MFU", "peak memory", "estimate", "ratio")

    def batch_of(stage: Stage) -> int:
        most = min(stage.compute.max_batch_per_process, stage.training.batch_size)
        return CPU_BATCH if device.type == "cpu" else most

    what = distinct(device, stages, lambda stage: [to_dict(stage.model), batch_of(stage), stage.compute])
    for name, stage_name, stage in what:
        changed = replace(stage, compute=replace(stage.compute, compile=compiled))
        section.row(name, stage_name, *measure(changed, batch_of(stage), device))


def distinct(
    device: torch.device, asked: Collection[str], key: Callable[[Stage], object]
) -> Iterator[tuple[str, str, Stage]]:
    """Presets' stages, each key once: those asked for (PRESET/STAGE), else all that the device is for."""
    seen: set[str] = set()
    for name, preset in PRESETS.items():
        for stage_name, stage in preset.stages.items():
            fits = f"{name}/{stage_name}" in asked if asked else device.type != "cpu" or preset.hardware.device == "cpu"
            if fits and (what := str(key(stage))) not in seen:
                seen.add(what)
                yield name, stage_name, stage


def measure(stage: Stage, batch: int, device: torch.device) -> list[str]:
    """Cells of the speed table."""
    precision = DTYPE_NAMES[pick_dtype(stage.compute.precision, device)]
    estimate = step_memory(stage, 1, batch, precision).total / 2**30
    cells = [precision, str(batch)]
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        step = Step(stage, batch, device)
        for _ in range(2):
            step()
        synchronize(device)
        begun, steps = time.perf_counter(), 0
        while steps < STEPS and time.perf_counter() - begun < SECONDS:
            step()
            synchronize(device)
            steps += 1
    except torch.OutOfMemoryError:
        return [*cells, "does not fit", "", "", f"{estimate:.1f} GiB", ""]
    rate = steps * batch / (time.perf_counter() - begun)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    peak = peak_flops(gpu, precision)
    mfu = f"{rate * model_flops_per_image(stage.model, stage.training) / peak:.0%}" if peak else "-"
    if device.type == "cpu":
        return [*cells, f"{rate:.1f}", mfu, "-", f"{estimate:.2f} GiB", "-"]
    used = torch.cuda.max_memory_allocated() / 2**30
    return [*cells, f"{rate:.1f}", mfu, f"{used:.1f} GiB", f"{estimate:.1f} GiB", f"{used / estimate:.2f}"]


def written_images(folder: Path, count: int) -> Drawn:
    """Images of noise that compress about as photographs do, in a tar as generate.py writes them; each read often."""
    random, kinds = torch.Generator().manual_seed(0), range(min(count, 64))
    rough = torch.rand(len(kinds), 3, 32, 32, generator=random) * 2 - 1
    xs = torch.nn.functional.interpolate(rough, scale_factor=8, mode="bicubic")
    ImageFolder(folder).save([(xs + 0.06 * torch.randn(xs.shape, generator=random)).clamp(-1, 1)], kinds, kinds)
    return Drawn(str(folder), 256, tuple(i % len(kinds) for i in range(count)), "made up")


def extractor(name: str, folder: Path, device: torch.device) -> Extractor:
    """One of two networks, of the random weights in a folder."""
    if name.startswith("CLIP"):
        row = row_of(folder / "clip.safetensors", "random_clip", "ViT-L-14")
        return Clip(find_weights(row, folder), "clip", device)
    return InceptionV3(find_weights(row_of(folder / "inception.pt", "random_inception"), folder), "clean", device)


def extract_share(rank: int, *given: Any) -> None:
    """A process's share of an extraction; its first second and its last go into a queue, once all have begun."""
    name, folder, device, drawn, work, world, taken, together = given
    network = extractor(name, folder, device)
    network.extract(np.zeros((1, 3, 256, 256), np.uint8))
    together.wait()
    begun = time.monotonic()
    extract_blocks([network], drawn.batches, work, rank, world)
    taken.put((begun, time.monotonic()))


def seconds_per_call(model: Model, sampling: Sampling, device: torch.device, compiled: bool) -> float:
    """Of one image: guided drawing, the mean over some steps."""
    network = NestedUNet(model).eval().to(device).to(memory_format=torch.channels_last)
    if compiled:
        network.compile()
    count = sampling.batch_size
    condition: Tensor | int = torch.randn(64, model.text.dim) if model.text else 0
    null = condition if model.text or (model.labels and model.labels.null) else None
    few = replace(sampling, steps=DRAWN_STEPS // 2)
    taken = []
    for _ in range(2):  # the first compiles, and tries kernels
        begun = time.monotonic()
        generate(network, [condition] * count, null, range(count), few, device)
        synchronize(device)
        taken.append(time.monotonic() - begun)
    return taken[-1] / (count * few.calls)
