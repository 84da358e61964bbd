"""Tasks of the data side: list the source, write shards, embed captions. The folders say what is done."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from joblib import cpu_count
from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.artifacts import StageProgress
from flows.home import datasets, pasted
from flows.progress import board
from flows.removal import clear_set, hold_in_turn
from flows.sets import split_folder
from flows.text import Captions, Progress
from mdm.data.embeddings import TextSource
from mdm.presets import Preset
from preprocessing.manifest import read_json, read_manifest, write_json
from preprocessing.sets import (
    RECIPE,
    SPLITS,
    made_set,
    mark_cleared,
    newest_set,
    recipe,
    recipe_folder,
    removals,
)
from preprocessing.shards import write_openmoji
from preprocessing.sources import OpenMoji

PER_SHARD = 250


@task(task_run_name="data", cache_policy=NO_CACHE)
def prepare_data(preset: Preset) -> OpenMoji | None:
    """The list of captioned drawings, or nothing where a finished dataset was put in place by hand."""
    begun = time.time()
    board().start("data")
    if preset.data.source == "prepared":
        board().finish("data", "reused", 0, f"prepared: {preset.data.name}")
        return None
    source = openmoji(preset)
    held_out = len(source.split("val"))
    board().finish(
        "data", "done", time.time() - begun, f"{len(source.drawings)} captioned drawings, {held_out} held out"
    )
    return source


def openmoji(preset: Preset) -> OpenMoji:
    """The drawings that a preset names."""
    data = preset.data
    return OpenMoji(people=data.people, skin_tones=data.skin_tones, val_fraction=data.val_fraction, limit=data.limit)


@task(task_run_name="shards", cache_policy=NO_CACHE)
def write_shard_set(preset: Preset, source: OpenMoji | None, run: Path) -> tuple[Path, str]:
    """Shards of both splits -> the dataset's folder and a digest of its training split."""
    if source is None:
        board().start("shards")
        folder = pinned_set(run, preset.data.name, board().say) or newest_set(datasets(), preset.data.name)
        clear_set(folder, removals(datasets(), preset.data.name), board().say)
        digests = [read_manifest(folder / split)["digest"] for split in SPLITS]
        board().finish("shards", "reused", 0, folder.name)
        return folder, digests[0]
    with _stage("shards", len(source.drawings), "img") as update:
        before = made_set(datasets(), preset.data.name, source, preset.data.resolution, PER_SHARD)
        folder, manifests = make_set(preset, source, update.after, board().say)
        update.reused = folder == before
        update.note = f"{folder.name}, {sum(s['bytes'] for m in manifests for s in m['shards']) / 1e6:.1f} MB"
    return folder, manifests[0]["digest"]


def wanted_set(preset: Preset) -> Path:
    """The finished set that a preset means. Raises ValueError where there is none."""
    data = preset.data
    if data.source == "prepared":
        return newest_set(datasets(), data.name)
    folder = made_set(datasets(), data.name, openmoji(preset), data.resolution, PER_SHARD)
    if folder is None:
        raise ValueError(f"the shards of preset {preset.name} are not made yet: `mdm data {preset.name}` makes them")
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


def make_set(
    preset: Preset, source: OpenMoji, progress: Progress, say: Callable[[str], None]
) -> tuple[Path, list[dict[str, Any]]]:
    """The set of a preset's recipe, made unless it is there -> its folder and the splits' manifests.

    It is made under another name and named last. Of several processes that want it one makes it, the others wait. What
    is missing from a finished one is made again. ``progress(start)`` gives the callback of a part beginning there.
    """
    name, px = preset.data.name, preset.data.resolution
    wanted = recipe(source, px, PER_SHARD)
    folder = recipe_folder(datasets(), name, wanted)
    with hold_in_turn(folder, say):
        made = made_set(datasets(), name, source, px, PER_SHARD)
        target, removed = made or folder.with_name(folder.name + ".part"), removals(datasets(), name)
        manifests: list[dict[str, Any]] = []
        for split in SPLITS:
            update, workers = progress(sum(m["samples"] for m in manifests)), min(2, cpu_count())
            part = target / split
            manifests.append(write_openmoji(source, split, name, px, part, PER_SHARD, workers, update, removed))
        if made is None:
            mark_cleared(target, removed)
            write_json(target / RECIPE, {**wanted, "finished_s": time.time()})
            target.rename(folder)
            made = folder
    clear_set(made, removals(datasets(), name), say)  # also of what was removed while it was made
    return made, [read_manifest(made / split) for split in SPLITS]


@task(task_run_name="text embeddings", cache_policy=NO_CACHE)
def embed_text(preset: Preset, folder: Path) -> TextSource | None:
    """Where the jobs' caption states come from, made where they are stored."""
    if preset.text is None:
        board().start("text embeddings")
        board().finish("text embeddings", "done", 0, "none: conditioned on labels")
        return None
    total = sum(read_manifest(folder / split)["samples"] for split in SPLITS)
    with hold_in_turn(folder, board().say), _stage("text embeddings", total, "captions") as update:
        captions = Captions(preset, folder)
        source = captions.source(board().say)
        if source.way == "online":
            update.note = f"{preset.text}, online: nothing is stored, the trainers encode"
            return source
        before = captions.manifests(source.way)
        manifests = captions.embed(source.way, update.after)
        update.reused = before == manifests
        cut = sum(m["truncated"] for m in manifests)
        update.note = f"{preset.text}, {source.way}, {cut} captions cut at {captions.spec.max_tokens} tokens"
    return source


class Update:
    """Reports a stage's progress to the board and the UI."""

    def __init__(self, name: str, total: float) -> None:
        self.name, self.progress = name, StageProgress(name, total)
        self.reused, self.note = False, ""

    def __call__(self, done: float) -> None:
        board().update(self.name, done)
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
