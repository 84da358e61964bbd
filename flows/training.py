"""Tasks that train and grow: each fills its own folder of the run, and is known to be done by the marker in it."""

import json
from pathlib import Path
from typing import Any

from prefect import task

from flows.artifacts import StageProgress
from flows.home import Trouble
from flows.launch import JobDied, died, run_job, tail
from flows.markers import once, read_done
from flows.progress import board
from flows.tracking import Follower, Tracker
from mdm.checkpoint import load_weights, newest_checkpoint, save_weights, write_json
from mdm.embeddings import TextSource
from mdm.job import Job
from mdm.presets import Preset
from mdm.progressive import grow
from mdm.stage import Stage
from mdm.structure import digest, to_dict


def trained_weights(folder: Path) -> Path:
    """The EMA of a finished training run."""
    checkpoint, _ = newest_checkpoint(folder / "checkpoints")
    if checkpoint is None:
        raise Trouble(f"{folder} holds no whole checkpoint: train it first")
    return checkpoint / "ema"


@task(task_run_name="grow {stage_name}")
def grow_stage(stage_name: str, stage: Stage, parent: Path, folder: Path, seed: int) -> Path:
    """Weights of the next stage from the EMA of the one before, larger by one or more levels (Sec. 3.3)."""
    name = f"grow {stage_name}"
    board().start(name)
    parent_done = json.loads((parent / "done.json").read_text())

    def work() -> dict[str, Any]:
        model, weights = load_weights(trained_weights(parent))
        save_weights(folder / "weights", stage.model, grow(model, weights, stage.model, seed))
        return {"from": parent.name}

    inputs = {"parent": parent_done["inputs"], "model": to_dict(stage.model), "seed": seed}
    done = once(folder, inputs, work, board().say)
    board().finish(name, "reused" if done["reused"] else "done", done["seconds"])
    return folder / "weights"


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
    parent = None if init is None else json.loads((init.parent / "done.json").read_text())["inputs"]
    # What determines the weights; where things lie and how often they are reported does not.
    inputs = {
        "model": to_dict(stage.model),
        "training": to_dict(stage.training),
        "data": data_digest,
        "parent": parent,
        "seed": preset.seed,
    }
    board().start(name, total, "img")
    progress = StageProgress(name, total)
    follower = Follower(tracker, stage_name, folder)

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
        tracker.params(
            stage_name, {"stage": stage_name, "resolution_px": stage.model.resolutions[-1], **to_dict(stage.training)}
        )
        try:
            run_job("mdm.train", folder, hardware.processes, hardware.threads, on_poll)
        except JobDied:
            if not (folder / "outcome.json").exists():  # exit codes say nothing; the trainer's last word does
                raise
        outcome = read_outcome(folder)
        if outcome["outcome"] != "done":
            raise Trouble(
                f"training {folder} {outcome['outcome']}: {outcome['reason']}. Run the same command to go on."
            )
        follower.finish()
        return {"nimg": outcome["nimg"], "attempts": outcome["attempt"], "trained_s": outcome["seconds"]}

    if read_done(folder, digest(inputs)) is None:
        board().say(f"samples of {name} appear in {folder / 'samples'}")
    done = once(folder, inputs, work, board().say)
    if not done["reused"]:
        tracker.finish(stage_name)
    progress.done()
    board().finish(name, "reused" if done["reused"] else "done", done["seconds"], _summary(follower))
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
