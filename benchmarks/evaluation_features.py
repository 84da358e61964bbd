"""Features on one CPU thread: ours beside clean-fid's, the resize's difference, and the memory of a stream of images.

    taskset -c 1 python benchmarks/evaluation_features.py [--pictures 48] [--rounds 5] [--streamed 30000]

Both read the same PNG files of 256 px and run the same TorchScript file: the real network's layers with random weights,
which cost the same. They take turns in every round; seconds are the process's own, whatever else the machine does. The
floor is what the layers' multiplications alone take at the rate of one large convolution. Writes
results/DATE-evaluation-features.md; exits with 1 where an aim is missed.
"""

import argparse
import contextlib
import datetime
import io
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from cleanfid import fid
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from numpy.typing import NDArray
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "evaluation")]

from evaluation.measuring.streaming import extract_all  # noqa: E402
from evaluation.networks.features import RandomFeatures  # noqa: E402
from evaluation.networks.inception import InceptionV3  # noqa: E402
from evaluation.networks.resize import bicubic  # noqa: E402
from evaluation.networks.weights import find_weights  # noqa: E402
from mdm.data.pixels import read_rgb  # noqa: E402
from mdm.run.job import commit, cpu_name  # noqa: E402
from random_weights import whole_layers, write_inception  # noqa: E402

PX, BATCH = 256, 8
AIM, PARITY, MEMORY_MB = 1.4, 1e-3, 200
MODES: dict[Literal["clean", "legacy"], str] = {"clean": "clean", "legacy": "legacy_tensorflow"}


