"""Shards and caption states."""

import argparse
from pathlib import Path
from typing import Any

from flows.cli.options import overrides, preset_options


def data_options(sub: argparse.ArgumentParser) -> None:
    preset_options(sub, nargs="?")
    sub.add_argument(
        "--remove",
        type=Path,
        metavar="FILE",
        help="take the samples with these keys, one per line, out of all sets of the preset's data.name, later ones "
        "included; all others keep their places in the order. Who uses a set is asked to leave and goes on afterwards",
    )
    sub.add_argument("--prune", action="store_true", help="without a preset: delete sets made here that nobody uses")
    sub.add_argument("--dry-run", action="store_true", help="say what would be made or removed, start nothing")


def data(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from flows.home import datasets, make_home
    from mdm.presets import resolve

    if arguments.preset is None:
        return _sets(arguments)
    if arguments.prune:
        raise ValueError("--prune goes without a preset: it looks at all data sets")
    from flows.data import make_set, openmoji

    preset = resolve(arguments.preset, overrides(arguments))
    if arguments.remove is not None:
        return _remove(preset.data.name, arguments)
    if preset.data.source == "prepared":
        raise ValueError(
            f"preset {preset.name} takes a dataset that is put in place by hand, at {datasets() / preset.data.name}"
        )
    source = openmoji(preset)
    print(f"{len(source.drawings)} drawings at {preset.data.resolution} px in {datasets()}")
    if arguments.dry_run:
        return 0
    make_home()
    with tqdm(total=len(source.drawings), unit="img") as bar:
        folder, _ = make_set(preset, source, lambda start: lambda done, _: _advance(bar, start + done), print)
    print(folder)
    return 0


def _sets(arguments: argparse.Namespace) -> int:
    from flows.home import datasets
    from flows.sets import list_sets, prune

    if arguments.remove is not None or arguments.set or arguments.choice or arguments.config:
        raise ValueError("--remove, --set, --choice and --config need a preset: mdm data PRESET …")
    if arguments.prune:
        prune(arguments.dry_run, print)
    else:
        print(*[entry.line() for entry in list_sets()] or [f"no data sets in {datasets()}"], sep="\n")
    return 0


def _remove(name: str, arguments: argparse.Namespace) -> int:
    from flows.removal import kept_elsewhere, remove_samples

    keys = _keys(arguments.remove)
    remove_samples(name, keys, arguments.dry_run, print)
    print(*kept_elsewhere(name, keys), sep="\n")
    return 0


def _keys(file: Path) -> set[str]:
    try:
        return {line.strip() for line in file.read_text().splitlines()} - {""}
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text (at byte {error.start}): a key per line") from error


def embed_options(sub: argparse.ArgumentParser) -> None:
    preset_options(sub)
    sub.add_argument("--dry-run", action="store_true", help="measure on a sample what each way costs, make nothing")


def embed(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from flows.data import wanted_set
    from flows.removal import hold_in_turn
    from flows.text import Captions
    from mdm.data.leases import Lease
    from mdm.presets import resolve
    from preprocessing.cost import choose
    from preprocessing.manifest import read_manifest
    from preprocessing.sets import SPLITS

    preset = resolve(arguments.preset, overrides(arguments))
    folder = wanted_set(preset)
    total = sum(read_manifest(folder / split)["samples"] for split in SPLITS)
    captions = Captions(preset, folder)
    print(f"{total} captions of {folder} by {preset.text}, embeddings: {preset.embeddings}")
    if arguments.dry_run:
        cost = captions.cost()
        print("\n".join([*cost.lines(), f"auto chooses {choose(cost)[1]}"]))
        return 0
    with Lease(folder, f"mdm embed {preset.name}"), hold_in_turn(folder, print):
        way = captions.source(print).way
        if way == "online":
            print("nothing is stored: the trainers encode")
            return 0
        with tqdm(total=total, unit="captions") as bar:
            captions.embed(way, lambda start: lambda done, _: _advance(bar, start + done))
    return 0


def _advance(bar: Any, done: int) -> None:
    bar.update(done - bar.n)
