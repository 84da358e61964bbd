"""Checkpoints: whole or not at all, and never trusted unread."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch

from mdm.network import weights
from mdm.network.nested import NestedUNet
from mdm.network.weights import load_weights
from mdm.run.attempts import newest_attempt
from mdm.run.checkpoint import (
    Contents,
    Damaged,
    Writer,
    find_damage,
    last_checkpoint,
    list_points,
    milestone_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    save_ema,
)
from mdm.run.folder import list_folders, nimg_of
from mdm.stage import Cadence
from small import small_model


def contents(nimg: int, milestones: dict[str, int] | None = None) -> Contents:
    torch.manual_seed(0)
    weights = {name: p.detach() for name, p in NestedUNet(small_model(1)).named_parameters()}
    state = {"optimizer": {"step/x": torch.full((3,), float(nimg))}}
    return Contents(nimg, 1, small_model(1), weights, weights, state, {"nimg": nimg}, milestones or {})


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints at 1, 2, 3 images; the oldest was dropped."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    folder.mkdir()
    for nimg in (1, 2, 3):
        save_checkpoint(folder, contents(nimg), Cadence())
    return folder


def test_only_the_newest_are_kept_and_load(three: Path) -> None:
    assert [p.name[-1] for p in list_folders(three)] == ["2", "3"]
    folder, passed_over = newest_checkpoint(three)
    assert folder is not None
    assert (folder.name[-1], passed_over) == ("3", [])
    assert NestedUNet.from_pretrained(folder / "ema").config == small_model(1)


def test_any_damage_to_the_newest_is_found_and_the_one_before_is_used(three: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    files = sorted(p.relative_to(three) for p in list_folders(three)[-1].rglob("*") if p.is_file())
    for i in range(200):
        copy = shutil.copytree(three, tmp_path / str(i))
        victim = copy / files[i % len(files)]
        content = bytearray(victim.read_bytes())
        kind = draw.choice(["flip", "cut", "delete"])
        if kind == "flip":
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        if kind == "delete":
            victim.unlink()
        else:
            victim.write_bytes(content[: draw.randrange(len(content))] if kind == "cut" else content)
        folder, passed_over = newest_checkpoint(copy)
        assert folder is not None, (kind, victim)
        assert folder.name[-1] == "2" and "damaged" in passed_over[0], (kind, victim)


def test_a_half_written_one_is_not_seen(three: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(three, tmp_path / "c")
    shutil.copytree(list_folders(copy)[-1], copy / "nimg-000000000004.tmp")
    assert [p.name[-1] for p in list_folders(copy)] == ["2", "3"]


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no checkpoint"):
        load_weights(tmp_path)


def test_what_the_cadence_names_is_kept(tmp_path: Path) -> None:
    cadence = Cadence(keep_checkpoints=2, keep_every_nimg=10)
    for nimg in range(3, 40, 3):
        save_checkpoint(tmp_path, contents(nimg, {"fig-4": 14} if nimg == 15 else None), cadence)
    assert [nimg_of(p) for p in list_folders(tmp_path)] == [12, 15, 21, 30, 36, 39]
    assert nimg_of(milestone_checkpoint(tmp_path, "fig-4", 14, 3)) == 15
    with pytest.raises(ValueError, match="no milestone fig-5"):
        milestone_checkpoint(tmp_path, "fig-5", 14, 3)
    with pytest.raises(ValueError, match="no milestone fig-4 at 13 images, but one at 14"):
        milestone_checkpoint(tmp_path, "fig-4", 13, 3)


# Kills itself at the Nth boundary of a checkpoint write: before and after every call that changes the disk.
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from mdm.network import weights
from mdm.run import folder
from test_checkpoint import Cadence, contents, save_checkpoint
left = int(sys.argv[2])
def boundary():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
def around(function):
    def call(*arguments, **options):
        boundary()
        result = function(*arguments, **options)
        boundary()
        return result
    return call
calls = [(weights, ("save_file",)), (folder, ("sync",)), (shutil, ("rmtree",))]
calls.append((os, ("fsync", "replace", "rename", "mkdir")))
for owner, names in calls:
    for name in names:
        setattr(owner, name, around(getattr(owner, name)))
for name in ("rename", "replace", "write_text"):
    setattr(Path, name, around(getattr(Path, name)))
save_checkpoint(Path(sys.argv[1]), contents(4), Cadence())
"""


@pytest.mark.kills
def test_killed_at_every_boundary_of_a_write_there_is_always_a_whole_one(three: Path, tmp_path: Path) -> None:
    seen = set()
    here = str(Path(__file__).parent)
    for boundary in range(1, 200):
        copy = shutil.copytree(three, tmp_path / str(boundary))
        pid = os.fork()
        if pid == 0:  # a fork: nothing is imported a hundred times over
            sys.path.insert(0, here)
            sys.argv = ["", str(copy), str(boundary)]
            try:
                exec(KILLED, {"__name__": "killed"})
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        folder, passed_over = newest_checkpoint(copy)
        assert folder is not None and not passed_over
        seen.add(nimg_of(folder))
        save_checkpoint(copy, contents(5), Cadence())
        assert not list(copy.glob("*.tmp"))
        if not os.WIFSIGNALED(status):
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert boundary > 40  # so many boundaries were there
    assert seen == {3, 4}