def smooth_noise(random: np.random.Generator, px: int) -> NDArray[np.uint8]:
    """A picture [px, px, 3] that compresses about as a photograph does."""
    small = Image.fromarray(random.integers(0, 256, (px // 8, px // 8, 3), np.uint8))
    rough = np.asarray(small.resize((px, px), Image.Resampling.BICUBIC)).astype(int)
    return (rough + random.integers(-8, 9, rough.shape)).clip(0, 255).astype(np.uint8)


def speed(folder: Path, pictures: int, rounds: int) -> tuple[list[str], float]:
    """-> the table's lines, and how many times clean-fid's images/s ours are with the clean resize."""
    layers = whole_layers().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layers(torch.zeros(1, 3, 299, 299))
    flops = counter.get_total_flops()
    weights = find_weights(write_inception(folder / "inception-2015-12-05.pt", layers), folder)
    names = [f"{i:05d}.png" for i in range(pictures)]
    (folder / "png").mkdir()
    for i, name in enumerate(names):
        Image.fromarray(smooth_noise(np.random.default_rng(i), PX)).save(folder / "png" / name)

    def ours(network: InceptionV3) -> NDArray[np.float32]:
        parts = (names[i : i + BATCH] for i in range(0, pictures, BATCH))
        files = ([(folder / "png" / name).read_bytes() for name in part] for part in parts)
        return network.extract(np.stack([read_rgb(data).transpose(2, 0, 1) for data in part]) for part in files)

    def theirs(network: torch.nn.Module, mode: str) -> NDArray[np.float32]:
        given: dict[str, Any] = {"num_workers": 0, "batch_size": BATCH, "device": torch.device("cpu"), "verbose": False}
        return fid.get_files_features([str(folder / "png" / n) for n in names], network, mode=mode, **given)

    ways: dict[tuple[str, str], Callable[[], NDArray[np.float32]]] = {}
    for resize, mode in MODES.items():
        plain = InceptionV3W(str(folder), download=False, resize_inside=resize == "legacy").eval()
        fast = InceptionV3(weights, resize)
        ways["clean-fid", resize] = lambda plain=plain, mode=mode: theirs(plain, mode)  # type: ignore[misc]
        ways["ours", resize] = lambda fast=fast: ours(fast)  # type: ignore[misc]
    found = {way: function() for way, function in ways.items()}  # warms the page cache and TorchScript, too
    times: dict[tuple[str, str], list[float]] = {way: [] for way in [*ways, ("floor", "")]}
    for _ in range(rounds):
        for way, function in ways.items():
            began = time.process_time()
            function()
            times[way].append((time.process_time() - began) / pictures)
        times["floor", ""].append(flops / best_flops())
    lines = ["| features | resize | ms an image | images/s | times clean-fid | largest difference, of the largest |"]
    lines += ["|---|---|---|---|---|---|"]
    for (who, by), spent in times.items():
        base = times["clean-fid", by or "clean"]
        ratio = statistics.median(b / s for b, s in zip(base, spent, strict=True))
        difference = ""
        if who == "ours":
            expected = found["clean-fid", by]
            difference = f"{np.abs(found[who, by] - expected).max() / np.abs(expected).max():.1e}"
        ms, rates = [1e3 * s for s in spent], [1 / s for s in spent]
        line = f"{statistics.median(ms):.0f} ({min(ms):.0f}–{max(ms):.0f}) | {statistics.median(rates):.1f}"
        lines.append(f"| {who} | {by} | {line} | {ratio:.2f} | {difference} |")
    lines += [
        "",
        f"Floor: {flops / 1e9:.2f} GFLOP an image at the rate of one large convolution; nothing read or resized.",
    ]
    pairs = zip(times["clean-fid", "clean"], times["ours", "clean"], strict=True)
    return lines, statistics.median(b / s for b, s in pairs)


def best_flops() -> float:
    """FLOP a second of the multiplications that this core does fastest: one large convolution, the best of three."""
    x = torch.randn(4, 512, 32, 32).to(memory_format=torch.channels_last)
    weight = torch.randn(512, 512, 3, 3).to(memory_format=torch.channels_last)
    best = 0.0
    for _ in range(3):
        began = time.process_time()
        torch.nn.functional.conv2d(x, weight, padding=1)
        best = max(best, 2 * 9 * 4 * 32 * 32 * 512 * 512 / (time.process_time() - began))
    return best


def parity() -> tuple[list[str], float]:
    """-> the table's lines, and the largest difference from clean-fid's Pillow result, of 255."""
    resize, lines, worst = build_resizer("clean"), ["| picture of | ours | the same in float32 |", "|---|---|---|"], 0.0
    for px in (64, 256, 512, 1024):
        picture = np.random.default_rng(px).integers(0, 256, (px, px, 3), np.uint8)
        x = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None].float()
        single = torch.nn.functional.interpolate(x, size=(299, 299), mode="bicubic", antialias=True)
        expected = resize(picture).transpose(2, 0, 1)
        off = [float(np.abs(y[0].clamp(0, 255).numpy() - expected).max()) for y in (bicubic(x, 299, 299), single)]
        lines.append(f"| {px} px | {off[0]:.1e} | {off[1]:.1e} |")
        worst = max(worst, off[0])
    return lines, worst


def streamed_mb(folder: Path, n: int) -> float:
    """By how much this process's largest memory grows while n images of 64 px become 2048 features each, in MB."""

    def images(start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        for i in range(start, stop):
            yield np.random.default_rng(i).integers(0, 256, (1, 3, 64, 64), np.uint8)

    network = RandomFeatures(2048)
    extract_all([network], images, folder / "few", 50, "noise", BATCH)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    extract_all([network], images, folder / "many", n, "noise", BATCH)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streamed", type=int, default=30_000, metavar="N")
    parser.add_argument("--memory", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)  # in a process of its own
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.memory:
        print(streamed_mb(given.memory, given.streamed))
        return 0
    warnings.simplefilter("ignore", FutureWarning)  # TorchScript's end is announced
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, __file__, "--streamed", str(given.streamed), "--memory", name]
        grown = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        with contextlib.redirect_stdout(io.StringIO()):  # clean-fid reports
            table, ratio = speed(Path(name), given.pictures, given.rounds)
    resized, worst = parity()
    today = datetime.date.today().isoformat()
    options = f"--pictures {given.pictures} --rounds {given.rounds} --streamed {given.streamed}"
    lines = [
        f"# Features for evaluation, {today}",
        "",
        f"- hardware: {cpu_name()}, one thread, no GPU; other work on the same cores",
        f"- software: Python {platform.python_version()}, torch {torch.__version__}, clean-fid 0.1.35",
        f"- commit: {commit(ROOT)}",
        f"- command: `taskset -c 1 python benchmarks/evaluation_features.py {options}`",
        f"- {given.pictures} PNG files of {PX} px, read, resized and through the network in batches of {BATCH}; the "
        "real network's layers with random weights, since the real file cannot be had here",
        "",
        f"Median of {given.rounds} rounds (smallest–largest), process time; all rows take turns.",
        "",
        *table,
        "",
        "Largest difference of the clean resize from clean-fid's Pillow result on noise, of 255:",
        "",
        *resized,
        "",
        f"{given.streamed:,} images of 64 px streamed into 2048 features each: {grown:.0f} MB above the network, of "
        f"{given.streamed * 8192 / 1e6:.0f} MB of features.",
        "",
        f"Aims: {AIM} times clean-fid's images/s: {ratio:.2f}; resize within {PARITY}: {worst:.1e}; under {MEMORY_MB} "
        f"MB: {grown:.0f}.",
    ]
    page = ROOT / "benchmarks" / "results" / f"{today}-evaluation-features.md"
    page.write_text("\n".join(lines) + "\n")
    print(page.read_text())
    return 0 if ratio >= AIM and worst <= PARITY and grown < MEMORY_MB else 1


if __name__ == "__main__":
    sys.exit(main())
