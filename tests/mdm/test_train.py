"""The trainer, as processes: a run that is killed ends as one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mdm.checkpoint import find_damage, newest_checkpoint, save_weights, sha256, write_json
from mdm.nested import NestedUNet
from mdm.structure import to_dict
from mdm.train import Job, crossed
from small import small_job

BLOCKER = "import sys; [sys.modules.__setitem__(n, None) for n in ('prefect', 'mlflow', 'flows', 'evaluation')]; "


def prepare(run: Path, job: Job) -> Path:
    run.mkdir()
    write_json(run / "job.json", to_dict(job))
    return run


def start(run: Path) -> subprocess.Popen[str]:
    """The trainer in an interpreter that has no prefect, mlflow or sibling package."""
    code = BLOCKER + f"from mdm.train import main; sys.exit(main([{str(run)!r}]))"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )


def final_state(run: Path) -> dict[str, str]:
    """Digests of weights, EMA and optimizer state of the last checkpoint."""
    checkpoint, _ = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    return {str(p.relative_to(checkpoint)): sha256(p) for p in checkpoint.rglob("*.safetensors")}


def points(run: Path) -> dict[tuple[int, str], float]:
    """Every point of metrics.jsonl but the speeds; each may be there once."""
    found: dict[tuple[int, str], float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        point = json.loads(line)
        for name, value in point["values"].items():
            if not name.startswith("speed/"):
                assert (point["nimg"], name) not in found
                found[point["nimg"], name] = value
    return found


@pytest.fixture(scope="module")
def uninterrupted(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = prepare(tmp_path_factory.mktemp("whole") / "run", small_job(squares))
    process = start(run)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return run


def test_a_run_writes_its_record(uninterrupted: Path) -> None:
    outcome = json.loads((uninterrupted / "outcome.json").read_text())
    assert (outcome["outcome"], outcome["nimg"], outcome["attempt"]) == ("done", 96, 1)
    found = points(uninterrupted)
    assert {nimg for nimg, name in found if name == "train/loss_16"} == {24, 48, 72, 96}
    assert {nimg for nimg, name in found if name == "val/loss_8"} == {0, 48, 96}
    assert len(list((uninterrupted / "samples").glob("*.png"))) == 3


@pytest.mark.kills
def test_killed_at_any_moment_it_ends_bit_identical(uninterrupted: Path, squares: Path, tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", small_job(squares))
    draw = random.Random(5)
    for _ in range(3):
        process = start(run)
        deadline = time.monotonic() + 60
        seen = (run / "metrics.jsonl").stat().st_size if (run / "metrics.jsonl").exists() else 0
        while process.poll() is None and time.monotonic() < deadline:  # until it has moved on, then a random while more
            if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > seen:
                break
            time.sleep(0.01)
        time.sleep(draw.random() * 0.6)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (run / "outcome.json").exists() or json.loads((run / "outcome.json").read_text())["outcome"] == "done"
    process = start(run)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert final_state(run) == final_state(uninterrupted)
    assert points(run) == points(uninterrupted)


def test_sigterm_is_answered_by_a_checkpoint_and_a_clean_end(squares: Path, tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", small_job(squares, nimg=100_000, checkpoint_every_nimg=100_000))
    process = start(run)
    while process.poll() is None and not (run / "metrics.jsonl").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    process.terminate()
    output, _ = process.communicate(timeout=30)
    outcome = json.loads((run / "outcome.json").read_text())
    assert outcome["outcome"] == "stopped", output
    checkpoint, _ = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    assert int(checkpoint.name.removeprefix("nimg-")) == outcome["nimg"]
    assert find_damage(checkpoint) is None


def test_a_second_trainer_is_refused_while_the_first_lives(squares: Path, tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", small_job(squares, nimg=100_000))
    first = start(run)
    while first.poll() is None and not (run / "metrics.jsonl").exists():
        time.sleep(0.05)
    second = start(run)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 1
    assert "is being trained by another process" in output
    first.kill()
    first.communicate()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda job: {**job, "colour": 1}, "unknown field colour"),
        (lambda job: {**job, "train_data": "/nowhere"}, "/nowhere is no finished dataset"),
        (lambda job: {**job, "device": "cuda"}, "torch finds no GPU"),
    ],
)
def test_a_wrong_job_is_refused_with_the_reason(spoil, message: str, squares: Path, tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", small_job(squares))
    write_json(run / "job.json", spoil(json.loads((run / "job.json").read_text())))
    process = start(run)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert message in output


def test_weights_of_another_model_are_refused(squares: Path, tmp_path: Path) -> None:
    job = small_job(squares, num_levels=1)
    other = small_job(squares, num_levels=2).model
    save_weights(tmp_path / "init" / "raw", other, NestedUNet(other).state_dict())
    run = prepare(tmp_path / "run", Job(**{**vars(job), "init": str(tmp_path / "init")}))
    process = start(run)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "holds another model" in output


def test_crossed() -> None:
    assert [crossed(n, 8, 24) for n in (8, 16, 24, 32, 48)] == [False, False, True, False, True]
