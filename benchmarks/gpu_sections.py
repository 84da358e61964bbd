"""What gpu_check.py tries: that a GPU computes, trains, resumes and draws as the CPU does."""

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "evaluation"), str(Path(__file__).parent)]

import torch._dynamo.utils  # noqa: E402

from benchmarks.gpu_parts import CPU_BATCH, DRAWN_STEPS, STEPS, Section, Step, run_to_end, small_runs, synchronize  # noqa: E402
from benchmarks.kill_and_resume import digests, kill_after, launch  # noqa: E402
from evaluation.generate import ImageJob, ImageSet, prepare  # noqa: E402
from evaluation.images.captions import Prompt  # noqa: E402
from evaluation.images.image_folder import ImageFolder  # noqa: E402
from evaluation.measuring.fresh import Fresh  # noqa: E402
from mdm.config import Labels, Sampling  # noqa: E402
from mdm.diffusion.generate import generate  # noqa: E402
from mdm.diffusion.philox import normal  # noqa: E402
from mdm.network.nested import NestedUNet  # noqa: E402
from mdm.network.weights import save_weights  # noqa: E402
from mdm.released.verify import TOLERANCE, verify_folder  # noqa: E402
from mdm.stage import Compute, Stage  # noqa: E402
from mdm.training.compute import DTYPES  # noqa: E402
from small import TEXT_DIM, attentive, small_job, small_model  # noqa: E402

# Largest difference of an output. A GPU sums in another order than the CPU that made the golden tensors; bfloat16 has
# 8 bits, and the networks are tens of layers deep.
GPU_TOLERANCE, BFLOAT16_TOLERANCE = 1e-4, 0.1
NOISE_TOLERANCE, DRAWN_TOLERANCE = 1e-5, 0.02
STEP_TOLERANCE = 2e-3  # relative, of a loss after some steps in another number of processes
KILLS_S = (0.2, 0.5)  # after a run's first checkpoint
DRAWN_PX = 1024


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
            command = [sys.executable, "-m", "evaluation.generate", str(root / name)]
            for there in range(2 if name == "killed" else 0):  # tars, when it is killed
                process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
                while process.poll() is None and len(list((root / name).glob("samples/tars/*.tar"))) <= there:
                    time.sleep(0.01)
                process.kill()
                process.wait()
            subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
            px = model.resolutions[-1]
            found[name] = ImageFolder(root / name / "samples").load(range(len(prompts)), px)
        fresh = np.concatenate(list(Fresh.open(root / "whole", "as drawn", prompts).batches(0, len(prompts))))
    for what, other in (("killed twice and gone on with", found["killed"]), ("drawn without files", fresh)):
        equal = np.array_equal(found["whole"], other)
        section.say(f"{len(prompts)} images {what}: pixels {'equal' if equal else 'DIFFERENT'}.\n")
        section.passed = section.passed and equal
