"""Pictures out of a run, and their measures."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from flows.cli.options import part_of
from mdm.config import Device, SamplerName, Threshold

if TYPE_CHECKING:
    from flows.measuring.plan import Evaluation


class _InsteadOf(argparse.Action):
    """An option that takes the place of positional arguments (with nargs="*" none may follow another option)."""

    def __init__(self, *given: Any, place: argparse.Action, **options: Any) -> None:
        super().__init__(*given, **options)
        self.place = place

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, values)
        self.place.required = False


def sample_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run", metavar="RUN", help="a run's name or folder")
    prompts = sub.add_argument("prompts", nargs="+", metavar="PROMPT")
    sub.add_argument(
        "--prompts",
        action=_InsteadOf,
        place=prompts,
        dest="file",
        type=Path,
        metavar="FILE",
        help="a .txt (a prompt a line) or .jsonl (objects with a prompt): single pictures and a manifest.jsonl, as "
        "GenEval and others take them; again: what is missing",
    )
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--count", type=int, default=4, help="images per prompt (default 4)")
    sub.add_argument("--sampler", choices=get_args(SamplerName), help="default: the run's")
    sub.add_argument("--steps", type=int, help="sampler steps (default: the run's)")
    sub.add_argument("--eta", type=float, help="ddim: 0 deterministic … 1 as noisy as ddpm")
    sub.add_argument(
        "--guidance", metavar="W[,W…]", help="guidance_scale per level, innermost first; one value serves all above it"
    )
    sub.add_argument("--guidance-interval", metavar="LOW,HIGH", help="times in 0..1 between which guidance is on")
    sub.add_argument("--negative", metavar="TEXT", default="", help="what guidance leads away from (default: nothing)")
    sub.add_argument("--threshold", choices=get_args(Threshold), help="of the predicted clean image")
    sub.add_argument("--all-levels", action="store_true", help="show every resolution, not only the highest")
    sub.add_argument("--strip", action="store_true", help="also a picture of the denoising, step by step")
    sub.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="of the run (default: its last)")
    sub.add_argument("--device", choices=get_args(Device), default="auto", help="what draws (default: a GPU, if any)")
    sub.add_argument("-o", "--output", metavar="FILE", help="picture, or FOLDER/ (default: in the run's folder)")


def sample(arguments: argparse.Namespace) -> int:
    from evaluation.images.manifest import draw_prompts, read_prompts
    from evaluation.images.prompts import open_drawing, sample_prompts
    from flows.home import run_folder, weights

    names = ("sampler", "steps", "eta", "threshold")
    sampling = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.sampler is not None:
        sampling["spacing"] = None  # that one's, not the run's
    for name in ("guidance", "guidance_interval"):
        if (text := getattr(arguments, name)) is not None:
            sampling[name] = _numbers(text, f"--{name.replace('_', '-')}")
    if len(sampling.get("guidance_interval", "01")) != 2:
        raise ValueError(f"--guidance-interval takes two numbers, LOW,HIGH, not {arguments.guidance_interval!r}")
    if bool(arguments.prompts) == (arguments.file is not None):
        raise ValueError("give prompts, or a file of them (--prompts FILE)")
    if arguments.file is not None:
        if arguments.strip or arguments.all_levels:
            raise ValueError("--strip and --all-levels are of prompts given one by one, not of --prompts FILE")
        entries, run = read_prompts(arguments.file), run_folder(arguments.run)
        drawing = open_drawing(run, sampling, arguments.checkpoint, arguments.device, arguments.negative)
        folder = Path(arguments.output) if arguments.output else run / "prompts" / arguments.file.stem
        print(draw_prompts(drawing, entries, weights(), arguments.seed, arguments.count, folder))
        return 0
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
        checkpoint=arguments.checkpoint,
        device=arguments.device,
        negative=arguments.negative,
    )
    print(*pictures, sep="\n")
    return 0


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} takes numbers separated by commas, not {text!r}") from None


def evaluate_options(sub: argparse.ArgumentParser) -> None:
    from evaluation.protocols import PROTOCOLS

    sub.add_argument(
        "run",
        metavar="RUN",
        nargs="?",
        help="a run's name or folder, or RUN/STAGE for one of its stages that is not the last; with --dry-run also a "
        "preset, or PRESET/STAGE",
    )
    sub.add_argument("--protocol", choices=PROTOCOLS, help="what to draw and how to measure it (without: see below)")
    sub.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="WHAT=A,B…",
        help="measure at each of several: guidance (per level: 3/2/1), steps, sampler, checkpoint (or checkpoint=all)",
    )
    sub.add_argument("--processes", type=int, default=0, help="that draw (default: the preset's)")
    sub.add_argument(
        "--part",
        type=part_of,
        metavar="I/N",
        help="draw every N-th batch of images, from the I-th on, and measure nothing: N machines share a folder",
    )
    sub.add_argument("--mlflow", metavar="URI", help="log to this MLflow server instead of SQLite in MDM_HOME")
    sub.add_argument("--released", type=Path, metavar="FILE", help="of the authors' checkpoints, instead of a run")
    sub.add_argument(
        "--npz", action="store_true", help="also each point's images as one file, as ADM's suite takes them"
    )
    sub.add_argument(
        "--fast", action="store_true", help="measure images as they are drawn, and keep none: published networks only"
    )
    sub.add_argument("--dry-run", action="store_true", help="say what would be drawn and measured, start nothing")
    sub.epilog = (
        "Without --protocol, --sweep draws under embedded, and --released under mdm-released. Without all three the "
        "samples that the run drew are measured again."
    )


def evaluate(arguments: argparse.Namespace) -> int:
    if arguments.released is not None and arguments.run is not None:
        raise ValueError(f"--released FILE is instead of a run: leave {arguments.run} out")
    if arguments.released is not None:
        return _by_protocol(arguments)
    if arguments.run is None:
        raise ValueError("name a run (`mdm status` lists them), or --released FILE")
    if arguments.protocol or arguments.sweep:
        return _by_protocol(arguments)
    if given := [name for name in ("npz", "fast", "part", "processes", "mlflow") if getattr(arguments, name)]:
        raise ValueError(f"--{given[0]} is of the images that a protocol draws: give --protocol")
    return _again(arguments)


def _sweep(given: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in given:
        what, equals, values = text.partition("=")
        if not equals or not all(values.split(",")):
            raise ValueError(f"--sweep {text!r} is not of the form WHAT=A,B")
        if what in found:
            raise ValueError(f"--sweep {what} is given twice: write all its values in one")
        found[what] = values.split(",")
    return found


def _by_protocol(arguments: argparse.Namespace) -> int:
    from evaluation.protocols import PROTOCOLS
    from flows.home import embed_services, hold, home, make_home, run_folder
    from mdm.presets import PRESETS

    make_home()
    for line in embed_services(arguments.mlflow):
        print(f"mdm: {line}", file=sys.stderr)
    from flows.measuring.plan import plan
    from flows.measuring.released import plan_released
    from flows.measuring.told import plan_lines, preset_lines, result_lines
    from flows.starting.embedded import embedded
    from flows.sweep import check_fast, evaluation

    released: Path | None = arguments.released
    protocol: Any = arguments.protocol or ("embedded" if released is None else "mdm-released")
    sweep = _sweep(arguments.sweep)
    check_fast(protocol, arguments.fast, arguments.npz)
    if arguments.fast and arguments.part:
        raise ValueError("--fast keeps no image, which --part draws for others: leave one of them out")
    preset, _, stage = (arguments.run or "").rstrip("/").partition("/")
    if arguments.dry_run and preset in PRESETS and not run_folder(preset).exists():
        print(*preset_lines(preset, stage, PROTOCOLS[protocol], sweep), sep="\n")
        return 0
    planned = plan(arguments.run, protocol, sweep) if released is None else plan_released(released, protocol, sweep)
    lines = planned.lacks()
    print(*plan_lines(planned), *(f"missing: {line}" for line in lines), sep="\n")
    if arguments.dry_run:
        return 0
    if lines:
        raise ValueError(f"protocol {protocol} cannot be measured here: what is missing stands above")
    if arguments.part:
        return _draw_part(planned, arguments)
    with hold(home() / "run.lock", f"MDM_HOME {home()}"):
        run = arguments.run if released is None else str(released.resolve())
        code = embedded(
            lambda: evaluation(
                run, protocol, sweep, arguments.processes, released is not None, arguments.npz, arguments.fast
            )
        )
    if code == 0:
        print(*result_lines(planned.folder), planned.folder / "results.json", sep="\n")
    return code


def _draw_part(planned: "Evaluation", arguments: argparse.Namespace) -> int:
    from flows.measuring.drawing import draw_part, with_processes
    from flows.measuring.released import write_weights

    if arguments.released is not None:
        write_weights(arguments.released, planned)
    preset = with_processes(planned.preset, arguments.processes)
    missing = draw_part(planned, preset, arguments.part, lambda line: print(f"mdm: {line}", file=sys.stderr))
    rest = f"{missing:,} images of other parts are missing" if missing else "so are the others"
    print(f"part {arguments.part[0]}/{arguments.part[1]} is drawn, {rest}; without --part the same command measures")
    return 0


def _again(arguments: argparse.Namespace) -> int:
    from evaluation.measuring.measure import measure
    from flows.datasets.sets import set_of_samples, told_outside
    from flows.home import run_folder
    from mdm.data.embeddings import TextSource
    from mdm.data.leases import Lease
    from mdm.files import load_json
    from mdm.presets import load_preset
    from mdm.structure import from_dict

    folder = run_folder(arguments.run)
    if not (folder / "samples" / "done.json").exists():
        raise ValueError(f"{folder} has no finished samples (`mdm status` lists runs)")
    preset = load_preset(folder / "config.json")
    settings, out = preset.evaluation, folder / "evaluation-again"
    drawn = load_json(folder / "samples" / "generate.json")
    text, dataset = drawn["text"], set_of_samples(drawn["data"], drawn.get("data_digest", ""))
    told = f"{settings.num_samples} samples of {folder}, results to {out}"
    print(told, *told_outside(dataset), sep="\n")
    if arguments.dry_run:
        return 0
    with Lease(dataset, f"mdm evaluate {arguments.run}"):
        results = measure(
            folder / "samples",
            dataset,
            None if text is None else from_dict(TextSource, text),
            out,
            folder / "features",
            settings,
            preset.seed,
            lambda what, done, total: print(f"\r{what} {done}/{total} ", end="", file=sys.stderr, flush=True),
        )
    print(file=sys.stderr)
    for metric in results["metrics"]:
        values = ", ".join(f"{what} {value:.4g}" for what, value in metric["values"].items())
        print(f"{metric['name']} (N={metric['n']}, {metric['better']} is better): {values}")
    return 0
