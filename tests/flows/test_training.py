"""The flow follows the stage graph that a preset gives as data. The trainer here is a stand-in that learns nothing."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect.cache_policies import NO_CACHE
from safetensors.torch import load_file

from flows import training
from flows.data import embed_text, prepare_data, write_shard_set
from flows.evaluation import evaluate_samples, sample_images, write_report
from flows.home import Trouble, quiet_services
from flows.inputs import DataInputs, stage_inputs
from flows.progress import board
from flows.records.tracking import Tracker
from flows.reproduction import stage_names
from flows.status import stage_states
from flows.training import grow_stage, parent_checkpoint, train_stage, trained_weights
from mdm.config import Labels, Model, Sampling
from mdm.files import write_json
from mdm.network.nested import NestedUNet
from mdm.network.weights import load_weights
from mdm.presets import Data, Evaluation, Hardware, Preset, seen_before
from mdm.run.checkpoint import Contents, save_checkpoint
from mdm.stage import Cadence, Compute, Stage, Start, Training
from mdm.structure import digest, from_dict, to_dict
from small import small_model

DATA = DataInputs(train="data", encoder=None)
EARLY = Cadence(milestones={"early": 16})


def model(levels: int) -> Model:
    return replace(small_model(levels), text=None, labels=Labels(num_classes=4))


def stage(levels: int, start: Start | None = None, nimg: int = 32, cadence: Cadence = Cadence()) -> Stage:  # noqa: B008
    return Stage(model=model(levels), training=Training(nimg=nimg, batch_size=8), start=start, cadence=cadence)


def whole(**stages: Stage) -> Preset:
    return Preset(
        name="graph",
        summary="a stage graph",
        data=Data(name="squares"),
        text=None,
        stages=stages,
        sampling=Sampling(),
        evaluation=Evaluation(num_samples=8),
        hardware=Hardware(device="cpu", processes=1),
    )


BRANCHES = whole(
    a=stage(1, cadence=EARLY),
    b=stage(2, Start(stage="a")),  # grown from the end
    c=stage(1, Start(stage="a", weights="raw", optimizer="carried")),  # the same model, trained on
    d=stage(3, Start(stage="a", milestone="early"), nimg=24),  # from the milestone, by two levels at once
)


def stand_in(module: str, folder: Path, processes: int, threads: int, on_poll: Callable[[], None]) -> None:
    """What a trainer leaves behind: checkpoints, milestones among them, a line of metrics, the last word."""
    job = json.loads((folder / "job.json").read_text())
    wanted, nimg = job["cadence"]["milestones"], job["training"]["nimg"]
    network = NestedUNet(from_dict(Model, job["model"]))
    names = dict(network.named_parameters())
    for name, at in [*wanted.items(), ("end", nimg)]:
        raw, ema = ({k: torch.randn_like(p) for k, p in names.items()} for _ in range(2))
        moments = {f"exp_avg/{k}": torch.rand_like(p) for k, p in names.items()}
        made = Contents(
            at, 1, network.config, raw, ema, {"optimizer": moments}, {}, {} if name == "end" else {name: at}
        )
        save_checkpoint(folder / "checkpoints", made, Cadence())
    line = {"nimg": nimg, "time_ms": 1, "attempt": 1, "returns": 0, "values": {"train/loss": 0.5}}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    write_json(folder / "outcome.json", {"outcome": "done", "nimg": nimg, "attempt": 1, "seconds": 1.0, "reason": ""})
    with (folder.parent / "trained.txt").open("a") as file:
        file.write(f"{folder.name}\n")
    on_poll()


@pytest.fixture
def train(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Preset], Path]:
    """Run a preset's stages in a run folder, without a Prefect server -> the run folder."""
    monkeypatch.setenv("MDM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    quiet_services()

    class NoProgress:
        def __init__(self, *_: object) -> None: ...
        def update(self, done: float) -> None: ...
        def done(self) -> None: ...

    monkeypatch.setattr(training, "StageProgress", NoProgress)
    monkeypatch.setattr(training, "run_job", stand_in)
    for task in ("grow_stage", "train_stage"):
        monkeypatch.setattr(training, task, getattr(training, task).fn)
    run = tmp_path / "run"
    run.mkdir()

    def go(preset: Preset) -> Path:
        board(stage_names(preset), lambda line: None)
        write_json(run / "config.json", to_dict(preset))
        training.train_stages(preset, run, squares, None, DATA, Tracker(run, "run"))
        return run

    return go


def test_branches_each_start_where_they_say_and_their_parent_is_trained_once(train: Callable[[Preset], Path]) -> None:
    run = train(BRANCHES)
    assert (run / "trained.txt").read_text().split() == ["a", "b", "c", "d"]
    end, early = run / "a" / "checkpoints" / "nimg-000000000032", run / "a" / "checkpoints" / "nimg-000000000016"
    for name, parent, weights in (("b", end, "ema"), ("c", end, "raw"), ("d", early, "ema")):
        init = Path(json.loads((run / name / "job.json").read_text())["init"])
        assert init == run / f"grow-{name}"
        for which, source in (("raw", weights), ("ema", "ema")):
            grown, got = load_weights(init / which)
            assert grown == BRANCHES.stages[name].model
            assert all(torch.equal(got[k], v) for k, v in load_weights(parent / source)[1].items())
        assert (init / "optimizer.safetensors").exists() == (name == "c")
    carried = load_file(run / "grow-c" / "optimizer.safetensors")
    assert all(torch.equal(carried[k], v) for k, v in load_file(end / "state" / "optimizer.safetensors").items())
    assert json.loads((run / "a" / "job.json").read_text())["init"] is None
    states = {name: state for name, state, _ in stage_states(run)}
    rows = [f"{part}{name}" for name in "bcd" for part in ("grow-", "")]
    assert [name for name, state in states.items() if state == "done"] == ["a", *rows]
    train(BRANCHES)  # again: nothing is done twice
    assert (run / "trained.txt").read_text().split() == ["a", "b", "c", "d"]


def test_what_was_lost_of_finished_stages_is_made_again_where_it_is_needed(train: Callable[[Preset], Path]) -> None:
    run = train(BRANCHES)
    (run / "a" / "outcome.json").unlink()
    shutil.rmtree(run / "grow-b" / "raw")
    (run / "grow-c" / "optimizer.safetensors").unlink()
    (run / "c" / "done.json").unlink()
    train(BRANCHES)
    assert (run / "trained.txt").read_text().split() == ["a", "b", "c", "d", "c"]
    assert (run / "grow-c" / "optimizer.safetensors").exists()
    assert not (run / "grow-b" / "raw").exists()  # b is trained
    assert trained_weights(run / "a") == run / "a" / "checkpoints" / "nimg-000000000032" / "ema"


def test_a_branch_that_changes_leaves_the_others_alone(train: Callable[[Preset], Path]) -> None:
    run = train(BRANCHES)
    changed = replace(BRANCHES, stages={**BRANCHES.stages, "c": stage(1, Start(stage="a"))})
    train(changed)
    assert (run / "trained.txt").read_text().split() == ["a", "b", "c", "d", "c"]
    assert list(run.glob("grow-c.old-*")) and list(run.glob("c.old-*"))


def test_a_parent_that_lacks_what_a_stage_starts_from_is_named(train: Callable[[Preset], Path]) -> None:
    preset = whole(a=stage(1, cadence=EARLY))
    run = train(preset)
    moved = replace(preset.stages["a"], cadence=Cadence(milestones={"early": 24, "late": 32}))
    for milestone, message in (("early", "no milestone early at 24 images, but one at 16"), ("late", "no milestone")):
        with pytest.raises(Trouble, match=message):
            train(whole(a=moved, b=stage(2, Start(stage="a", milestone=milestone))))
    assert not (run / "grow-b" / "done.json").exists()


def test_a_milestone_that_was_saved_later_is_started_from(train: Callable[[Preset], Path], tmp_path: Path) -> None:
    """Its step was skipped, say: it was saved after the next good one."""
    preset = whole(a=stage(1, cadence=EARLY), b=stage(2, Start(stage="a", milestone="early")))
    run = train(whole(a=preset.stages["a"]))
    early = run / "a" / "checkpoints" / "nimg-000000000016"
    weights = NestedUNet(model(1)).state_dict()
    made = Contents(24, 1, model(1), weights, weights, {}, {}, {"early": 16})
    save_checkpoint(early.parent, made, Cadence())
    shutil.rmtree(early)
    assert parent_checkpoint(preset, "b", run) == early.with_name("nimg-000000000024")


def test_a_damaged_end_is_not_replaced_by_what_came_before_and_the_advice_works(
    train: Callable[[Preset], Path], tmp_path: Path
) -> None:
    preset = whole(a=stage(1, cadence=EARLY))
    run = train(preset)
    end = run / "a" / "checkpoints" / "nimg-000000000032"
    (end / "raw" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(Trouble, match=r"nimg-000000000032 is damaged .*from nimg-000000000016 on") as damaged:
        trained_weights(run / "a")
    with pytest.raises(Trouble, match="nimg-000000000032 is damaged"):
        train(whole(a=preset.stages["a"], b=stage(2, Start(stage="a"))))
    shutil.rmtree(end)
    with pytest.raises(Trouble, match="was trained to 32 images, its last checkpoint is nimg-000000000016"):
        trained_weights(run / "a")
    advice = re.search(r"rm [^,]*", str(damaged.value))
    assert advice is not None
    subprocess.run(shlex.split(advice[0]), check=True)
    train(preset)
    assert trained_weights(run / "a") == end / "ema"


def test_rows_follow_the_graph() -> None:
    rows = stage_names(BRANCHES)[3:-3]
    assert rows == ["train a", "grow b", "train b", "grow c", "train c", "grow d", "train d"]
    assert stage_names(whole(a=stage(1), b=stage(2)))[3:-3] == ["train a", "train b"]  # both from fresh weights


def test_images_seen_are_those_of_the_ancestors() -> None:
    assert {name: seen_before(BRANCHES, name) for name in BRANCHES.stages} == {"a": 0, "b": 32, "c": 32, "d": 16}


def test_stages_need_not_match_the_levels() -> None:
    """The shape of 64 -> 16x64 -> 16x256: the second stage adds no level. Time is not nested."""
    preset = whole(**{"64": stage(1), "16x64": stage(1, Start(stage="64")), "16x256": stage(2, Start(stage="16x64"))})
    assert stage_names(preset)[3:-3] == ["train 64", "grow 16x64", "train 16x64", "grow 16x256", "train 16x256"]


# -- a stage is known by what determines it ------------------------------------------------------------------------


def known_as(preset: Preset, data: DataInputs = DATA) -> dict[str, str]:
    return {name: digest(stage_inputs(preset, name, data)) for name in preset.stages}


def change(name: str, **fields: Any) -> Preset:
    return replace(BRANCHES, stages={**BRANCHES.stages, name: replace(BRANCHES.stages[name], **fields)})


@pytest.mark.parametrize(
    "same",
    [
        change("a", compute=Compute(max_batch_per_process=2, precision="float32", recompute=(8,))),
        change("a", cadence=replace(EARLY, log_every_nimg=1, keep_checkpoints=5, average_every_nimg=8)),
        change("a", cadence=replace(EARLY, keep_ema_every_nimg=8, checkpoint_every_minutes=0.5)),
        replace(BRANCHES, hardware=Hardware(device="cuda", processes=8, data_workers=4)),
        replace(BRANCHES, sampling=Sampling(steps=2), evaluation=Evaluation(num_samples=9), name="other"),
        replace(BRANCHES, storage=replace(BRANCHES.storage, check="digest", tolerate=3)),
    ],
)
def test_what_does_not_determine_the_weights_changes_no_name(same: Preset) -> None:
    assert known_as(same) == known_as(BRANCHES)


@pytest.mark.parametrize(
    ("other", "renamed"),
    [
        (change("a", training=Training(nimg=32, batch_size=8, lr=1e-3)), "abcd"),
        (change("b", training=Training(nimg=40, batch_size=8)), "b"),
        (change("c", start=Start(stage="a", weights="raw")), "c"),
        (change("c", start=Start(stage="a", optimizer="carried")), "c"),
        (change("a", cadence=Cadence(milestones={"early": 8})), "d"),
        (replace(BRANCHES, seed=1), "abcd"),
    ],
)
def test_what_determines_a_stages_weights_renames_it_and_what_comes_of_it(other: Preset, renamed: str) -> None:
    before, after = known_as(BRANCHES), known_as(other)
    assert {name for name in before if before[name] != after[name]} == set(renamed)


def test_names_of_stages_and_milestones_determine_nothing() -> None:
    stages = BRANCHES.stages
    other = whole(
        x=replace(stages["a"], cadence=Cadence(milestones={"first": 16})),
        y=replace(stages["d"], start=Start(stage="x", milestone="first")),
    )
    assert list(known_as(other).values()) == [known_as(BRANCHES)[name] for name in "ad"]
    for data in (DataInputs(train="other", encoder=None), DataInputs(train="data", encoder="other")):
        assert set(known_as(BRANCHES, data).values()).isdisjoint(known_as(BRANCHES).values())


def test_prefect_keeps_no_results_of_tasks() -> None:
    """The markers decide what is done; a key for Prefect's cache could not be made of a tracker, loudly."""
    tasks = (prepare_data, write_shard_set, embed_text, grow_stage, train_stage)
    for task in (*tasks, sample_images, evaluate_samples, write_report):
        assert task.cache_policy == NO_CACHE
