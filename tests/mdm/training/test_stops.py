"""Asked to stop means stopped, saved and said; what found no room or a bad step is made up for; no fallback."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from trainers import final_state, lines, outcome, points, prepare, starts

from mdm.run.checkpoint import milestone_checkpoint, newest_checkpoint
from mdm.run.folder import find_damage, list_folders, nimg_of, read_manifest
from mdm.run.grace import ENDING_S, UNMEASURED_S, grace_s
from mdm.run.torchrun import torchrun_environment
from mdm.run.watch import Watch
from small import small_job


@pytest.fixture(scope="module")
def whole(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 96 images that nothing happened to."""
    run = prepare(tmp_path_factory.mktemp("whole") / "run", small_job(squares, nimg=96))
    assert starts(run, {}) == [[0]], (run / "log.txt").read_text()
    return run


def damage(checkpoint: Path) -> None:
    path = checkpoint / "raw" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_to_the_group_with_data_workers_stops_and_saves(
    name: str, whole: Path, squares: Path, tmp_path: Path
) -> None:
    run = prepare(tmp_path / "run", small_job(squares, nimg=96, data_workers=2, checkpoint_every_nimg=96))
    stop = {"kill": [0], "signal": name, "group": True, "images": 24, "patience_s": 30}
    assert starts(run, stop) == [[1]]
    told, (*_, last) = outcome(run), list_folders(run / "checkpoints")
    assert (told["outcome"], find_damage(last)) == ("stopped", None), (run / "log.txt").read_text()
    assert 24 <= told["nimg"] == nimg_of(last) < 96
    assert starts(run, {}) == [[0]]
    assert final_state(run) == final_state(whole) and points(run) == points(whole)


def test_a_signal_to_the_group_of_two_ranks_with_data_workers_stops_and_saves(squares: Path, tmp_path: Path) -> None:
    job = small_job(squares, nimg=96, data_workers=2, checkpoint_every_nimg=96)
    run, left_alone = prepare(tmp_path / "run", job), prepare(tmp_path / "alone", job)
    stop = {"world": 2, "kill": [0], "signal": "SIGTERM", "group": True, "images": 24, "patience_s": 30}
    assert starts(run, stop) == [[1, 1]], (run / "log.txt").read_text()
    assert outcome(run)["outcome"] == "stopped"
    assert nimg_of(list_folders(run / "checkpoints")[-1]) == outcome(run)["nimg"] >= 24
    assert starts(run, {"world": 2}) == [[0, 0]], (run / "log.txt").read_text()
    assert starts(left_alone, {"world": 2}) == [[0, 0]]
    assert final_state(run) == final_state(left_alone) and points(run) == points(left_alone)


