"""A set from its list to its manifests: what is missing is packed, and who finds everything there finishes it.

Any number of processes and machines may work on the shards of one folder, each on its part (I of N); no two write the
same shard. Lists, shards and markers say what is done, so that the same command goes on after any kill.
"""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import Any

from preprocessing.cards.card import duplicates
from preprocessing.fetch.download import Policy, discard_raw, download, read_raw
from preprocessing.items import Split
from preprocessing.manifest import (
    all_there,
    data_digest,
    digest,
    make_folder,
    read_json,
    read_manifest,
    read_marker,
    samples_left,
    write_json,
)
from preprocessing.pack.lists import SPLITS, read_items, shard_numbers, shard_size
from preprocessing.pack.rows import read_rows
from preprocessing.pack.shards import Pixels, Recipe, Shard, Tier, pack_shard
from preprocessing.pack.tally import Progress, Tally, count_for
from preprocessing.remove import Removed, reapply, removed_keys
from preprocessing.sets import DROPPED

LOOK_S = 0.5  # between two looks at what the workers have packed
VAL = 1_000_000  # what the downloader adds to the numbers of val's shards: it knows no splits


@dataclass(frozen=True)
class Web:
    """How URLs are fetched."""

    policy: Policy
    processes: int = 2
    threads: int = 32  # of each process
    address: Callable[[str, str], str] = lambda key, url: url  # key, URL in the list -> what is asked


def make_shards(
    folder: Path,
    lists: Path,
    root: Path,
    plan: dict[str, Any],
    recipe: Recipe,
    pixels: Pixels,
    workers: int,
    progress: Progress = lambda done, yield_: None,
    part: tuple[int, int] = (1, 1),
    web: Web | None = None,
) -> None:
    """Write the shards of a part that are missing. In a finished set they must become what they were.

    ``root``: what the lists' files lie below, now. What is held out comes first: where nothing of it can be used, that
    is said before the long work. Raises ValueError then, and as ``pack_shard`` and ``download`` do.
    """
    for split in SPLITS:
        for tier in recipe.tiers:
            make_folder(recipe.tier_folder(folder / split, tier))
    missing, tally = [], Tally(progress, web is not None)
    for split, number in sorted(shard_numbers(plan, part), key=lambda numbered: numbered[0] != "val"):
        shard = Shard(folder, recipe, split, number)
        entries, size = shard.entries(), shard_size(plan, split, number)
        if entries is None:
            missing.append(shard)
            tally.missing += size
        else:
            tally.there += size
            tally.there_usable += entries[recipe.tiers[0]]["samples"]
    tally.tell()
    _refuse_empty_val(folder, plan, recipe)
    if not missing:
        return

    def pack(shard: Shard) -> Future[None]:
        answers = None if web is None else partial(read_raw, raw, _code(shard))
        with _unheard():
            return pool.submit(pack_shard, shard, lists, root, pixels, answers, _made_before(shard))

    raw = folder / "raw" / f"{part[0]}-of-{part[1]}"  # of its own: parts go on at the same time
    with _pool(folder, min(workers, len(missing)), tally) as pool:
        ready = iter(missing) if web is None else _fetched(missing, lists, root, raw, web, tally)
        for shard in _packed(ready, pack, 2 * workers, tally):
            if web is not None:
                discard_raw(raw, _code(shard))
            tally.made += shard_size(plan, shard.split, shard.number)
            tally.made_usable += (shard.entries() or {})[recipe.tiers[0]]["samples"]
            tally.tell()
            if shard.split == "val":
                _refuse_empty_val(folder, plan, recipe)


def _refuse_empty_val(folder: Path, plan: dict[str, Any], recipe: Recipe) -> None:
    """Raises ValueError where all that is held out was tried, by all parts, and none of it can be used."""
    shards = (Shard(folder, recipe, split, number) for split, number in shard_numbers(plan) if split == "val")
    made = (shard.entries() for shard in shards)
    none = all(entries is not None and not entries[recipe.tiers[0]]["samples"] for entries in made)
    if plan["items"]["val"] and none:
        raise _empty(folder / "val", plan["items"]["val"])


