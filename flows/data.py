"""Tasks of the data side: list the source, write shards, embed captions. The folders say what is done."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.datasets.cards import keep_card
from flows.datasets.making import Opened, count_items, list_set, make_set, newest_made, open_source
from flows.datasets.parts import Say, in_turn, part_lock
from flows.datasets.removal import clear_set
from flows.datasets.sets import split_folder
from flows.datasets.text import Captions
from flows.home import datasets, pasted
from flows.progress import board
from flows.records.artifacts import StageProgress, show_card
from mdm.data.embeddings import TextSource
from mdm.presets import LEAST_SAMPLES, Preset
from preprocessing.catalogue import Options, find
from preprocessing.manifest import read_json, read_manifest, samples_left
from preprocessing.sets import SPLITS, emptied, newest_set, removals, too_few_held_out
from preprocessing.units import size


def options_of(preset: Preset) -> Options:
    return Options(limit=preset.data.limit, held_out=preset.data.val_fraction)


@task(task_run_name="data", cache_policy=NO_CACHE)
def prepare_data(preset: Preset) -> tuple[Opened | None, int]:
    """The source of the preset's data and how many items it lists; nothing where a finished set is all there is."""
    begun = time.time()
    board().start("data")
    opened = open_source(preset.data.name, options_of(preset))
    if opened is None:
        board().finish("data", "reused", 0, f"no source is at hand, a finished set is: {preset.data.name}")
        return None, 0
    total = count_items(list_set(opened, board().say))
    board().finish("data", "done", time.time() - begun, f"{opened.row.name}: {total:,} samples listed")
    return opened, total


@task(task_run_name="shards", cache_policy=NO_CACHE)
def write_shard_set(preset: Preset, opened: Opened | None, total: int, run: Path) -> tuple[Path, str]:
    """Shards of both splits -> the dataset's folder and a digest of its training split."""
    name = preset.data.name
    pinned = pinned_set(run, name, board().say) if opened is None or opened.row.wants else None
    if opened is None or (pinned is not None and pinned != opened.made()):
        board().start("shards")
        folder = pinned or wanted_set(preset)
        clear_set(folder, removals(datasets(), name), board().say)
        keep_card(folder, find(name).about, board().say)
        show_card(folder)
        board().finish("shards", "reused", 0, folder.name)
        return folder, read_manifest(folder / "train")["digest"]
    with _stage("shards", total, "img") as update:
        before = opened.made()
        made = make_set(opened, update, board().say)
        assert made is not None, "the whole set was asked for"
        update.reused = made == before
        manifests = [read_manifest(made / split) for split in SPLITS]
        update.note = f"{made.name}, {size(sum(s['bytes'] for m in manifests for s in m['shards']))}"
        show_card(made)
    return made, manifests[0]["digest"]


def wanted_set(preset: Preset) -> Path:
    """The finished set that a preset means. Raises ValueError where there is none."""
    options, name = options_of(preset), preset.data.name
    opened = open_source(name, options)
    if opened is None:
        return newest_made(name, options)
    folder = opened.made()
    if folder is None:
        raise ValueError(f"the shards of {name} are not made yet: `mdm data {preset.name}` makes them")
    return folder


def pinned_set(run: Path, name: str, say: Callable[[str], None]) -> Path | None:
    """The set of a name that a run's trainings began with, though a newer one may be there by now; None: none began.

    Raises ValueError where it is gone: with another one everything would be trained anew.
    """
    anew = f"to train it anew: {pasted('mv', run, f'{run}.old')}"
    for path in sorted(run.glob("*/job.json")):
        job = read_json(path) or {}
        if ".old" in path.parent.name:  # moved aside
            continue
        if not isinstance(job.get("train_data"), str):
            raise ValueError(f"{path} does not say which data set {run.name} began with: restore it, or, {anew}")
        was, found = Path(job["train_data"]).parent, split_folder(job["train_data"], job.get("train_digest", ""))
        of = was.name if found is None else read_manifest(found)["name"]
        if name not in (was.name, of) and (found is not None or not was.name.startswith(f"{name}-")):
            continue  # then the preset named other data
        if found is None or found.parent.parent != datasets():
            raise ValueError(
                f"{run.name} began with the data set {was.name} (digest {job.get('train_digest', '')[:12]}), which is "
                f"not in {datasets()}: put it back there, or, {anew}"
            )
        if found.parent != (newest := newest_set(datasets(), name)):
            say(f"{run.name} goes on with {found.parent.name}, which it began with; {newest.name} is newer")
        return found.parent
    return None


def fitted(preset: Preset, folder: Path, say: Say) -> Preset:
    """The preset for a set that may be small: at most as many samples are measured as are held out.

    Raises ValueError where a removal left none of a split, or fewer are held out than any measurement takes.
    """
    if unfit := emptied(folder) or too_few_held_out(folder, LEAST_SAMPLES):
        raise ValueError(unfit)
    there, asked = samples_left(read_manifest(folder / "val")), preset.evaluation.num_samples
    if asked <= there:
        return preset
    say(f"{there} samples are drawn and measured, not {asked}: {folder.name} holds out no more")
    return replace(preset, evaluation=replace(preset.evaluation, num_samples=there))


@task(task_run_name="text embeddings", cache_policy=NO_CACHE)
def embed_text(preset: Preset, folder: Path) -> TextSource | None:
    """Where the jobs' caption states come from, made where they are stored."""
    if preset.text is None:
        board().start("text embeddings")
        board().finish("text embeddings", "done", 0, "none: conditioned on labels")
        return None
    total = sum(read_manifest(folder / split)["samples"] for split in SPLITS)
    lock = in_turn(lambda: part_lock(folder, "text", (1, 1)), board().say)
    with lock, _stage("text embeddings", total, "captions") as update:
        captions = Captions(preset, folder)
        source = captions.source(board().say)
        if source.way == "online":
            update.note = f"{preset.text}, online: nothing is stored, the trainers encode"
            return source
        before = captions.manifests(source.way)
        captions.embed(source.way, update.after)
        manifests = captions.manifests(source.way)
        update.reused = before == manifests
        cut = sum(m["truncated"] for m in manifests if m is not None)
        update.note = f"{preset.text}, {source.way}, {cut} captions cut at {captions.spec.max_tokens} tokens"
    return source


class Update:
    """Reports a stage's progress to the board and the UI."""

    def __init__(self, name: str, total: float) -> None:
        self.name, self.progress = name, StageProgress(name, total)
        self.reused, self.note = False, ""

    def __call__(self, done: float, note: str = "") -> None:
        board().update(self.name, done, note=note)
        self.progress.update(done)

    def after(self, start: int) -> Callable[[int, int], None]:
        """The progress function of a part that begins when ``start`` are done."""
        return lambda done, _: self(start + done)


@contextmanager
def _stage(name: str, total: float, unit: str) -> Iterator[Update]:
    begun = time.time()
    board().start(name, total, unit)
    update = Update(name, total)
    yield update
    update.progress.done()
    board().finish(name, "reused" if update.reused else "done", time.time() - begun, update.note)
