"""What this machine's GPUs make of the project, in about ten minutes: make gpu-check

Golden tensors, torch.compile, DDP and FSDP2, kill and resume, drawing and measuring, and the speed and memory of every
preset's stages, on the GPUs that torch finds; without one the same on the CPU as far as a CPU goes. Writes
results/DATE-gpu-check.md, which can be sent in, and ends with an error if a section failed.
"""

import argparse
import contextlib
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "evaluation"), str(Path(__file__).parent)]

import torch._dynamo.utils  # noqa: E402

from benchmarks.kill_and_resume import digests, kill_after, launch  # noqa: E402
from evaluation.extract import PER_GPU  # noqa: E402
from evaluation.generate import ImageJob, ImageSet, prepare  # noqa: E402
from evaluation.images.captions import Prompt  # noqa: E402
from evaluation.images.image_folder import ImageFolder  # noqa: E402
from evaluation.images.preparation import Drawn  # noqa: E402
from evaluation.measuring.fresh import Fresh  # noqa: E402
from evaluation.measuring.streaming import extract_blocks, plan_extraction  # noqa: E402
from evaluation.networks.clip import Clip  # noqa: E402
from evaluation.networks.features import Extractor  # noqa: E402
from evaluation.networks.inception import InceptionV3  # noqa: E402
from evaluation.networks.weights import find_weights  # noqa: E402
from mdm.config import Labels, Model, Sampling  # noqa: E402
from mdm.diffusion.generate import generate  # noqa: E402
from mdm.diffusion.philox import normal  # noqa: E402
from mdm.diffusion.process import Process  # noqa: E402
from mdm.files import write_json  # noqa: E402
from mdm.forecast.memory import step_memory  # noqa: E402
from mdm.network.costs import empty_condition, model_flops_per_image, peak_flops  # noqa: E402
from mdm.network.nested import NestedUNet  # noqa: E402
from mdm.network.weights import save_weights  # noqa: E402
from mdm.presets import PRESETS, Preset  # noqa: E402
from mdm.released.verify import TOLERANCE, verify_folder  # noqa: E402
from mdm.run.job import Job, commit, cpu_name  # noqa: E402
from mdm.stage import Cadence, Compute, Stage  # noqa: E402
from mdm.structure import to_dict  # noqa: E402
from mdm.training.compute import DTYPE_NAMES, DTYPES, pick_dtype, set_determinism  # noqa: E402
from mdm.training.state import State  # noqa: E402
from random_weights import row_of, whole_layers, write_inception  # noqa: E402
from small import TEXT_DIM, attentive, small_job, small_model, write_dataset  # noqa: E402

# Largest difference of an output. A GPU sums in another order than the CPU that made the golden tensors; bfloat16 has
# 8 bits, and the networks are tens of layers deep.
GPU_TOLERANCE, BFLOAT16_TOLERANCE = 1e-4, 0.1
NOISE_TOLERANCE, DRAWN_TOLERANCE = 1e-5, 0.02
STEP_TOLERANCE = 2e-3  # relative, of a loss after some steps in another number of processes
KILLS_S = (0.2, 0.5)  # after a run's first checkpoint
CPU_BATCH, STEPS, SECONDS = 8, 10, 20.0  # of the speed section: images on a CPU; steps, or so long, per stage
DRAWN_PX, DRAWN_STEPS = 1024, 8
TRAINED_STEPS = 40


@dataclass
class Section:
    """What one check found."""

    title: str
    passed: bool = True
    lines: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        """A line, printed at once: sections take minutes."""
        self.lines.append(line)
        print(line, flush=True)

    def table(self, *columns: str) -> None:
        self.row(*columns)
        self.row(*("---" for _ in columns))

    def row(self, *cells: object) -> None:
        self.say(f"| {' | '.join(map(str, cells))} |")

    @property
    def verdict(self) -> str:
        return "passed" if self.passed else "FAILED"


# -- sections ----------------------------------------------------------------------------------------------------------


def golden(section: Section, device: torch.device) -> None:
    """Golden tensors of the released code."""
    torch.backends.cudnn.allow_tf32 = False
    exact = TOLERANCE if device.type == "cpu" else GPU_TOLERANCE
    section.table("format", "outputs", "largest difference", "tolerance")
    for name, tolerance in (("float32", exact), ("bfloat16", BFLOAT16_TOLERANCE)):
        found = list(verify_folder(ROOT / "tests" / "golden", tolerance, device, DTYPES[name]))
        networks = [c for c in found if c.file != "process.safetensors"]
        section.row(name, len(networks), f"{max(c.difference for c in networks):.1e}", f"{tolerance:g}")
        section.passed = section.passed and all(c.passed for c in networks)
    torch.backends.cudnn.allow_tf32 = True


