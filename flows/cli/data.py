"""Shards and caption states."""

import argparse
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flows.cli.options import field_options, overrides, part_of, preset_options

EXAMPLES = """examples:
  mdm data                                    what there is, what is here, who uses it
  mdm data mine --source PICTURES --dry-run   what it would hold, weigh and take
  mdm data mine --source PICTURES             make it; again: it goes on where it was
  mdm data mine --verify --decode             compare it with its digests, read every picture
  mdm data mine --remove KEYS.txt             take samples out of it for good
  mdm data cc12m --source cc12m.tsv --part 3/8 --contact me@example.org
"""


def data_options(sub: argparse.ArgumentParser) -> None:
    sub.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=26)
    sub.epilog = EXAMPLES
    sub.add_argument("name", metavar="NAME", nargs="?", help="a data set, a preset, or a new name for your own")
    make = sub.add_argument_group("to make one")
    make.add_argument("--source", type=Path, metavar="PATH", help="what it is made of; else MDM_HOME/sources/NAME")
    make.add_argument("--limit", type=_count, metavar="N", help="only N of what the source lists")
    make.add_argument("--held-out", type=_share, default=0.0, metavar="SHARE", help="another share than the set's own")
    make.add_argument("--drop-duplicates", action="store_true", help="keep one of equal pictures")
    make.add_argument("--part", type=part_of, default=(1, 1), metavar="I/N", help="only every N-th shard, from I on")
    make.add_argument("--dry-run", action="store_true", help="only say what would be made, removed or deleted")
    make.add_argument("--sheet", action=argparse.BooleanOptionalAction, help="samples on its card, or none")
    web = sub.add_argument_group("to download")
    web.add_argument("--allow", action="append", default=[], metavar="HOST:PORT", help="an address that is not public")
    web.add_argument("--proxy", default="", metavar="URL", help="your site's own, which then decides addresses")
    web.add_argument("--contact", default="", metavar="ADDRESS", help="whom servers may ask about the downloads")
    finished = sub.add_argument_group("of finished sets")
    one = finished.add_mutually_exclusive_group()
    one.add_argument("--verify", action="store_true", help="compare the newest one with its manifests")
    finished.add_argument("--decode", action="store_true", help="with --verify: read every picture, too")
    one.add_argument("--remove", type=Path, metavar="FILE", help="take out samples for good: a key per line")
    one.add_argument("--prune", action="store_true", help="delete those that nobody uses")
    field_options(sub.add_argument_group("of a preset, whose set is then meant"))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share between 0 and 1")
    return share


def data(arguments: argparse.Namespace) -> int:
    from mdm.presets import PRESETS, resolve
    from preprocessing.catalogue import Options, find

    if arguments.name is None:
        return _sets(arguments)
    name, limit, held_out = arguments.name, arguments.limit or 0, arguments.held_out
    if name in PRESETS:
        chosen = resolve(name, overrides(arguments, name)).data
        name, limit, held_out = chosen.name, limit or chosen.limit, held_out or chosen.val_fraction
    elif arguments.set or arguments.choice or arguments.config:
        raise ValueError(
            f"--set, --choice and --config change a preset's fields; {name} is a data set (--limit, --held-out)"
        )
    options = Options(limit=limit, held_out=held_out, drop_duplicates=arguments.drop_duplicates)
    if arguments.decode and not arguments.verify:
        raise ValueError("--decode goes with --verify")
    if arguments.source is not None and not find(name).wants:
        raise ValueError(f"{name} is made of the installed packages and takes no --source")
    if arguments.prune:
        from flows.datasets.sets import prune

        prune(name, arguments.dry_run, print)
        return 0
    if arguments.remove is not None:
        return _remove(name, arguments)
    return _verify(name, arguments.decode) if arguments.verify else _make(name, options, arguments)


