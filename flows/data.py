"""Tasks of the data side: list the source, write shards, embed captions. The folders say what is done."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from prefect import task

from flows.artifacts import StageProgress
from flows.home import datasets, hold
from flows.progress import board
from flows.text import SPLITS, Captions, Progress
from mdm.data.embeddings import TextSource
from mdm.presets import Preset
from preprocessing.manifest import read_json, read_manifest
from preprocessing.remove import find, finish, refuse_unknown, removed_keys, take_out
from preprocessing.shards import write_openmoji
from preprocessing.sources import OpenMoji

PER_SHARD = 250


@task(task_run_name="data")
def prepare_data(preset: Preset) -> OpenMoji | None:
    """The list of captioned drawings, or nothing where a finished dataset was put in place by hand."""
    begun = time.time()
    board().start("data")
    if preset.data.source == "prepared":
        board().finish("data", "reused", 0, f"prepared: {datasets() / preset.data.name}")
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


@task(task_run_name="shards")
def write_shard_set(preset: Preset, source: OpenMoji | None) -> tuple[Path, str]:
    """Shards of both splits -> the dataset's folder and a digest of its training split."""
    folder = datasets() / preset.data.name
    if source is None:
        board().start("shards")
        digests = [read_manifest(folder / split)["digest"] for split in SPLITS]
        board().finish("shards", "reused", 0)
        return folder, digests[0]
    with hold(folder / "lock", f"dataset {preset.data.name}"), _stage("shards", len(source.drawings), "img") as update:
        before = [read_json(folder / split / "manifest.json") for split in SPLITS]
        manifests = write_splits(preset, source, update.after)
        update.reused = before == manifests
        update.note = f"{sum(s['bytes'] for m in manifests for s in m['shards']) / 1e6:.1f} MB"
    return folder, manifests[0]["digest"]


def write_splits(preset: Preset, source: OpenMoji, progress: Progress) -> list[dict[str, Any]]:
    """Shards of every split -> their manifests. ``progress(start)`` gives the callback of a part beginning there."""
    manifests: list[dict[str, Any]] = []
    for split in SPLITS:
        start = sum(m["samples"] for m in manifests)
        folder = datasets() / preset.data.name / split
        workers = min(2, os.cpu_count() or 1)
        manifests.append(
            write_openmoji(
                source, split, preset.data.name, preset.data.resolution, folder, PER_SHARD, workers, progress(start)
            )
        )
    return manifests


def remove_samples(folder: Path, keys: set[str], dry_run: bool) -> list[str]:
    """Take samples out of every split of a dataset -> a line for each. Again: it finishes what was cut off.

    Raises ValueError naming keys that no split has; then nothing is removed.
    """
    if not dry_run:
        for split in SPLITS:
            finish(folder / split)
    known = {split: removed_keys(folder / split) & keys for split in SPLITS}
    found = {split: find(folder / split, keys - known[split]) for split in SPLITS}
    refuse_unknown(folder, keys.difference(*found.values(), *known.values()))
    lines = []
    for split in SPLITS:
        places = list(chain(*found[split].values()))
        what = f"{split}: {len(places)} samples in {len({file for file, _ in places})} shards"
        if dry_run:
            lines.append(f"{what} would be removed, {len(known[split])} are already")
        else:
            revision = take_out(folder / split, found[split]).get("revision", 0)
            lines.append(f"{what} removed, {len(known[split])} were already; revision {revision}")
    return lines


@task(task_run_name="text embeddings")
def embed_text(preset: Preset, folder: Path) -> TextSource | None:
    """Where the jobs' caption states come from, made where they are stored."""
    if preset.text is None:
        board().start("text embeddings")
        board().finish("text embeddings", "done", 0, "none: conditioned on labels")
        return None
    total = sum(read_manifest(folder / split)["samples"] for split in SPLITS)
    with hold(folder / "lock", f"dataset {preset.data.name}"), _stage("text embeddings", total, "captions") as update:
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