def compiling(section: Section, device: torch.device) -> None:
    """torch.compile of the training step: no graph breaks, the same loss."""
    section.table("levels", "graph breaks", "loss as it is", "loss compiled")
    for count in (1, 2, 3):
        stage = Stage(model=small_model(count), training=small_job(Path(), count).training)
        losses = []
        for compile_it in (False, True):
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            step = Step(replace(stage, compute=Compute(compile=compile_it, precision="float32")), CPU_BATCH, device)
            losses.append(step().item())
        breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
        section.row(count, breaks, *(f"{loss:.6f}" for loss in losses))
        section.passed = section.passed and breaks == 0 and abs(losses[0] - losses[1]) <= 1e-3 * losses[0]


def processes(section: Section, device: torch.device) -> None:
    """The trainer under torchrun: DDP and FSDP2 in several processes train as one process does."""
    gpus = torch.cuda.device_count()
    if gpus == 1:
        section.say("One GPU only, so NCCL between GPUs was not tried; below: two processes on the CPU.\n")
    on, count = ("cuda", max(n for n in (2, 4, 8) if n <= gpus)) if gpus > 1 else ("cpu", 2)
    section.table("processes", "over", "parallel", "largest relative difference of a loss", "tolerance")
    with small_runs(on) as prepare:
        alone = prepare("alone", nimg=48)
        losses = run_to_end(alone, 1)
        for parallel in ("ddp", "fsdp"):
            found = run_to_end(prepare(parallel, nimg=48, parallel=parallel), count)
            worst = max(abs(found[key] - loss) / abs(loss) for key, loss in losses.items())
            over = "NCCL" if on == "cuda" else "gloo"
            section.row(count, over, parallel, f"{worst:.1e}", STEP_TOLERANCE)
            section.passed = section.passed and worst <= STEP_TOLERANCE


def resuming(section: Section, device: torch.device) -> None:
    """A deterministic run, killed and resumed, ends as one that was left alone: bit for bit."""
    with small_runs(device.type) as prepare:
        whole, killed = (prepare(name, nimg=320, deterministic=True) for name in ("whole", "killed"))
        run_to_end(whole, 1)
        for after in KILLS_S:
            kill_after(killed, launch(killed, 1), after)
        run_to_end(killed, 1)
        attempts = len(list((killed / "attempts").iterdir()))
        section.passed = digests(whole) == digests(killed) and attempts == len(KILLS_S) + 1
        word = "equal" if section.passed else "DIFFERENT"
        section.say(f"SIGKILL {len(KILLS_S)} times, {attempts} attempts: weights, EMA and moments {word}.")


def drawing(section: Section, device: torch.device) -> None:
    """Images: noise as the CPU's, guidance in one batch, compiled and in bfloat16 close to the CPU's float32."""
    seeds, shape = torch.arange(4), (3, DRAWN_PX, DRAWN_PX)
    noise = (normal(seeds.to(device), 1, 0, shape).cpu() - normal(seeds, 1, 0, shape)).abs().max().item()
    begun = time.monotonic()
    for draw in range(STEPS):
        normal(seeds.to(device), draw, 0, shape)
    synchronize(device)
    each = (time.monotonic() - begun) * 1000 / STEPS / len(seeds)
    section.say(f"Noise of {DRAWN_PX} px: {each:.2f} ms an image; largest difference to the CPU's {noise:.1e}\n")

    network, null = NestedUNet(small_model(2)).eval(), torch.zeros(1, TEXT_DIM)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    states = list(torch.randn(4, 5, TEXT_DIM, generator=torch.Generator().manual_seed(0)))

    def drawn(on: torch.device, precision: Literal["float32", "bfloat16"]) -> Tensor:
        sampling = Sampling(steps=8, guidance=(2.0,), precision=precision)
        return generate(network.to(on), states, null, [1, 2, 3, 4], sampling, on)[-1].cpu()

    expected = drawn(torch.device("cpu"), "float32")
    section.table("drawn", "mean difference to the CPU's float32", "tolerance")
    found = {"float32": drawn(device, "float32"), "bfloat16": drawn(device, "bfloat16")}
    network.compile()
    found["bfloat16, compiled"] = drawn(device, "bfloat16")
    section.passed = noise <= NOISE_TOLERANCE
    for how, image in found.items():
        difference, tolerance = (image - expected).abs().mean().item(), 1e-3 if how == "float32" else DRAWN_TOLERANCE
        section.row(how, f"{difference:.1e}", f"{tolerance:g}")
        section.passed = section.passed and difference <= tolerance


