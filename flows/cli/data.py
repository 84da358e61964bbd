"""Shards and caption states."""

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from flows.cli.options import overrides, preset_options


def data_options(sub: argparse.ArgumentParser) -> None:
    preset_options(sub)
    sub.add_argument(
        "--remove",
        type=Path,
        metavar="FILE",
        help="take out the samples with these keys, one per line; all others keep their places in the order",
    )
    sub.add_argument("--dry-run", action="store_true", help="say what would be made or removed, start nothing")


def data(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from flows.data import openmoji, remove_samples, write_splits
    from flows.home import datasets, hold, make_home
    from mdm.presets import resolve

    preset = resolve(arguments.preset, overrides(arguments))
    folder = datasets() / preset.data.name
    if arguments.remove is not None:
        keys = _keys(arguments.remove)
        with nullcontext() if arguments.dry_run else hold(folder / "lock", f"dataset {preset.data.name}"):
            print(*remove_samples(folder, keys, arguments.dry_run), sep="\n")
        return 0
    if preset.data.source == "prepared":
        raise ValueError(f"preset {preset.name} takes a dataset that is put in place by hand, at {folder}")
    source = openmoji(preset)
    print(f"{len(source.drawings)} drawings at {preset.data.resolution} px in {folder}")
    if arguments.dry_run:
        return 0
    make_home()
    with hold(folder / "lock", f"dataset {preset.data.name}"), tqdm(total=len(source.drawings), unit="img") as bar:
        write_splits(preset, source, lambda start: lambda done, _: _advance(bar, start + done))
    return 0


def _keys(file: Path) -> set[str]:
    try:
        return {line.strip() for line in file.read_text().splitlines()} - {""}
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from error


def embed_options(sub: argparse.ArgumentParser) -> None:
    preset_options(sub)
    sub.add_argument("--dry-run", action="store_true", help="measure on a sample what each way costs, make nothing")


def embed(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from flows.home import datasets, hold
    from flows.text import SPLITS, Captions
    from mdm.presets import resolve
    from preprocessing.cost import choose
    from preprocessing.manifest import read_manifest

    preset = resolve(arguments.preset, overrides(arguments))
    folder = datasets() / preset.data.name
    total = sum(read_manifest(folder / split)["samples"] for split in SPLITS)
    captions = Captions(preset, folder)
    print(f"{total} captions of {folder} by {preset.text}, embeddings: {preset.embeddings}")
    if arguments.dry_run:
        cost = captions.cost()
        print("\n".join([*cost.lines(), f"auto chooses {choose(cost)[1]}"]))
        return 0
    with hold(folder / "lock", f"dataset {preset.data.name}"):
        way = captions.source(print).way
        if way == "online":
            print("nothing is stored: the trainers encode")
            return 0
        with tqdm(total=total, unit="captions") as bar:
            captions.embed(way, lambda start: lambda done, _: _advance(bar, start + done))
    return 0


def _advance(bar: Any, done: int) -> None:
    bar.update(done - bar.n)
