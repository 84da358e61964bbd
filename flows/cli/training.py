"""One training: run it, price it, rebuild its averages."""

import argparse
import os
import sys
from pathlib import Path

from flows.cli.options import overrides, preset_options


def train_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run", metavar="FOLDER", type=Path, nargs="?")
    sub.add_argument(
        "--processes", "--gpus", type=int, metavar="N", help="on this machine (default 1; of a preset: what it wants)"
    )
    sub.add_argument(
        "--dry-run", action="store_true", help="parameters, FLOP, memory, hours and storage; check all, start nothing"
    )
    sub.add_argument("--attempt", type=int, metavar="N", help="number of this start: older ones leave")
    sub.add_argument("--tolerate", type=int, metavar="N", help="unreadable samples that others may take the place of")
    preset_options(sub, "--preset")
    sub.add_argument("--stage", metavar="NAME", help="with --preset: only this stage (default: all)")
    sub.add_argument("--gpu", default="A100", help="dry run: the GPU to reckon with (default A100)")
    sub.add_argument("--utilisation", type=float, default=0.3, help="dry run: share of its peak (default 0.3)")
    sub.add_argument("--gflops", type=float, default=30, help="dry run on CPUs: GFLOP/s per process (default 30)")


def train(arguments: argparse.Namespace) -> int:
    if arguments.preset is not None:
        if arguments.run is not None:
            raise ValueError("mdm train takes a run folder or --preset, not both")
        if not arguments.dry_run:
            raise ValueError(
                f"--preset is for --dry-run: `mdm run {arguments.preset}` trains a preset's stages, `mdm train FOLDER` "
                "the job of a run folder"
            )
        from flows.costs import of_preset

        print(of_preset(arguments, overrides(arguments)))
        return 0
    if arguments.run is None:
        raise ValueError("mdm train needs a run folder, or --preset NAME --dry-run")
    if arguments.set or arguments.choice or arguments.config or arguments.stage:
        raise ValueError("--set, --choice, --config and --stage go with --preset: a run folder's job.json is complete")
    from mdm.run.job import load_job
    from mdm.training.train import main as train_here

    job, processes = load_job(arguments.run), arguments.processes or 1
    if arguments.dry_run:
        from flows.costs import of_job

        print(of_job(arguments, job))
        return 0
    options = [
        f"--{name}={value}" for name in ("attempt", "tolerate") if (value := getattr(arguments, name)) is not None
    ]
    if processes == 1:
        return train_here([str(arguments.run), *options])
    from mdm.run.torchrun import torchrun, torchrun_environment

    os.environ |= torchrun_environment(arguments.run)
    os.execv(sys.executable, [*torchrun("mdm.train", arguments.run, processes), *options])


def ema_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run", metavar="FOLDER", type=Path, help="a training's folder, with averages/ in it")
    sub.add_argument("--length", type=float, required=True, help="sigma_rel: the width as a share of the images seen")
    sub.add_argument("--at", type=int, metavar="NIMG", help="images at which it ends (default: the newest snapshot's)")
    sub.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="weights folder to write")
    sub.add_argument("--dry-run", action="store_true", help="list the snapshots and how well they fit, write nothing")


def ema(arguments: argparse.Namespace) -> int:
    from mdm.training.posthoc import best_fit, rebuild

    if arguments.dry_run:
        found = best_fit(arguments.run, arguments.length, arguments.at)
    elif arguments.output is None:
        raise ValueError("mdm ema needs -o FOLDER to write to, or --dry-run")
    else:
        found = rebuild(arguments.run, arguments.length, arguments.at, arguments.output)
    print(*found.passed_over, f"{'snapshot at':>15} {'length':>7} {'weight':>9}", sep="\n")
    for snapshot, weight in zip(found.snapshots, found.weights, strict=True):
        print(f"{snapshot.profile.nimg:15,} {snapshot.profile.sigma_rel:7.3f} {weight:9.4f}")
    print(
        f"length {arguments.length:g} at {found.wanted.nimg:,} images, its profile met but for {found.error:.2%}: ",
        end="",
    )
    print("nothing written" if arguments.dry_run else f"now in {arguments.output}", flush=True)
    found.check()
    return 0
