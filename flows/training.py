"""Tasks that train and grow: each fills its own folder of the run, and is known to be done by the marker in it."""

from pathlib import Path
from shlex import quote
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.datasets.removal import between_removals
from flows.home import Stopped, Trouble
from flows.inputs import DataInputs, first_stage, first_start, stage_inputs, start_inputs
from flows.launch import JobDied, died, run_job, tail
from flows.markers import once, read_done
from flows.progress import board
from flows.records.artifacts import StageProgress
from flows.records.following import Follower, record_stage
from flows.records.tracking import Tracker
from mdm.data.embeddings import TextSource
from mdm.files import load_json, write_json
from mdm.presets import Preset, started_at
from mdm.run.checkpoint import Damaged, last_checkpoint, milestone_checkpoint
from mdm.run.folder import nimg_of
from mdm.run.job import Job
from mdm.structure import to_dict
from mdm.training.progressive import is_start, start_folder
from preprocessing.manifest import read_json, read_manifest


def trained_weights(folder: Path) -> Path:
    """The EMA that a finished training ended with. Raises Trouble where it is damaged or gone: no other is taken."""
    again = f"rm {quote(str(folder / 'done.json'))}, and the same command trains that stretch again"
    try:
        checkpoint = last_checkpoint(folder / "checkpoints")
    except Damaged as error:
        others = f", from {error.whole.name} on" if error.whole else ", once the damaged ones are moved away"
        raise Trouble(f"{error}. {again}{others}") from error
    told = read_json(folder / "outcome.json") or read_json(folder / "done.json")
    if checkpoint is None or told is None:
        raise Trouble(f"{folder} holds no {'checkpoint' if checkpoint is None else 'outcome.json'}: train it first")
    wanted = told["nimg"]
    if nimg_of(checkpoint) != wanted:
        raise Trouble(f"{folder} was trained to {wanted:,} images, its last checkpoint is {checkpoint.name}. {again}")
    return checkpoint / "ema"


def parent_checkpoint(preset: Preset, name: str, run: Path) -> Path:
    """The checkpoint that a stage starts from. Raises Trouble where it is damaged or not of that count of images."""
    start = preset.stages[name].start
    assert start is not None
    folder, wanted = run / start.stage, started_at(preset, name)
    batch = preset.stages[start.stage].training.batch_size
    try:
        if start.milestone:
            return milestone_checkpoint(folder / "checkpoints", start.milestone, wanted, batch)
        checkpoint = trained_weights(folder).parent
        if not wanted <= nimg_of(checkpoint) < wanted + batch:  # saved by the step that reaches it
            raise ValueError(f"{start.stage} ended at {nimg_of(checkpoint):,} images, not at {wanted:,}")
    except ValueError as error:
        away = f"mv {quote(str(folder))} {quote(f'{folder}.old')}"
        raise Trouble(f"stage {name} cannot start: {error}. To train {start.stage} anew: {away}") from error
    return checkpoint


def train_stages(
    preset: Preset, run: Path, data: Path, text: TextSource | None, made_of: DataInputs, tracker: Tracker
) -> Path:
    """Every stage once, in the preset's order, each from where it says that it starts -> the last one's folder."""
    folder = run
    for name, stage in preset.stages.items():
        init = None if stage.start is None else grow_stage(name, preset, run, made_of)
        folder = train_stage(name, preset, run / name, data, text, made_of, init, tracker)
    return folder


@task(task_run_name="grow {stage_name}", cache_policy=NO_CACHE)
def grow_stage(stage_name: str, preset: Preset, run: Path, made_of: DataInputs) -> Path:
    """What a stage starts from: another one's checkpoint, larger by any number of levels, none included (Sec. 3.3)."""
    name, folder, stage = f"grow {stage_name}", run / f"grow-{stage_name}", preset.stages[stage_name]
    start = stage.start
    assert start is not None
    board().start(name)

    def work() -> dict[str, Any]:
        checkpoint = parent_checkpoint(preset, stage_name, run)
        start_folder(checkpoint, start, stage.model, folder, preset.seed)
        return {"from": f"{start.stage}/{checkpoint.name}"}

    def whole() -> bool:
        trained = read_done(run / stage_name, stage_inputs(preset, stage_name, made_of), first_stage)
        return trained is not None or is_start(folder, start)  # a stage that is done starts no more

    done = once(folder, start_inputs(preset, stage_name, made_of), work, board().say, first_start, whole)
    board().finish(name, "reused" if done["reused"] else "done", done["seconds"])
    return folder


@task(
    task_run_name="train {stage_name}", retries=3, retry_delay_seconds=1, retry_condition_fn=died, cache_policy=NO_CACHE
)
def train_stage(
    stage_name: str,
    preset: Preset,
    folder: Path,
    data: Path,
    text: TextSource | None,
    made_of: DataInputs,
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
        train_digest=read_manifest(data / "train")["digest"],
        val_digest=read_manifest(data / "val")["digest"],
        text=text,
        init=None if init is None else str(init),
        seed=preset.seed,
        device=hardware.device,
        threads=hardware.threads,
        data_workers=hardware.data_workers,
    )
    inputs = stage_inputs(preset, stage_name, made_of)
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

    if read_done(folder, inputs, first_stage) is None:
        board().say(f"samples of {name} appear in {folder / 'samples'}")
    done = once(folder, inputs, lambda: between_removals(data, work, board().say), board().say, first_stage)
    recorded = record_stage(tracker, stage_name)
    progress.done()
    board().finish(name, "reused" if done["reused"] else "done", done["seconds"], _summary(recorded))
    return folder


def read_outcome(folder: Path) -> dict[str, Any]:
    """A trainer's last word. Raises JobDied where it had none."""
    if not (folder / "outcome.json").exists():
        raise JobDied(f"the trainer of {folder} ended without a word:\n{tail(folder / 'log.txt')}")
    return load_json(folder / "outcome.json")


def _summary(follower: Follower) -> str:
    losses = {k.removeprefix("val/loss_"): v for k, v in follower.latest.items() if k.startswith("val/loss_")}
    return "held-out loss " + " ".join(f"{px}² {v:.3f}" for px, v in losses.items()) if losses else ""
