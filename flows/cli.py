"""The console script ``mdm``: one thin verb per kind of work. Each imports its own; nothing heavy at the top."""

import argparse
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    from flows.home import Trouble

    try:
        return arguments.verb(arguments)
    except (Trouble, ValueError, FileNotFoundError) as error:
        print(f"mdm: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `mdm models | head`: nobody reads on; nor may the interpreter complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("mdm: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mdm", description="Matryoshka Diffusion Models, reproduced end to end.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, function: Any, summary: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=summary, description=summary)
        sub.set_defaults(verb=function)
        return sub

    def preset_options(sub: argparse.ArgumentParser, name: str = "preset", **preset: Any) -> None:
        sub.add_argument(name, metavar="PRESET", help="tiny, cc12m-256, cc12m-1024, imagenet-256, …", **preset)
        sub.add_argument(
            "--set", action="append", default=[], metavar="A.B=VALUE", help="replace a field (see mdm config)"
        )
        sub.add_argument(
            "--choice",
            action="append",
            default=[],
            metavar="TOPIC=READING",
            help="another reading of what the paper leaves open (see mdm config --choices)",
        )
        sub.add_argument("--config", type=Path, metavar="FILE", help="fields from a file, as mdm config prints them")

    sub = verb("run", run, "run a whole reproduction here, with a temporary Prefect server; again: it resumes")
    preset_options(sub)
    sub.add_argument("--mlflow", metavar="URI", help="log to this MLflow server instead of SQLite in MDM_HOME")
    sub.add_argument("--dry-run", action="store_true", help="check everything, show the plan, start nothing")

    sub = verb("data", data, "make a preset's shards, or take samples out of them for good")
    preset_options(sub)
    sub.add_argument(
        "--remove",
        type=Path,
        metavar="FILE",
        help="take out the samples with these keys, one per line; all others keep their places in the order",
    )
    sub.add_argument("--dry-run", action="store_true", help="say what would be made or removed, start nothing")

    sub = verb("embed", embed, "embed the captions of a preset's shards with its frozen text encoder")
    preset_options(sub)
    sub.add_argument("--dry-run", action="store_true", help="measure on a sample what each way costs, make nothing")

    sub = verb("config", config, "print a preset, whole and resolved, as JSON that --config takes back")
    preset_options(sub, nargs="?", default="cc12m-1024")
    sub.add_argument("--choices", action="store_true", help="print what the paper leaves open, with every reading")

    verb("models", models, "list the named models with resolutions, parameters and forward GFLOP")

    sub = verb("train", train, "train the job of a run folder (job.json), or go on with it; or say what it will cost")
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

    sub = verb("ema", ema, "rebuild a run's EMA with another length, from the snapshots it kept")
    sub.add_argument("run", metavar="FOLDER", type=Path, help="a training's folder, with averages/ in it")
    sub.add_argument("--length", type=float, required=True, help="sigma_rel: the width as a share of the images seen")
    sub.add_argument("--at", type=int, metavar="NIMG", help="images at which it ends (default: the newest snapshot's)")
    sub.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="weights folder to write")
    sub.add_argument("--dry-run", action="store_true", help="list the snapshots and how well they fit, write nothing")

    sub = verb("sample", sample, "draw images of a prompt of your own from a run, at all its resolutions")
    sub.add_argument("run", metavar="RUN", help="a run's name or folder")
    sub.add_argument("prompts", nargs="+", metavar="PROMPT")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--count", type=int, default=4, help="images per prompt (default 4)")
    sub.add_argument("--sampler", choices=("ddpm", "ddim", "dpmpp"), help="default: the run's")
    sub.add_argument("--steps", type=int, help="sampler steps (default: the run's)")
    sub.add_argument("--eta", type=float, help="ddim: 0 deterministic … 1 as noisy as ddpm")
    sub.add_argument(
        "--guidance", metavar="W[,W…]", help="guidance_scale per level, innermost first; one value serves all above it"
    )
    sub.add_argument("--guidance-interval", metavar="LOW,HIGH", help="times in 0..1 between which guidance is on")
    sub.add_argument("--threshold", choices=("none", "clip", "dynamic"), help="of the predicted clean image")
    sub.add_argument("--all-levels", action="store_true", help="show every resolution, not only the highest")
    sub.add_argument("--strip", action="store_true", help="also a picture of the denoising, step by step")
    sub.add_argument("-o", "--output", type=Path, help="picture to write (default: in the run's folder)")

    sub = verb("evaluate", evaluate, "measure a run's drawn samples again")
    sub.add_argument("run", metavar="RUN", help="a run's name or folder")
    sub.add_argument("--dry-run", action="store_true", help="say what would be measured, start nothing")

    sub = verb("status", status, "what is done, running and missing of a run")
    sub.add_argument("run", metavar="RUN", nargs="?", help="a run's name or folder (default: list all)")

    sub = verb("track", track, "copy a training folder's metrics and pictures into MLflow, each point once")
    sub.add_argument("run", metavar="FOLDER", type=Path)

    sub = verb("report", report, "make the report page of a records.json")
    sub.add_argument("records", metavar="RECORDS", type=Path, help="records.json, or a run's name")
    sub.add_argument("-o", "--output", type=Path, help="page to write (default: index.html beside it)")

    sub = verb("verify", verify, "prove that the networks compute the released functions (golden tensors)")
    sub.add_argument("folder", metavar="FOLDER", type=Path)
    sub.add_argument("--tolerance", type=float, default=1e-5, help="largest difference admitted (default 1e-5)")

    sub = verb("convert", convert, "turn the authors' vis_model.pth into a weights folder, running nothing from it")
    sub.add_argument("file", metavar="FILE", type=Path)
    sub.add_argument("folder", metavar="FOLDER", type=Path)
    sub.add_argument("--model", metavar="NAME", help="64x64, 256x256 or 1024x1024 (default: recognised)")
    sub.add_argument("--dry-run", action="store_true", help="read and compare everything, write nothing")

    sub = verb("export", export, "write a released model for diffusers' community pipeline")
    sub.add_argument("weights", metavar="WEIGHTS", type=Path, help="a weights or checkpoint folder")
    sub.add_argument("folder", metavar="FOLDER", type=Path, help="unet/nesting_level_N is made in it")
    sub.add_argument("--which", choices=("ema", "raw"), default="ema", help="of a checkpoint (default ema)")
    sub.add_argument("--dry-run", action="store_true", help="read and check the weights, write nothing")

    verb("deploy", deploy, "create the work pool and deploy the flows to the Prefect server at PREFECT_API_URL")
    return parser