def drawn_again(section: Section, device: torch.device) -> None:
    """A folder of images, killed while it is drawn and drawn on: the same bytes; measured without files: the same."""
    model = replace(small_model(2), text=None, labels=Labels(num_classes=4, null=True))
    sampling = Sampling(steps=DRAWN_STEPS, guidance=(2.0,), batch_size=4, precision="bfloat16")
    prompts = [Prompt(key=f"{i:02d}", caption="a square", label=i % 4) for i in range(24)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_weights(root / "weights", model, attentive(model).state_dict())
        images = ImageSet(name="samples", weights=str(root / "weights"), sampling=sampling)
        found = {}
        for name in ("whole", "killed"):
            job = ImageJob(sets=(images,), data="", text=None, device=device.type)  # type: ignore[arg-type]
            prepare(root / name, job, prompts)
            kills, command = 0, [sys.executable, "-m", "evaluation.generate", str(root / name)]
            while name == "killed" and kills < len(KILLS_S):
                process, there = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL), kills
                while process.poll() is None and len(list((root / name).glob("samples/tars/*.tar"))) <= there:
                    time.sleep(0.01)
                process.kill()
                process.wait()
                kills += 1
            subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
            px = model.resolutions[-1]
            found[name] = ImageFolder(root / name / "samples").load(range(len(prompts)), px)
        fresh = np.concatenate(list(Fresh.open(root / "whole", "as drawn", prompts).batches(0, len(prompts))))
    for what, other in (("killed twice and gone on with", found["killed"]), ("drawn without files", fresh)):
        equal = np.array_equal(found["whole"], other)
        section.say(f"{len(prompts)} images {what}: pixels {'equal' if equal else 'DIFFERENT'}.\n")
        section.passed = section.passed and equal


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
    for name, stage_name, stage in distinct(device, stages, lambda preset, stage: to_dict(stage.model)):
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

    what = distinct(device, stages, lambda preset, stage: [to_dict(stage.model), batch_of(stage), stage.compute])
    for name, stage_name, stage in what:
        changed = replace(stage, compute=replace(stage.compute, compile=compiled))
        section.row(name, stage_name, *measure(changed, batch_of(stage), device))


def distinct(
    device: torch.device, asked: Collection[str], key: Callable[[Preset, Stage], object]
) -> Iterator[tuple[str, str, Stage]]:
    """Presets' stages, each key once: those asked for (PRESET/STAGE), else all that the device is for."""
    seen: set[str] = set()
    for name, preset in PRESETS.items():
        for stage_name, stage in preset.stages.items():
            fits = f"{name}/{stage_name}" in asked if asked else device.type != "cpu" or preset.hardware.device == "cpu"
            if fits and (what := str(key(preset, stage))) not in seen:
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


# -- their parts -------------------------------------------------------------------------------------------------------


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