def _make(name: str, options: Any, arguments: argparse.Namespace) -> int:
    from joblib import cpu_count

    from flows.datasets.making import count_items, list_set, make_set, newest_made, open_source
    from flows.datasets.sets import did_you_mean, under_way
    from flows.home import datasets, make_home, sources
    from mdm.presets import PRESETS
    from preprocessing.catalogue import CATALOGUE, find
    from preprocessing.fetch.download import Policy
    from preprocessing.items import printable
    from preprocessing.plan import plan_lines
    from preprocessing.sets import finished_sets

    given = arguments.source
    if given is not None and not given.exists() and not glob(str(given), recursive=True):
        raise ValueError(f"--source {given}: there is no such file or folder")
    policy = Policy(allow=tuple(arguments.allow), proxy=arguments.proxy, contact=arguments.contact)
    opened = open_source(name, options, given)
    if opened is None:
        if not finished_sets(datasets(), name):
            wants = f"{name} needs a source: --source PATH, or {sources() / name}: {find(name).wants}"
            raise ValueError(wants + did_you_mean(name, *PRESETS))
        return _show(newest_made(name, options), find(name), arguments)
    if name not in CATALOGUE and opened.made() is None and (meant := did_you_mean(name)):
        print(f"{name} is no data set of the paper{meant}")
    print(f"{name}: {opened.row.summary}\nterms: {opened.row.licence}; {opened.row.terms}")
    if opened.made() is None and not arguments.dry_run:
        make_home()
    if opened.made() is None:
        for line in plan_lines(opened.source, opened.recipe, arguments.part[1], cpu_count(), arguments.proxy):
            print(printable(line))
    if arguments.dry_run:
        made = opened.made()
        print(f"to be made: {opened.folder}{under_way(opened.folder)}" if made is None else f"made already: {made}")
        return 0
    unit = "clips" if opened.row.clips else "img"
    with tqdm(total=count_items(list_set(opened, print), arguments.part), unit=unit, smoothing=0.1) as bar:

        def show(done: int, of_use: str) -> None:
            if bar.n == 0:  # what was there before is not this command's speed
                bar.initial = done
            bar.set_postfix_str(of_use, refresh=False)
            _advance(bar, done)

        folder = make_set(opened, show, print, arguments.part, policy)
    if folder is None:
        return 0  # what is missing was said
    return _show(folder, opened.row, arguments)


def _show(folder: Path, row: Any, arguments: argparse.Namespace) -> int:
    """What a finished set holds, where it lies, and what was trained on samples that it has no more."""
    from flows.datasets.cards import keep_card
    from flows.datasets.takedown import trained_on_removed
    from preprocessing.cards.card import card_lines
    from preprocessing.catalogue import CATALOGUE
    from preprocessing.sets import PAGE

    if not arguments.dry_run:
        keep_card(folder, row.about, print, arguments.sheet)
    page = [str(folder / PAGE)] if (folder / PAGE).exists() else []
    print(*card_lines(folder), folder, *page, *trained_on_removed(row.name), sep="\n")
    if row.name not in CATALOGUE and not row.clips:
        print(f"next: .venv/bin/mdm run tiny --set data.name={row.name}")
    return 0


def _verify(name: str, decode: bool) -> int:
    from flows.datasets.making import PIXELS
    from flows.datasets.sets import sets_named
    from preprocessing.manifest import read_manifest, samples_left
    from preprocessing.sets import folders_of
    from preprocessing.verify import decode_all, verify_set

    folder = sets_named(name)[-1]
    verify_set(folder)
    if decode:
        for part in folders_of(folder):
            total = samples_left(read_manifest(part))
            with tqdm(desc=str(part.relative_to(folder)), total=total, unit="img") as bar:
                decode_all(part, PIXELS.read_rgb, bar.update)
    print(f"{folder} is whole" + (", and every picture can be read" if decode else ""))
    return 0


