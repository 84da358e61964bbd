"""Presets and models as they are configured; the authors' files."""

import argparse
import json
from pathlib import Path

from flows.cli.options import overrides, preset_options


def config_options(sub: argparse.ArgumentParser) -> None:
    preset_options(sub, nargs="?", default="cc12m-1024")
    sub.add_argument("--choices", action="store_true", help="print what the paper leaves open, with every reading")


def config(arguments: argparse.Namespace) -> int:
    from mdm.choices import table
    from mdm.presets import resolve
    from mdm.structure import to_dict

    if arguments.choices:
        print(table(), end="")
        return 0
    print(json.dumps(to_dict(resolve(arguments.preset, overrides(arguments))), indent=2))
    return 0


def models(_: argparse.Namespace) -> int:
    columns = f"{'model':30} {'resolutions (px)':>21} {'parameters':>13} {'forward GFLOP':>14}"
    print(f"{columns}   channels, innermost first", flush=True)
    from mdm.config import MODELS
    from mdm.network.costs import TOKENS, parameters, total_flops

    for name, model in MODELS.items():
        sizes = " ".join(map(str, model.resolutions))
        widths = " | ".join("/".join(map(str, level.channels)) for level in model.levels)
        print(f"{name:30} {sizes:>21} {parameters(model):13,} {total_flops(model) / 1e9:14,.2f}   {widths}", flush=True)
    print(f"(one image, {TOKENS} caption tokens, 2 FLOP per multiply-add)")
    return 0


def verify_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("folder", metavar="FOLDER", type=Path)
    sub.add_argument("--tolerance", type=float, default=1e-5, help="largest difference admitted (default 1e-5)")


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


def convert_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("file", metavar="FILE", type=Path)
    sub.add_argument("folder", metavar="FOLDER", type=Path)
    sub.add_argument("--model", metavar="NAME", help="64x64, 256x256 or 1024x1024 (default: recognised)")
    sub.add_argument("--dry-run", action="store_true", help="read and compare everything, write nothing")


def convert(arguments: argparse.Namespace) -> int:
    from mdm.released.convert import TERMS
    from mdm.released.convert import convert as convert_file

    name = convert_file(arguments.file, arguments.folder, arguments.model, arguments.dry_run)
    print(f"{arguments.file} is {name}; " + ("nothing written" if arguments.dry_run else f"now in {arguments.folder}"))
    print(f"\n{TERMS}", end="")
    return 0


def export_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("weights", metavar="WEIGHTS", type=Path, help="a weights or checkpoint folder")
    sub.add_argument("folder", metavar="FOLDER", type=Path, help="unet/nesting_level_N is made in it")
    sub.add_argument("--which", choices=("ema", "raw"), default="ema", help="of a checkpoint (default ema)")
    sub.add_argument("--dry-run", action="store_true", help="read and check the weights, write nothing")


def export(arguments: argparse.Namespace) -> int:
    from mdm.released.diffusers_export import export as export_folder

    target = export_folder(arguments.weights, arguments.folder, arguments.which, arguments.dry_run)
    print(f"{target}: " + ("nothing written" if arguments.dry_run else "written"))
    return 0
