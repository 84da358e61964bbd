"""The trainer, as processes: a run that is killed, stopped or spread otherwise ends as one that was not."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trainers import final_state, lines, outcome, points, prepare, starts

from mdm.data.order import Order
from mdm.files import write_json
from mdm.network.nested import NestedUNet
from mdm.network.weights import save_weights
from mdm.run.checkpoint import newest_checkpoint
from mdm.run.folder import find_damage, list_folders, nimg_of
from mdm.run.job import Job
from mdm.structure import to_dict
from mdm.training.metrics import crossed
from mdm.training.progressive import grow
from small import small_job, small_model

BLOCKER = "import sys; [sys.modules.__setitem__(n, None) for n in ('prefect', 'mlflow', 'flows', 'evaluation')]; "


@pytest.fixture(scope="module")
def uninterrupted(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = prepare(tmp_path_factory.mktemp("whole") / "run", small_job(squares, nimg=192, average_every_nimg=64))
    assert starts(run, {}) == [[0]], (run / "log.txt").read_text()
    return run


def test_a_run_writes_its_record(uninterrupted: Path) -> None:
    told = outcome(uninterrupted)
    assert (told["outcome"], told["nimg"], told["attempt"]) == ("done", 192, 1)
    found = points(uninterrupted)
    assert {nimg for nimg, name in found if name == "train/loss_16"} == set(range(24, 193, 24))
    assert {nimg for nimg, name in found if name == "val/loss_8"} == {0, 48, 96, 144, 192}
    assert len(list((uninterrupted / "samples").glob("*.png"))) == 5
    assert len(list((uninterrupted / "averages").glob("nimg-*"))) == 3
    last = [line["values"] for line in lines(uninterrupted) if "speed/step_s" in line["values"]][-1]
    parts = ("data_wait", "forward_backward", "optimizer", "checkpoint_stall")
    assert all(last[f"speed/{part}_s"] >= 0 for part in parts)
    assert sum(last[f"speed/{part}_s"] for part in parts[:3]) == pytest.approx(last["speed/step_s"], rel=0.2)
    assert last["speed/tflops"] > 0 and last["system/peak_memory_megabytes"] > 100
    record = json.loads((uninterrupted / "config.json").read_text())
    assert torch.__version__.startswith(record["versions"]["torch"]) and record["job"]["training"]["nimg"] == 192
    checkpoint, _ = newest_checkpoint(uninterrupted / "checkpoints")
    assert checkpoint is not None
    assert json.loads((checkpoint / "state" / "state.json").read_text())["data"]["revision"] == 0


def test_a_gpu_node_needs_neither_prefect_nor_mlflow(squares: Path, tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", small_job(squares, nimg=8))
    code = BLOCKER + f"from mdm.train import main; sys.exit(main([{str(run)!r}]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_points_that_the_disk_lost_come_back_from_the_checkpoint(uninterrupted: Path, tmp_path: Path) -> None:
    """metrics.jsonl as it may be after a power cut: shorter than it was when the checkpoint was saved."""
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    shutil.rmtree(list_folders(run / "checkpoints")[-1])  # it goes on from the one before
    written = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(written[: len(written) // 3])
    assert starts(run, {}) == [[0]]
    assert points(run) == points(uninterrupted) and final_state(run) == final_state(uninterrupted)


@pytest.mark.kills
@pytest.mark.parametrize("times", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_many_moments_it_ends_bit_identical(
    times: int, uninterrupted: Path, squares: Path, tmp_path: Path
) -> None:
    draw, killed = random.Random(5), 0
    while killed < times:  # a fast machine ends a run before it was killed so often: then another one takes the rest
        run = prepare(tmp_path / f"run{killed}", small_job(squares, nimg=192, average_every_nimg=64))
        codes = [[-9]]
        while codes == [[-9]] and killed < times:
            codes = starts(run, {"kill": [0], "after_s": 0.1 + draw.random() * 0.7})
            killed += codes == [[-9]]
        assert starts(run, {}) == [[0]], (run / "log.txt").read_text()
        assert outcome(run)["outcome"] == "done"
        assert final_state(run) == final_state(uninterrupted)
        assert points(run) == points(uninterrupted)


@pytest.mark.kills
def test_killed_across_growth_with_the_optimizer_carried_it_ends_bit_identical(
    uninterrupted: Path, squares: Path, tmp_path: Path
) -> None:
    parent, _ = newest_checkpoint(uninterrupted / "checkpoints")
    assert parent is not None
    model, init = small_model(3), tmp_path / "init"
    for part in ("raw", "ema"):
        weights = load_file(parent / part / "model.safetensors")
        save_weights(init / part, model, grow(small_model(2), weights, model, seed=0))
    shutil.copy(parent / "state" / "optimizer.safetensors", init)
    job = small_job(squares, num_levels=3, nimg=48, init=str(init))
    whole, killed = prepare(tmp_path / "whole", job), prepare(tmp_path / "killed", job)
    assert starts(whole, {}) == [[0]]
    codes = starts(killed, *({"kill": [0], "after_s": 0.3 + 0.2 * i} for i in range(4)), {})
    assert codes[-1] == [0] and [-9] in codes
    assert final_state(killed) == final_state(whole)
    assert points(killed) == points(whole)
    first = load_file(whole / "checkpoints" / "nimg-000000000048" / "state" / "optimizer.safetensors")
    assert first["step/levels.0.conv_in.weight"] == 192 / 8 + 6  # carried over
    assert first["step/levels.2.conv_in.weight"] == 6


@pytest.mark.kills
def test_one_rank_of_two_killed_it_ends_bit_identical(squares: Path, tmp_path: Path) -> None:
    job = small_job(squares, nimg=96)
    whole, killed = prepare(tmp_path / "whole", job), prepare(tmp_path / "killed", job)
    assert starts(whole, {"world": 2}) == [[0, 0]]
    codes = starts(
        killed,
        {"world": 2, "kill": [1], "images": 24, "patience_s": 3},
        {"world": 2, "kill": [0], "images": 48, "patience_s": 3},
        {"world": 2},
    )
    assert codes[0][1] == codes[1][0] == -9 and codes[2] == [0, 0]
    assert final_state(killed) == final_state(whole)
    assert points(killed) == points(whole)


def test_any_number_of_processes_sees_the_same_batches(squares: Path, tmp_path: Path) -> None:
    """1, 2 and 4 processes, in micro-batches of another size, and changing between them while the run goes on."""
    job = small_job(squares, nimg=96)
    runs = {world: prepare(tmp_path / str(world), job) for world in (1, 2, 4)}
    for world, run in runs.items():
        assert starts(run, {"world": world}) == [[0] * world], (run / "log.txt").read_text()
    changing = prepare(tmp_path / "changing", small_job(squares, nimg=96, max_batch_per_process=2))
    stops = [
        {"world": world, "kill": [0], "signal": "SIGTERM", "images": i} for world, i in ((1, 24), (2, 48), (4, 72))
    ]
    assert starts(changing, *stops, {"world": 1})[-1] == [0]
    expected = points(runs[1])
    for run in (runs[2], runs[4], changing):
        found = points(run)
        assert found.keys() == expected.keys()
        partial = run is changing  # a line after another number of processes covers fewer steps
        for (nimg, name), value in expected.items():
            if name.startswith("val/") or not partial:
                assert found[nimg, name] == pytest.approx(value, rel=2e-3), (run.name, nimg, name)


@pytest.mark.slow
def test_sharded_state_trains_the_same_and_resumes_exactly(squares: Path, tmp_path: Path) -> None:
    plain = prepare(tmp_path / "ddp", small_job(squares, nimg=48))
    whole = prepare(tmp_path / "fsdp", small_job(squares, nimg=48, parallel="fsdp", average_every_nimg=24))
    killed = prepare(tmp_path / "killed", small_job(squares, nimg=48, parallel="fsdp", average_every_nimg=24))
    assert starts(plain, {"world": 2}) == [[0, 0]]
    assert starts(whole, {"world": 2}) == [[0, 0]], (whole / "log.txt").read_text()
    assert starts(killed, {"world": 2, "kill": [0, 1], "images": 24}, {"world": 2})[-1] == [0, 0]
    assert final_state(killed) == final_state(whole)
    for key, value in points(plain).items():
        assert points(whole)[key] == pytest.approx(value, rel=1e-3), key


@pytest.mark.parametrize(
    ("switch", "tolerance"),
    [
        ({"precision": "bfloat16"}, 0.05),
        ({"precision": "float16"}, 0.05),
        pytest.param({"compile": True}, 1e-3, marks=pytest.mark.slow),  # a minute of C++
        ({"fused_adam": False}, 1e-4),
        ({"channels_last": False}, 1e-3),
        ({"recompute": (8, 16)}, 1e-6),
    ],
    ids=["bfloat16", "float16", "compile", "unfused", "contiguous", "recompute"],
)
def test_a_switch_changes_the_training_by_rounding_and_it_resumes_exactly(
    switch: dict[str, Any], tolerance: float, uninterrupted: Path, squares: Path, tmp_path: Path
) -> None:
    whole, stopped = (prepare(tmp_path / name, small_job(squares, nimg=48, **switch)) for name in ("whole", "stopped"))
    assert starts(whole, {}) == [[0]], (whole / "log.txt").read_text()
    plain = points(uninterrupted)
    for key, value in points(whole).items():
        if key[1].startswith("train/loss"):
            assert value == pytest.approx(plain[key], rel=tolerance), key
    assert starts(stopped, {"kill": [0], "signal": "SIGTERM", "images": 24}, {}) == [[1], [0]]
    assert final_state(stopped) == final_state(whole)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_to_any_rank_ends_all_at_the_same_step(name: str, squares: Path, tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", small_job(squares, nimg=100_000, checkpoint_every_nimg=100_000))
    codes = starts(run, {"world": 2, "kill": [1], "signal": name, "images": 24, "patience_s": 30})
    assert codes == [[1, 1]]
    told = outcome(run)
    assert told["outcome"] == "stopped"
    checkpoint, _ = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None and find_damage(checkpoint) is None
    assert nimg_of(checkpoint) == told["nimg"] >= 24


def test_a_stop_is_seen_inside_sampling(squares: Path, tmp_path: Path) -> None:
    job = small_job(squares, nimg=100_000)
    slow = {**to_dict(job), "sampling": {"steps": 1000}}  # minutes
    (run := tmp_path / "run").mkdir()
    write_json(run / "job.json", slow)
    codes = starts(run, {"kill": [0], "signal": "SIGTERM", "images": 0, "after_s": 20, "patience_s": 30})
    assert codes == [[1]]
    assert (outcome(run)["outcome"], outcome(run)["nimg"]) == ("stopped", 0)


def test_an_older_attempt_leaves_without_writing(squares: Path, tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", small_job(squares, nimg=480))
    codes = starts(run, {"images": 24, "twice": {"options": ["--attempt", "7"]}, "patience_s": 120})
    assert codes == [[1, 0]], (run / "log.txt").read_text()
    assert "attempt 7 owns" in (run / "log.txt").read_text()
    attempts = [line["attempt"] for line in lines(run)]
    assert attempts == sorted(attempts) and set(attempts) == {1, 7}
    assert (outcome(run)["outcome"], outcome(run)["attempt"]) == ("done", 7)
    assert starts(run, {"options": ["--attempt", "7"]}) == [[1]]
    assert "has seen attempt 7 already" in (run / "log.txt").read_text()


def test_a_second_trainer_is_refused_while_the_first_lives(squares: Path, tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", small_job(squares, nimg=160))
    assert starts(run, {"images": 24, "twice": {}, "patience_s": 120}) == [[0, 1]]
    assert "is being trained by another process" in (run / "log.txt").read_text()


def test_a_hung_collective_ends_with_the_stacks(squares: Path, tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", small_job(squares, nimg=100_000, hang_s=8))
    codes = starts(run, {"world": 2, "kill": [1], "signal": "SIGSTOP", "images": 24, "patience_s": 1})
    assert codes == [[1, -9]]
    assert "train.py" in (run / "stacks-rank0.txt").read_text()
    assert outcome(run)["outcome"] == "failed" and "rank 0 hung" in outcome(run)["reason"]


def test_a_step_that_is_not_finite_is_skipped_on_all_ranks_and_counted(squares: Path, tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", small_job(squares, nimg=48))
    clean = prepare(tmp_path / "clean", small_job(squares, nimg=48))
    assert starts(run, {"world": 2, "poison": [20, 21], "poison_rank": 1}) == [[0, 0]]
    assert starts(clean, {"world": 2}) == [[0, 0]]
    found = points(run)
    assert (found[24, "train/skipped_steps"], found[48, "train/skipped_steps"]) == (1, 0)
    assert final_state(run) != final_state(clean)
    state = load_file(run / "checkpoints" / "nimg-000000000048" / "state" / "optimizer.safetensors")
    assert state["step/levels.0.conv_in.weight"] == 5  # of six
    (evidence,) = [json.loads(line) for line in (run / "nonfinite.jsonl").read_text().splitlines()]
    assert evidence["nimg"] == 16
    order = Order([8] * 5, 0)
    assert evidence["samples"] == [order.index(position) for position in range(16, 24)]


def test_too_many_in_a_row_return_to_the_checkpoint_before_with_other_data(squares: Path, tmp_path: Path) -> None:
    job = small_job(squares, nimg=160, max_skips=3, max_returns=2, log_every_nimg=8, checkpoint_every_nimg=8)
    run = prepare(tmp_path / "run", job)
    assert starts(run, {"poison": [40, 80]}) == [[0]], (run / "log.txt").read_text()
    (back,) = json.loads((run / "returns.json").read_text())
    assert (back["to"], back["from"]) == (40, 64)
    assert "back to nimg-000000000040" in (run / "log.txt").read_text()
    assert {line["returns"] for line in lines(run)} == {0, 1}
    # and it holds through a kill after the return
    killed = prepare(tmp_path / "killed", job)
    kill = {"poison": [40, 80], "kill": [0], "images": 88}
    assert starts(killed, kill, {"poison": [40, 80]}) == [[-9], [0]]
    assert final_state(killed) == final_state(run)


def test_after_so_many_returns_it_stops_with_the_evidence(squares: Path, tmp_path: Path) -> None:
    job = small_job(squares, nimg=400, max_skips=3, max_returns=2, log_every_nimg=8, checkpoint_every_nimg=8)
    run = prepare(tmp_path / "run", job)
    assert starts(run, {"poison": [40, 10**6]}) == [[1]]
    assert outcome(run)["outcome"] == "failed" and "after 2 returns" in outcome(run)["reason"]
    assert len(json.loads((run / "returns.json").read_text())) == 2
    assert (run / "nonfinite.jsonl").exists() and newest_checkpoint(run / "checkpoints")[0] is not None


def test_a_full_disk_does_not_end_the_training(squares: Path, tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", small_job(squares, nimg=96))
    assert starts(run, {"full": [32, 48]}) == [[0]]
    assert "CHECKPOINT NOT WRITTEN" in (run / "log.txt").read_text()
    assert max(v for (_, name), v in points(run).items() if name == "checkpoint/failed") == 2
    last = prepare(tmp_path / "last", small_job(squares, nimg=96))
    assert starts(last, {"full": [96]}) == [[1]]  # what could not be written at the end is not done
    assert outcome(last)["outcome"] == "failed" and "No space left" in outcome(last)["reason"]
    assert starts(last, {}) == [[0]]
    assert final_state(last) == final_state(run)


def test_unreadable_samples_are_named_or_replaced_and_counted(squares: Path, tmp_path: Path) -> None:
    data = shutil.copytree(squares, tmp_path / "data")
    (data / "train" / "00001.tar").unlink()
    run = prepare(tmp_path / "run", small_job(data, nimg=40))
    assert starts(run, {}) == [[1]]
    assert "00001.tar" in outcome(run)["reason"]
    assert starts(run, {"world": 2, "options": ["--tolerate", "8"]}) == [[0, 0]], (run / "log.txt").read_text()
    assert sum(v for (_, name), v in points(run).items() if name == "data/substituted") == 8
    few = prepare(tmp_path / "few", small_job(data, nimg=40))
    assert starts(few, {"options": ["--tolerate", "3"]}) == [[1]]
    assert "3 are tolerated" in outcome(few)["reason"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda job: {**job, "colour": 1}, "unknown field colour"),
        (lambda job: {**job, "train_data": "/nowhere"}, "/nowhere is no finished dataset"),
        (lambda job: {**job, "device": "cuda"}, "torch finds no GPU"),
        (lambda job: {**job, "compute": {"max_batch_per_process": 3}}, "do not split into micro-batches of 3"),
        (lambda job: {**job, "compute": {"max_batch_per_process": 1}}, "leaves a micro-batch of 1 without the top"),
    ],
)
def test_a_wrong_job_is_refused_with_the_reason(spoil, message: str, squares: Path, tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", small_job(squares))
    write_json(run / "job.json", spoil(json.loads((run / "job.json").read_text())))
    assert starts(run, {}) == [[1]]
    assert message in (run / "log.txt").read_text()


def test_weights_of_another_model_and_another_data_set_are_refused(squares: Path, tmp_path: Path) -> None:
    job = small_job(squares, num_levels=1, nimg=16)
    other = small_model(2)
    save_weights(tmp_path / "init" / "raw", other, NestedUNet(other).state_dict())
    run = prepare(tmp_path / "run", Job(**{**vars(job), "init": str(tmp_path / "init")}))
    assert starts(run, {}) == [[1]]
    assert "holds another model" in outcome(run)["reason"]
    run = prepare(tmp_path / "data", job)
    assert starts(run, {}) == [[0]]
    write_json(run / "job.json", to_dict(Job(**{**vars(job), "train_data": job.val_data})))
    assert starts(run, {}) == [[1]]
    assert "was trained on another data set" in outcome(run)["reason"]


def test_crossed() -> None:
    assert [crossed(n, 8, 24) for n in (8, 16, 24, 32, 48)] == [False, False, True, False, True]