def _sets(arguments: argparse.Namespace) -> int:
    from flows.datasets.sets import overview, prune

    given = ("remove", "source", "limit", "verify", "set", "choice", "config")
    if named := [f"--{name}" for name in given if getattr(arguments, name)]:
        raise ValueError(f"{', '.join(named)}: name a data set, too (`mdm data` lists them)")
    if arguments.prune:
        prune(None, arguments.dry_run, print)
    else:
        print(*overview(), sep="\n")
    return 0


def _remove(name: str, arguments: argparse.Namespace) -> int:
    from flows.datasets.cards import keep_card
    from flows.datasets.removal import kept_elsewhere, remove_samples
    from flows.datasets.takedown import trained_on_removed
    from flows.home import datasets
    from preprocessing.catalogue import find
    from preprocessing.sets import finished_sets, set_name

    keys, name = _keys(arguments.remove), set_name(datasets(), name)
    remove_samples(name, keys, arguments.dry_run, print)
    for folder in () if arguments.dry_run else finished_sets(datasets(), name):
        keep_card(folder, find(name).about, print)
    for line in chain(kept_elsewhere(name, keys), trained_on_removed(name)):
        print(line)
    return 0


def _keys(file: Path) -> set[str]:
    try:
        lines = file.read_bytes().decode("utf-8-sig").split("\n")  # an old set's key may hold any other end of a line
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}; --remove takes a file with a key per line") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text (at byte {error.start}): a key per line") from error
    if not (keys := {line.rstrip("\r") for line in lines if line.strip()}):
        raise ValueError(f"{file} names no key: give one per line")
    return keys


def embed_options(sub: argparse.ArgumentParser) -> None:
    preset_options(sub)
    sub.add_argument("--part", type=part_of, default=(1, 1), metavar="I/N", help="only every N-th shard, from I on")
    sub.add_argument("--dry-run", action="store_true", help="measure on a sample what each way costs, make nothing")


def embed(arguments: argparse.Namespace) -> int:
    from flows.data import wanted_set
    from flows.datasets.parts import hold_in_turn, in_turn, part_lock
    from flows.datasets.text import Captions, captions_of
    from flows.home import datasets
    from mdm.data.leases import Lease
    from mdm.presets import PRESETS, resolve
    from preprocessing.catalogue import CATALOGUE
    from preprocessing.cost import choose
    from preprocessing.sets import SPLITS, finished_sets

    name = arguments.preset
    if name not in PRESETS and (name in CATALOGUE or finished_sets(datasets(), name)):
        raise ValueError(
            f"{name} is a data set, whose captions any preset's encoder can embed: `mdm embed PRESET --set "
            f"data.name={name}` (PRESET: {', '.join(key for key, one in PRESETS.items() if one.text)})"
        )
    preset = resolve(arguments.preset, overrides(arguments))
    folder = wanted_set(preset)
    part, total = arguments.part, sum(captions_of(folder / split, arguments.part) for split in SPLITS)
    captions = Captions(preset, folder)
    print(f"{total} captions of {folder} by {preset.text}, embeddings: {preset.embeddings}")
    if arguments.dry_run:
        cost = captions.cost()
        print("\n".join([*cost.lines(), f"auto chooses {choose(cost)[1]}"]))
        return 0
    with Lease(folder, f"mdm embed {preset.name}"), in_turn(lambda: part_lock(folder, "text", part), print):
        with hold_in_turn(folder, print):  # of several parts one measures what is cheapest
            way = captions.source(print).way
        if way == "online":
            print("nothing is stored: the trainers encode")
            return 0
        with tqdm(total=total, unit="captions") as bar:
            missing = captions.embed(way, lambda start: lambda done, _: _advance(bar, start + done), part)
    if missing:
        print(f"this part is made; {missing:,} shards are missing: whoever makes the last of them finishes the set")
    return 0


def _advance(bar: Any, done: int) -> None:
    bar.update(done - bar.n)
