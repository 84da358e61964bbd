"""Tasks that train and grow: each fills its own folder of the run, and is known to be done by the marker in it."""

import json
from pathlib import Path
from typing import Any

from prefect import task

from flows.artifacts import StageProgress
from flows.following import Follower, record_stage
from flows.home import Stopped, Trouble
from flows.launch import JobDied, died, run_job, tail
from flows.markers import once, read_done
from flows.progress import board
from flows.tracking import Tracker
from mdm.data.embeddings import TextSource
from mdm.files import write_json
from mdm.presets import Preset
from mdm.run.checkpoint import milestone_checkpoint, newest_checkpoint
from mdm.run.job import Job
from mdm.structure import digest, to_dict
from mdm.training.progressive import start_folder


def trained_weights(folder: Path) -> Path:
    """The EMA of a finished training run."""
    checkpoint, _ = newest_checkpoint(folder / "checkpoints")
    if checkpoint is None:
        raise Trouble(f"{folder} holds no whole checkpoint: train it first")
    return checkpoint / "ema"


def stage_inputs(preset: Preset, name: str, data: list[str]) -> dict[str, Any]:
    """What determines a stage's weights, so that its digest is its name: the parent's is in it, hence all ancestors'.

    How it is computed, reported, stored and where it lies is not. ``data``: digests of the samples and their states.
    """
    stage = preset.stages[name]
    return {
        "model": to_dict(stage.model),
        "training": to_dict(stage.training),
        "start": None if stage.start is None else start_inputs(preset, name, data),
        "data": data,
        "seed": preset.seed,
    }


def start_inputs(preset: Preset, name: str, data: list[str]) -> dict[str, Any]:
    """What determines the weights that a stage starts from. The names of stages and milestones do not."""
    stage = preset.stages[name]
    assert stage.start is not None
    return {
        "parent": digest(stage_inputs(preset, stage.start.stage, data)),
        "nimg": started_at(preset, name),
        "weights": stage.start.weights,
        "optimizer": stage.start.optimizer,
        "model": to_dict(stage.model),
        "seed": preset.seed,
    }


def started_at(preset: Preset, name: str) -> int:
    """Images that the parent has seen when a stage starts from it."""
    start = preset.stages[name].start
    if start is None:
        return 0
    parent = preset.stages[start.stage]
    return parent.cadence.milestones[start.milestone] if start.milestone else parent.training.nimg


def parent_checkpoint(preset: Preset, name: str, run: Path) -> Path:
    """The checkpoint that a stage starts from. Raises Trouble where it is damaged or not of that count of images."""
    start = preset.stages[name].start
    assert start is not None
    folder, wanted = run / start.stage, started_at(preset, name)
    if start.milestone:
        try:
            checkpoint = milestone_checkpoint(folder / "checkpoints", start.milestone)
        except ValueError as error:
            raise Trouble(f"stage {name} cannot start: {error}") from error
    else:
        checkpoint = trained_weights(folder).parent
    nimg = json.loads((checkpoint / "manifest.json").read_text())["nimg"]
    if (
        not wanted <= nimg < wanted + preset.stages[start.stage].training.batch_size
    ):  # saved by the step that reaches it
        raise Trouble(
            f"stage {name} starts from {start.stage} at {wanted:,} images, but {checkpoint} is of {nimg:,}: move "
            f"{folder} away and run the same command again"
        )
    return checkpoint


def train_stages(
    preset: Preset, run: Path, data: Path, text: TextSource | None, data_digest: list[str], tracker: Tracker
) -> Path:
    """Every stage once, in the preset's order, each from where it says that it starts -> the last one's folder."""
    folder = run
    for name, stage in preset.stages.items():
        init = None if stage.start is None else grow_stage(name, preset, run, data_digest)
        folder = train_stage(name, preset, run / name, data, text, data_digest, init, tracker)
    return folder