def _overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    from mdm import choices
    from mdm.presets import merge, resolve

    whole: dict[str, Any] = {}
    if arguments.config is not None:
        try:
            whole = json.loads(arguments.config.read_text())
        except OSError as error:
            raise ValueError(f"{arguments.config}: {error.strerror}") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{arguments.config} is not JSON: {error}") from error
    for chosen in arguments.choice:
        whole = merge(whole, choices.overrides(resolve(arguments.preset, {}), chosen))
    if arguments.set:
        from flows.overrides import parse_assignments  # needs pydantic, which a GPU node may lack

        whole = merge(whole, parse_assignments(arguments.set))
    return whole


def config(arguments: argparse.Namespace) -> int:
    from mdm.choices import table
    from mdm.presets import resolve
    from mdm.structure import to_dict

    if arguments.choices:
        print(table(), end="")
        return 0
    print(json.dumps(to_dict(resolve(arguments.preset, _overrides(arguments))), indent=2))
    return 0


def run(arguments: argparse.Namespace) -> int:
    from flows.home import embed_services, hold, home, make_home
    from flows.preflight import check_machine
    from mdm.presets import resolve

    overrides = _overrides(arguments)
    preset = resolve(arguments.preset, overrides)
    make_home()
    check_machine(preset)
    if arguments.dry_run:
        from flows.reproduction import run_name, stage_names

        print(f"run {run_name(preset)} in {home() / 'runs'}: " + " → ".join(stage_names(preset)))
        return 0
    embed_services()
    if arguments.mlflow:
        os.environ["MLFLOW_TRACKING_URI"] = arguments.mlflow
    with hold(home() / "run.lock", f"MDM_HOME {home()}"):
        from flows.embedded import run_embedded

        return run_embedded(arguments.preset, overrides)