def _made_before(shard: Shard) -> dict[Tier, dict[str, Any]]:
    """What is known of a shard that is lost from a finished set, in each tier."""
    found = {}
    for tier, path in shard.paths.items():
        manifest = read_json(path.parent / "manifest.json") and read_manifest(path.parent)
        marker = read_marker(path)
        named = [entry for entry in manifest["shards"] if entry["file"] == path.name] if manifest else []
        if not named and marker is not None and "removed" in marker["shard"]:  # the manifest is lost, too
            named = [marker["shard"]]
        if named:
            found[tier] = named[0]
    return found


def _fetched(missing: list[Shard], lists: Path, root: Path, raw: Path, web: Web, tally: Tally) -> Iterator[Shard]:
    """The shards, each when its answers lie in ``raw``."""
    by_code = {_code(shard): shard for shard in missing}

    def rows(code: int) -> list[tuple[str, str]]:
        items = read_items(lists, root, by_code[code].split, by_code[code].number)
        return [(item.key, web.address(item.key, item.url)) for item in items if not item.problem]

    for code in download(list(by_code), rows, raw, web.policy, web.processes, web.threads, tally.add_asked):
        yield by_code[code]


def _code(shard: Shard) -> int:
    return shard.number + (VAL if shard.split == "val" else 0)


def _packed(ready: Iterator[Shard], pack: Callable[[Shard], Future[None]], ahead: int, tally: Tally) -> Iterator[Shard]:
    """The shards, each when it is packed; at most ``ahead`` are given out at once."""
    running: dict[Future[None], Shard] = {}

    def over(most: int) -> Iterator[Shard]:
        """Those that are packed, once no more than ``most`` are not."""
        while True:
            full = len(running) > most
            done = wait(running, timeout=LOOK_S if full else 0, return_when=FIRST_COMPLETED).done
            yield from (_result(future, running) for future in done)
            if len(running) <= most:
                return
            tally.tell()

    for shard in ready:
        running[pack(shard)] = shard
        yield from over(ahead - 1)
    yield from over(0)


def _result(future: Future[None], running: dict[Future[None], Shard]) -> Shard:
    future.result()
    return running.pop(future)


@contextmanager
def _pool(folder: Path, workers: int, tally: Tally) -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(tally.packed,)
    )
    others = set(active_children())
    try:
        yield pool
    except (KeyboardInterrupt, SystemExit):  # what is half written is written again: nobody waits for it
        for worker in set(active_children()) - others:
            worker.kill()
        raise
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"a process that wrote shards into {folder} was killed (out of memory?): run the same command again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, don't write the rest first