@task(task_run_name="grow {stage_name}")
def grow_stage(stage_name: str, preset: Preset, run: Path, data_digest: list[str]) -> Path:
    """What a stage starts from: another one's checkpoint, larger by any number of levels, none included (Sec. 3.3)."""
    name, folder, stage = f"grow {stage_name}", run / f"grow-{stage_name}", preset.stages[stage_name]
    board().start(name)

    def work() -> dict[str, Any]:
        assert stage.start is not None
        checkpoint = parent_checkpoint(preset, stage_name, run)
        start_folder(checkpoint, stage.start, stage.model, folder, preset.seed)
        return {"from": f"{stage.start.stage}/{checkpoint.name}"}

    done = once(folder, start_inputs(preset, stage_name, data_digest), work, board().say)
    board().finish(name, "reused" if done["reused"] else "done", done["seconds"])
    return folder


@task(task_run_name="train {stage_name}", retries=3, retry_delay_seconds=1, retry_condition_fn=died)
def train_stage(
    stage_name: str,
    preset: Preset,
    folder: Path,
    data: Path,
    text: TextSource | None,
    data_digest: list[str],
    init: Path | None,
    tracker: Tracker,
) -> Path:
    """Train one stage in a process of its own, follow it into MLflow, and mark it done."""
    name, stage = f"train {stage_name}", preset.stages[stage_name]
    hardware, total = preset.hardware, stage.training.nimg
    job = Job(
        model=stage.model,
        training=stage.training,
        compute=stage.compute,
        cadence=stage.cadence,
        storage=preset.storage,
        sampling=preset.sampling,
        train_data=str(data / "train"),
        val_data=str(data / "val"),
        text=text,
        init=None if init is None else str(init),
        seed=preset.seed,
        device=hardware.device,
        threads=hardware.threads,
        data_workers=hardware.data_workers,
    )
    inputs = stage_inputs(preset, stage_name, data_digest)
    board().start(name, total, "img")
    progress = StageProgress(name, total)
    follower = Follower(tracker, stage_name)

    def on_poll() -> None:
        follower.poll()
        if follower.nimg:
            loss = follower.latest.get("train/loss")
            board().update(name, follower.nimg, note="" if loss is None else f"loss {loss:.3f}")
            progress.update(follower.nimg)
        if follower.trouble and follower.trouble not in board().notes:
            board().say(follower.trouble)

    def work() -> dict[str, Any]:
        write_json(folder / "job.json", to_dict(job))
        with tracker.reachable():
            tracker.reopen(stage_name)
        try:
            run_job("mdm.train", folder, hardware.processes, hardware.threads, on_poll)
        except JobDied:
            if not (folder / "outcome.json").exists():  # exit codes say nothing; the trainer's last word does
                raise
        outcome = read_outcome(folder)
        if outcome["outcome"] != "done":
            kind = Stopped if outcome["outcome"] == "stopped" else Trouble
            raise kind(f"training {folder} {outcome['outcome']}: {outcome['reason']}. Run the same command to go on.")
        return {"nimg": outcome["nimg"], "attempts": outcome["attempt"], "trained_s": outcome["seconds"]}

    if read_done(folder, digest(inputs)) is None:
        board().say(f"samples of {name} appear in {folder / 'samples'}")
    done = once(folder, inputs, work, board().say)
    recorded = record_stage(tracker, stage_name)
    progress.done()
    board().finish(name, "reused" if done["reused"] else "done", done["seconds"], _summary(recorded))
    return folder


def read_outcome(folder: Path) -> dict[str, Any]:
    """A trainer's last word. Raises JobDied where it had none."""
    try:
        return json.loads((folder / "outcome.json").read_text())
    except FileNotFoundError:
        raise JobDied(f"the trainer of {folder} ended without a word:\n{tail(folder / 'log.txt')}") from None


def _summary(follower: Follower) -> str:
    losses = {k.removeprefix("val/loss_"): v for k, v in follower.latest.items() if k.startswith("val/loss_")}
    return "held-out loss " + " ".join(f"{px}² {v:.3f}" for px, v in losses.items()) if losses else ""