class Step:
    """A training step of a stage on made-up data in one process: loss, gradients, and the trainer's own update."""

    def __init__(self, stage: Stage, batch: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.stage, self.device, self.dtype = stage, device, pick_dtype(stage.compute.precision, device)
        self.process = Process.of(stage.model)
        nowhere = {"train_data": "", "val_data": "", "text": None, "sampling": Sampling()}
        job = Job(model=stage.model, training=stage.training, compute=stage.compute, **nowhere)  # type: ignore[arg-type]
        self.state = State(job, device, self.dtype)
        tops = (
            sum(stage.training.carries_top(place) for place in range(batch)) if len(stage.model.levels) > 1 else batch
        )
        px = stage.model.resolutions[-1]
        self.images = torch.rand(batch, 3, px, px, device=device) * 2 - 1
        self.sizes = [batch] * (len(stage.model.levels) - 1) + [max(1, tops)]
        self.condition = {name: value.to(device) for name, value in empty_condition(stage.model, batch).items()}
        if stage.model.text:
            self.condition["text"] = torch.randn_like(self.condition["text"])
        self.times = self.process.times(torch.rand(batch, device=device))

    def __call__(self) -> Tensor:
        """-> the loss, on the device."""
        xs = [x[:size] for x, size in zip(self.process.downsample(self.images), self.sizes, strict=True)]
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            losses = self.process.loss(
                lambda zs, t: self.state.spread.model(zs, t, **self.condition),
                xs,
                [torch.randn_like(x) for x in xs],
                self.times,
                self.stage.training.loss,
            )
        means = torch.stack([level.mean() for level in losses])
        loss = means.sum()
        self.state.scaler.scale(loss).backward()
        self.state.step(means.detach(), 0)
        return loss.detach()


@contextlib.contextmanager
def small_runs(device: str) -> Iterator[Callable[..., Path]]:
    """A data set of squares, and a maker of run folders on it; all gone at the end."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for split, count in (("train", 40), ("val", 9)):
            write_dataset(root / "data", split, count, 32)

        def prepare(name: str, **changes: object) -> Path:
            job = replace(small_job(root / "data", precision="float32", **changes), device=device)
            (run := root / name).mkdir()
            write_json(run / "job.json", to_dict(job))
            return run

        yield prepare


def run_to_end(run: Path, count: int) -> dict[tuple[int, str], float]:
    """Train in so many processes -> the losses of metrics.jsonl by images seen and name."""
    if launch(run, count).wait() != 0:
        raise RuntimeError(f"{count} processes on {run.name}:\n{(run / 'log.txt').read_text()[-1500:]}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        (line["nimg"], name): value
        for line in lines
        for name, value in line["values"].items()
        if name.startswith(("train/loss", "val/loss"))
    }


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# -- the file ----------------------------------------------------------------------------------------------------------


def check(sections: dict[str, Callable[[Section], None]]) -> Iterator[Section]:
    """Run the sections in turn; an exception fails its own only."""
    for title, run in sections.items():
        section = Section(title)
        print(f"## {title}\n", flush=True)
        try:
            run(section)
        except Exception as error:
            section.passed = False
            section.say("\n".join(["```", *traceback.format_exception(error)[-3:], "```"]))
        yield section


def head(device: torch.device) -> list[str]:
    today, found = datetime.date.today().isoformat(), "no GPU: this is the CPU part only, no GPU has run anything here"
    if device.type == "cuda":
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        found = (
            ", ".join(f"{p.name} ({p.total_memory / 2**30:.0f} GiB)" for p in names) + f", CUDA {torch.version.cuda}"
        )
    return [
        f"# GPU check, {today}",
        "",
        f"{found}; {cpu_name()}, {os.cpu_count()} cores; torch {torch.__version__}; commit {commit(ROOT)}; "
        "`make gpu-check`",
        "",
    ]


def report(lines: list[str], sections: Iterator[Section], output: Path) -> int:
    """Write each section as it ends -> the exit status: 1 if one failed."""
    failed, path = 0, output / f"{datetime.date.today().isoformat()}-gpu-check.md"
    print("\n".join(lines), flush=True)
    for section in sections:
        print(f"\n{section.title}: {section.verdict}\n", flush=True)
        lines += [f"## {section.title}: {section.verdict}", "", *section.lines, ""]
        failed += not section.passed
        path.write_text("\n".join(lines).rstrip() + "\n")
    print(f"written to {path}" + (f"; {failed} sections FAILED" if failed else ""))
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--compiled", action="store_true", help="measure speeds with torch.compile (minutes per stage)")
    parser.add_argument("--only", nargs="+", metavar="TITLE", help="these sections")
    parser.add_argument("--stages", nargs="+", default=[], metavar="PRESET/STAGE", help="whose speed is measured")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER")
    arguments = parser.parse_args(argv)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    speeds = device, arguments.compiled, arguments.stages
    sections: dict[str, Callable[[Section], None]] = {
        "Golden tensors": lambda s: golden(s, device),
        "torch.compile": lambda s: compiling(s, device),
        "Several processes": lambda s: processes(s, device),
        "Killed and resumed": lambda s: resuming(s, device),
        "Drawing": lambda s: drawing(s, device),
        "Drawn again": lambda s: drawn_again(s, device),
        "Features": lambda s: features(s, device),
        "Trainer": lambda s: trainer(s, device),
        "Drawing speed": lambda s: drawing_speed(s, *speeds),
        "Speed and memory": lambda s: speed(s, *speeds),
    }
    if unknown := set(arguments.only or []) - sections.keys():
        parser.error(f"--only {min(unknown)}: there are {', '.join(sections)}")
    sections = {title: run for title, run in sections.items() if title in (arguments.only or sections)}
    return report(head(device), check(sections), arguments.output)


if __name__ == "__main__":
    sys.exit(main())