def data(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from flows.data import openmoji, remove_samples, write_splits
    from flows.home import datasets, hold, make_home
    from mdm.presets import resolve

    plan = resolve(arguments.preset, _overrides(arguments))
    folder = datasets() / plan.data.name
    if arguments.remove is not None:
        keys = _keys(arguments.remove)
        with nullcontext() if arguments.dry_run else hold(folder / "lock", f"dataset {plan.data.name}"):
            print(*remove_samples(folder, keys, arguments.dry_run), sep="\n")
        return 0
    if plan.data.source == "prepared":
        raise ValueError(f"preset {plan.name} takes a dataset that is put in place by hand, at {folder}")
    source = openmoji(plan)
    print(f"{len(source.drawings)} drawings at {plan.data.resolution} px in {folder}")
    if arguments.dry_run:
        return 0
    make_home()
    with hold(folder / "lock", f"dataset {plan.data.name}"), tqdm(total=len(source.drawings), unit="img") as bar:
        write_splits(plan, source, lambda start: lambda done, _: _advance(bar, start + done))
    return 0


def _keys(file: Path) -> set[str]:
    try:
        return {line.strip() for line in file.read_text().splitlines()} - {""}
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from error


def embed(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from flows.home import datasets, hold
    from flows.text import SPLITS, Captions
    from mdm.presets import resolve
    from preprocessing.cost import choose
    from preprocessing.manifest import read_manifest

    plan = resolve(arguments.preset, _overrides(arguments))
    folder = datasets() / plan.data.name
    total = sum(read_manifest(folder / split)["samples"] for split in SPLITS)
    captions = Captions(plan, folder)
    print(f"{total} captions of {folder} by {plan.text}, embeddings: {plan.embeddings}")
    if arguments.dry_run:
        cost = captions.cost()
        print("\n".join([*cost.lines(), f"auto chooses {choose(cost)[1]}"]))
        return 0
    with hold(folder / "lock", f"dataset {plan.data.name}"):
        way = captions.source(print).way
        if way == "online":
            print("nothing is stored: the trainers encode")
            return 0
        with tqdm(total=total, unit="captions") as bar:
            captions.embed(way, lambda start: lambda done, _: _advance(bar, start + done))
    return 0


def _advance(bar: Any, done: int) -> None:
    bar.update(done - bar.n)


def evaluate(arguments: argparse.Namespace) -> int:
    from evaluation.generate import Plan
    from evaluation.measure import measure
    from flows.home import datasets, run_folder
    from mdm.presets import Preset
    from mdm.structure import from_dict

    folder = run_folder(arguments.run)
    if not (folder / "samples" / "done.json").exists():
        raise ValueError(f"{folder} has no finished samples (`mdm status` lists runs)")
    plan = from_dict(Preset, json.loads((folder / "config.json").read_text()))
    settings, out = plan.evaluation, folder / "evaluation-again"
    print(f"{settings.num_samples} samples of {folder}, results to {out}")
    if arguments.dry_run:
        return 0
    dataset = datasets() / plan.data.name
    drawn = from_dict(Plan, json.loads((folder / "samples" / "generate.json").read_text()))
    results = measure(
        folder / "samples",
        dataset,
        drawn.text,
        out,
        settings.feature_px,
        settings.num_real,
        plan.seed,
        lambda what, done, total: print(f"\r{what} {done}/{total} ", end="", file=sys.stderr, flush=True),
    )
    print(file=sys.stderr)
    for metric in results["metrics"]:
        values = ", ".join(f"{what} {value:.4g}" for what, value in metric["values"].items())
        print(f"{metric['name']} (N={metric['n']}, {metric['better']} is better): {values}")
    return 0


def models(_: argparse.Namespace) -> int:
    from mdm.config import MODELS
    from mdm.network.costs import TOKENS, parameters, total_flops

    print(f"{'model':30} {'resolutions (px)':>21} {'parameters':>13} {'forward GFLOP':>14}   channels, innermost first")
    for name, model in MODELS.items():
        sizes = " ".join(map(str, model.resolutions))
        widths = " | ".join("/".join(map(str, level.channels)) for level in model.levels)
        print(f"{name:30} {sizes:>21} {parameters(model):13,} {total_flops(model) / 1e9:14,.2f}   {widths}")
    print(f"(one image, {TOKENS} caption tokens, 2 FLOP per multiply-add)")
    return 0


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

        print(of_preset(arguments, _overrides(arguments)))
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
    from flows.launch import torchrun

    os.execv(sys.executable, [*torchrun("mdm.train", arguments.run, processes), *options])


def ema(arguments: argparse.Namespace) -> int:
    from mdm.training.posthoc import plan, rebuild

    if arguments.dry_run:
        found = plan(arguments.run, arguments.length, arguments.at)
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


def sample(arguments: argparse.Namespace) -> int:
    from evaluation.prompts import sample_prompts
    from flows.home import run_folder, weights

    names = ("sampler", "steps", "eta", "threshold")
    sampling = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.sampler == "dpmpp":
        sampling["spacing"] = "quadratic"  # what its second order needs where little noise is left
    for name in ("guidance", "guidance_interval"):
        if (text := getattr(arguments, name)) is not None:
            sampling[name] = _numbers(text, f"--{name.replace('_', '-')}")
    pictures = sample_prompts(
        run_folder(arguments.run),
        arguments.prompts,
        weights(),
        sampling,
        seed=arguments.seed,
        count=arguments.count,
        all_levels=arguments.all_levels,
        strip=arguments.strip,
        output=arguments.output,
    )
    print(*pictures, sep="\n")
    return 0


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} takes numbers separated by commas, not {text!r}") from None


def status(arguments: argparse.Namespace) -> int:
    from flows.status import list_runs, show_run

    return list_runs() if arguments.run is None else show_run(arguments.run)


def track(arguments: argparse.Namespace) -> int:
    from flows.home import quiet_services

    quiet_services()
    from flows.tracking import Follower, Tracker, close_by_outcome

    if not (arguments.run / "metrics.jsonl").exists():
        raise ValueError(f"{arguments.run} holds no metrics.jsonl")
    follower = Follower(Tracker(arguments.run, arguments.run.resolve().name), "train", arguments.run)
    follower.finish()
    word = close_by_outcome(follower)
    print(f"{arguments.run}: {follower.nimg} images seen, {word}, in {follower.tracker.uri}")
    return 0


def report(arguments: argparse.Namespace) -> int:
    from evaluation.report import render
    from flows.home import run_folder

    records = (
        arguments.records
        if arguments.records.is_file()
        else run_folder(str(arguments.records)) / "report" / "records.json"
    )
    print(render(json.loads(records.read_text()), arguments.output or records.with_name("index.html")))
    return 0


def verify(arguments: argparse.Namespace) -> int:
    from mdm.released.verify import verify_folder

    failed, count = 0, 0
    print(f"{'largest difference':>18}  output")
    for comparison in verify_folder(arguments.folder, arguments.tolerance):
        count += 1
        failed += not comparison.passed
        mark = "" if comparison.passed else "  FAILED"
        print(f"{comparison.difference:18.2e}  {comparison.file} {comparison.output}{mark}")
    print(f"{count - failed} of {count} outputs within {arguments.tolerance:g}")
    return 1 if failed else 0


def convert(arguments: argparse.Namespace) -> int:
    from mdm.released.convert import TERMS
    from mdm.released.convert import convert as convert_file

    name = convert_file(arguments.file, arguments.folder, arguments.model, arguments.dry_run)
    print(f"{arguments.file} is {name}; " + ("nothing written" if arguments.dry_run else f"now in {arguments.folder}"))
    print(f"\n{TERMS}", end="")
    return 0


def export(arguments: argparse.Namespace) -> int:
    from mdm.released.diffusers_export import export as export_folder

    target = export_folder(arguments.weights, arguments.folder, arguments.which, arguments.dry_run)
    print(f"{target}: " + ("nothing written" if arguments.dry_run else "written"))
    return 0


def deploy(_: argparse.Namespace) -> int:
    from flows.deploy import deploy_all

    return deploy_all()


if __name__ == "__main__":
    sys.exit(main())