def test_a_full_disk_leaves_the_last_one_and_is_told(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(three, tmp_path / "c")
    writer = Writer(copy, Cadence(), lambda: None)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    writer.submit(contents(4))
    error = writer.finish()
    assert error is not None and error.errno == errno.ENOSPC
    assert [nimg_of(p) for p in list_folders(copy)] == [2, 3] and not list(copy.glob("*.tmp"))
    monkeypatch.undo()
    writer.submit(contents(4))
    assert writer.finish() is None
    assert nimg_of(list_folders(copy)[-1]) == 4


def test_training_does_not_wait_for_the_disk(three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy, go_on = shutil.copytree(three, tmp_path / "c"), threading.Event()
    real = weights.save_file
    monkeypatch.setattr(weights, "save_file", lambda *arguments: (go_on.wait(10), real(*arguments)))
    writer = Writer(copy, Cadence(), lambda: None)
    writer.submit(contents(4))  # returns although nothing can be written yet
    assert [nimg_of(p) for p in list_folders(copy)] == [2, 3]
    go_on.set()
    assert writer.finish() is None
    assert find_damage(list_folders(copy)[-1]) is None


def test_a_newer_attempt_is_asked_for_before_the_name_is_given(three: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(three, tmp_path / "c")
    answers = iter([None, RuntimeError("a newer attempt")])

    def may_write() -> None:
        if (error := next(answers)) is not None:
            raise error

    with pytest.raises(RuntimeError, match="newer attempt"):
        save_checkpoint(copy, contents(4), Cadence(), may_write)
    assert [nimg_of(p) for p in list_folders(copy)] == [2, 3]


def damage(folder: Path) -> None:
    (folder / "raw" / "model.safetensors").write_bytes(b"torn")


def test_no_whole_one_is_dropped_in_favour_of_a_damaged_one(three: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(three, tmp_path / "c")
    writer = Writer(copy, Cadence(), lambda: None)
    for folder in list_folders(copy):
        damage(folder)
    for nimg, left in ((1, [1, 2, 3]), (4, [1, 2, 3, 4]), (5, [4, 5])):  # 1: a return to the start, say
        writer.submit(contents(nimg))
        assert writer.finish() is None
        assert [nimg_of(p) for p in list_folders(copy)] == left


def test_what_a_period_keeps_is_whole(tmp_path: Path) -> None:
    cadence = Cadence(keep_checkpoints=2, keep_every_nimg=10)
    for nimg in (10, 14, 20, 21, 22):
        save_checkpoint(tmp_path, contents(nimg), cadence)
        if nimg == 10:
            damage(list_folders(tmp_path)[0])
    assert [nimg_of(p) for p in list_folders(tmp_path)] == [14, 20, 21, 22]


def test_names_that_are_not_ours_are_neither_read_nor_deleted(three: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(three, tmp_path / "c")
    names = ["nimg-000000000003.bak", "nimg-3.bak.tmp", "nimg-x", "nimg-", "notes.tmp", "nimg-²"]
    for name in names:
        shutil.copytree(list_folders(three)[-1], copy / name)
    (copy / "nimg-000000000009").write_text("a file")
    save_checkpoint(copy, contents(4), Cadence())
    assert [nimg_of(p) for p in list_folders(copy)] == [3, 4]
    assert all((copy / name).exists() for name in [*names, "nimg-000000000009"])
    (tmp_path / "attempts").mkdir()
    for name in ("2.json", "²3.json", "³.json", "4.json.bak", "copy-5.json"):
        (tmp_path / "attempts" / name).touch()
    assert newest_attempt(tmp_path) == 2


def test_a_full_disk_is_an_oserror_whoever_writes(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"x\.safetensors: .*too large"):
            weights.save_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_last_one_is_wanted_and_no_other(three: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(three, tmp_path / "c")
    before, last = list_folders(copy)
    assert last_checkpoint(copy) == last and last_checkpoint(tmp_path) is None
    damage(last)
    with pytest.raises(Damaged, match="is damaged") as error:
        last_checkpoint(copy)
    assert error.value.whole == before


def test_milestones_of_an_older_format_are_found(three: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(three, tmp_path / "c")
    path = list_folders(copy)[-1] / "manifest.json"
    facts = json.loads(path.read_text())
    del facts["milestones"]
    path.write_text(json.dumps({**facts, "milestone": "early"}))
    assert nimg_of(milestone_checkpoint(copy, "early", 2, 8)) == 3
    with pytest.raises(ValueError, match="no milestone"):
        milestone_checkpoint(copy, "early", 4, 8)


def test_what_is_kept_alone_is_never_pruned_and_joins_the_checkpoints(tmp_path: Path) -> None:
    checkpoints, points = tmp_path / "checkpoints", range(10, 210, 10)
    for nimg in points:
        made = contents(nimg)
        save_ema(tmp_path, nimg, made.model, made.ema)
        save_checkpoint(checkpoints, made, Cadence())
    assert [nimg_of(folder) for folder in list_folders(checkpoints)] == [190, 200]
    found = list_points(tmp_path)
    assert [nimg_of(folder) for folder in found] == list(points)
    assert {folder.parent.name for folder in found[:-2]} == {"kept"}
    assert {folder.parent.name for folder in found[-2:]} == {"checkpoints"}  # which have more
    for folder in found:
        assert find_damage(folder) is None and NestedUNet.from_pretrained(folder / "ema").config == small_model(1)
    assert not (found[0] / "raw").exists()
    (found[0] / "ema" / "model.safetensors").write_bytes(b"torn")
    assert find_damage(found[0]) is not None