@contextmanager
def _unheard() -> Iterator[None]:
    """Processes that are started meanwhile never hear of Ctrl-C, which a terminal sends to all: their parent ends them,
    and no traceback of theirs stands among its lines. Itself it hears of it afterwards, not with one half started.
    """
    heard: list[tuple[int, Any]] = []
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    main = threading.current_thread() is threading.main_thread()  # Python's handlers run there alone
    before = signal.getsignal(signal.SIGINT)
    if main and callable(before):  # it runs even so: other threads take the signal
        signal.signal(signal.SIGINT, lambda *what: heard.append(what))
    try:
        yield
    finally:
        if main and callable(before):
            signal.signal(signal.SIGINT, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if heard and callable(before):
            before(*heard[0])


def _start_worker(packed: Any) -> None:
    count_for(packed)
    os.environ["VIPS_CONCURRENCY"] = "1"  # the processes are the parallelism
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A pool's workers outlive a parent that was killed, and wait for ever."""
    parent = parent_process()
    assert parent is not None
    wait_for_any([parent.sentinel])
    os._exit(1)


def missing_shards(folder: Path, plan: dict[str, Any], recipe: Recipe) -> list[Shard]:
    """The shards that are still to be made, of all parts."""
    shards = (Shard(folder, recipe, split, number) for split, number in shard_numbers(plan))
    return [shard for shard in shards if shard.entries() is None]


def is_whole(folder: Path, recipe: Recipe) -> bool:
    """Whether a finished set still has its manifests and every file that they name."""
    for split in SPLITS:
        for tier in recipe.tiers:
            place = recipe.tier_folder(folder / split, tier)
            if read_json(place / "manifest.json") is None:
                return False
            manifest = read_manifest(place)
            if not all_there(place, manifest, ".tar", ".idx.npy"):
                return False
            # Of another size: a kill came while it was made again. It may hold samples that had been removed.
            if any((place / shard["file"]).stat().st_size != shard["bytes"] for shard in manifest["shards"]):
                return False
    return True


def finish_set(
    folder: Path,
    plan: dict[str, Any],
    recipe: Recipe,
    terms: dict[str, str],
    removed: Removed = {},  # noqa: B006
) -> list[dict[str, Any]]:
    """The manifests of a set whose shards are all there -> those of its splits.

    What was ``removed`` from other sets, and duplicates where the recipe drops them, are taken out before. Raises
    ValueError where a split came out empty though its list is not, or nothing is left of it.
    """
    dropped = set((read_json(folder / DROPPED) or {"keys": []})["keys"])
    if recipe.drop_duplicates:  # those of before stay: of which one they had the bytes may be forgotten
        dropped |= duplicates(folder)
    if dropped:
        write_json(folder / DROPPED, {"keys": sorted(dropped)})
    manifests = []
    for split in SPLITS:
        shards = (Shard(folder, recipe, split, number) for of, number in shard_numbers(plan) if of == split)
        made = [shard.entries() or {} for shard in shards]
        entries = [entry for entry in made if entry[recipe.tiers[0]]["samples"]]
        if plan["items"][split] and not entries:
            raise _empty(folder / split, plan["items"][split])
        digests: dict[str, str] = {}
        for tier in reversed(recipe.tiers):
            place = recipe.tier_folder(folder / split, tier)
            _remove_leftovers(place, {Path(entry[tier]["file"]).stem for entry in entries})
            manifest = {
                "format": 1,
                "name": recipe.name,
                "split": split,
                "resolution_px": tier.px,
                "image_ext": tier.image_ext,
                "samples": sum(entry[tier]["samples"] for entry in entries),
                "shards": [entry[tier] for entry in entries],
                "source": recipe.source,
                **terms,
                "inputs": split_inputs(recipe, split),
            }
            if recipe.clips:
                manifest["frames"] = 16
            if tier == recipe.tiers[0] and digests:
                manifest["tiers"] = digests
            manifest["digest"] = data_digest(manifest)
            if tier != recipe.tiers[0]:
                digests[tier.name] = manifest["digest"]
            manifest = reapply(place, manifest, dropped, removed)
            if entries and not samples_left(manifest):
                raise _emptied(place, manifest["samples"], len(removed_keys(place) & dropped))
            write_json(place / "manifest.json", manifest)
        manifests.append(manifest)
    return manifests


def _empty(folder: Path, listed: int) -> ValueError:
    counts = Counter(read_rows(folder, ["outcome"])["outcome"].to_pylist())
    said = ", ".join(f"{outcome}: {count:,}" for outcome, count in counts.most_common(5))
    if counts.keys() == {"refused: address"}:
        return ValueError(
            f"{folder}: none of {listed:,} listed URLs has a public address: the same command with --allow HOST:PORT "
            "asks them again"
        )
    return ValueError(
        f"{folder}: none of {listed:,} listed items became a sample ({said}). Mend that, or list others (--limit, "
        f"--source); to try these again, delete {folder} and run the same command: all else stays"
    )


def _emptied(folder: Path, made: int, dropped: int) -> ValueError:
    return ValueError(
        f"{folder}: none of {made:,} samples is left ({dropped:,} had the bytes of an earlier one, {made - dropped:,} "
        "were removed): leave out --drop-duplicates, or list others (--limit, --held-out, --source)"
    )


def split_inputs(recipe: Recipe, split: Split) -> str:
    """What a split is known by, in its manifest."""
    return digest([recipe.digest, split])


def _remove_leftovers(folder: Path, stems: set[str]) -> None:
    """Half-written files, and shards that something else left: nothing lies beside the shards of the manifest."""
    for path in chain.from_iterable(
        folder.glob(p) for p in ("[0-9]*.tar", "[0-9]*.idx.npy", "[0-9]*.done.json", "*.tmp")
    ):
        if path.name.split(".")[0] not in stems or path.suffix == ".tmp":
            path.unlink()