@pytest.mark.slow
@pytest.mark.kills
def test_a_signal_to_torchrun_with_data_workers_stops_and_saves(squares: Path, tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", small_job(squares, nimg=100_000, data_workers=2, checkpoint_every_nimg=100_000))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "mdm.train"]
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": root, **torchrun_environment(run), "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen([*command, str(run)], env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while (time.monotonic() < deadline and not (run / "metrics.jsonl").exists()) or len(lines(run)) < 3:
        time.sleep(0.1)
    os.killpg(job.pid, signal.SIGTERM)
    assert job.wait(60) != 0
    checkpoint, _ = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    assert (outcome(run)["outcome"], outcome(run)["nimg"]) == ("stopped", nimg_of(checkpoint))


def test_a_hang_up_is_none_under_nohup(squares: Path, tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", small_job(squares, nimg=48))
    start = {"ignore": ["SIGHUP"], "kill": [0], "signal": "SIGHUP", "group": True, "images": 24}
    assert starts(run, start) == [[0]]


def test_a_milestone_on_a_skipped_step_is_saved_after_the_next_good_one(squares: Path, tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", small_job(squares, nimg=64, checkpoint_every_nimg=64, milestones={"early": 24}))
    assert starts(run, {"poison": [16, 32]}) == [[0]]  # two steps: up to 24 and up to 32
    found = milestone_checkpoint(run / "checkpoints", "early", 24, 8)
    assert nimg_of(found) == 40 and read_manifest(found)["milestones"] == {"early": 24}


def test_a_stop_amid_skipped_steps_does_not_forget_the_milestone(squares: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"log_every_nimg": 8, "checkpoint_every_nimg": 800, "max_skips": 90}
    run = prepare(tmp_path / "run", small_job(squares, nimg=800, milestones={"early": 24}, **changes))
    stop = {"poison": [16, 800], "kill": [0], "signal": "SIGTERM", "images": 40}
    assert starts(run, stop) == [[1]]
    assert outcome(run)["outcome"] == "stopped"
    stopped = json.loads((list_folders(run / "checkpoints")[-1] / "state" / "state.json").read_text())
    assert stopped["skipping"] and stopped["milestones"] == {"early": 24}
    nimg = outcome(run)["nimg"]
    assert starts(run, {"kill": [0], "signal": "SIGTERM", "images": nimg + 24}) == [[1]]
    assert nimg_of(milestone_checkpoint(run / "checkpoints", "early", 24, 8)) == nimg + 8


def test_a_milestone_that_finds_no_room_is_saved_with_the_next_checkpoint_and_told_at_once(
    squares: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"log_every_nimg": 8, "eval_every_nimg": 160, "checkpoint_every_nimg": 128}
    run = prepare(tmp_path / "run", small_job(squares, nimg=160, milestones={"early": 24}, **changes))
    assert starts(run, {"full": [24]}) == [[0]]
    assert nimg_of(milestone_checkpoint(run / "checkpoints", "early", 24, 8)) == 128
    (failed,) = [nimg for nimg, name in points(run) if name == "checkpoint/failed"]
    assert failed < 128  # not only when the next one was due


def test_no_write_of_the_trainer_ends_it_where_there_is_no_room(squares: Path, tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", small_job(squares, nimg=48, average_every_nimg=24, log_every_nimg=8))
    assert starts(run, {"room_bytes": 6000}) == [[1]]
    log, told = (run / "log.txt").read_text(), outcome(run)
    for what in ("CHECKPOINT", "SNAPSHOT", "SAMPLE GRID"):
        assert f"{what} NOT WRITTEN" in log
    assert (told["outcome"], told["nimg"]) == ("failed", 48)  # it was trained to the end, but nothing is there
    assert not list(run.rglob("*.tmp"))
    assert starts(run, {}) == [[0]]


def test_it_goes_on_from_the_newest_whole_checkpoint_and_says_so(whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    before, last = list_folders(run / "checkpoints")
    damage(last)
    shutil.copytree(last, last.with_name(f"{last.name}.bak"))
    assert starts(run, {}) == [[0]]
    log = (run / "log.txt").read_text()
    assert f"{last.name} is damaged" in log and f"going on from the newest whole one, {before.name}" in log
    assert final_state(run) == final_state(whole)
    assert last.with_name(f"{last.name}.bak").exists()


def test_with_damaged_checkpoints_only_it_refuses_and_the_advice_works(whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "a run")
    for folder in list_folders(run / "checkpoints"):
        damage(folder)
    for world in (1, 2):
        assert starts(run, {"world": world}) == [[1] * world]
        reason = outcome(run)["reason"]
        assert "holds no whole checkpoint" in reason and "raw/model.safetensors is not what was written" in reason
    assert len(list_folders(run / "checkpoints")) == 2
    advice = reason.partition("from the beginning: ")[2].partition(", and start again")[0]
    subprocess.run(shlex.split(advice), check=True)
    assert starts(run, {}) == [[0]]
    assert final_state(run) == final_state(whole)


def test_how_long_an_ending_takes_is_measured(whole: Path, tmp_path: Path) -> None:
    assert grace_s(tmp_path) == UNMEASURED_S >= 30
    measured = json.loads((whole / "grace.json").read_text())
    assert measured["step_s"] > 0 and measured["save_s"] > 0
    (tmp_path / "grace.json").write_text(json.dumps({"step_s": 15.0, "save_s": 8.0}))
    assert grace_s(tmp_path) > ENDING_S + 15 + 2 * 8
    assert int(torchrun_environment(tmp_path)["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) >= grace_s(tmp_path)


def test_what_ends_a_watching_thread_reaches_the_trainer(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 0, 60, lambda reason: None)
    try:
        os.close(watch._reader)
        os.kill(os.getpid(), signal.SIGUSR1)
        deadline = time.monotonic() + 10
        with pytest.raises(OSError):
            while time.monotonic() < deadline:
                watch.beat()
                time.sleep(0.01)
        assert watch.asked
    finally:
        watch.close()
        signal.set_wakeup_fd(-1)
