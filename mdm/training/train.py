"""The trainer: one loop for every stage, from one CPU process to many GPUs. Runs under torchrun:

    torchrun --nproc-per-node 2 -m mdm.train RUN_FOLDER [--attempt N] [--tolerate N]

The run folder holds ``job.json`` (what to train, see ``run/job.py``) and receives config.json, metrics.jsonl, samples/,
checkpoints/ and outcome.json, which has the last word: {"outcome": done | stopped | failed, "nimg", "attempt",
"seconds", "reason"}. Started again it goes on from its newest whole checkpoint.
"""

import argparse
import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from mdm.data.leases import Lease, removal_asked
from mdm.data.shards import Shards, TrainingSet, batches, null_condition
from mdm.data.tars import DamagedShard
from mdm.data.text import online_encoder
from mdm.files import write_json
from mdm.network.nested import NestedUNet
from mdm.run.attempts import Attempt, Fenced, attempt
from mdm.run.checkpoint import Contents, Writer, newest_checkpoint
from mdm.run.job import Job, load_job
from mdm.run.watch import Watch
from mdm.training.compute import join_group, pick_device, pick_dtype, set_determinism
from mdm.training.gradients import Gradients, Split
from mdm.training.heldout import HeldOut
from mdm.training.metrics import Closed, Window, crossed
from mdm.training.posthoc import write_snapshot
from mdm.training.record import Record
from mdm.training.state import State

GO_ON, STOP, LEAVE = 0, 1, 2  # what the ranks agree on at every step


class Stop(Exception):
    """A clean end was asked for: by signal, or by a STOP file in the run folder."""


class Interrupted(Exception):
    """Work between two steps was given up, because a stop was asked for; the next step ends the run."""


class NotFinite(Exception):
    """Too many steps in a row had a loss or gradient that was not finite."""


class Trainer:
    """Everything that one process of a job holds."""

    def __init__(self, run: Path, job: Job, mine: Attempt | None) -> None:
        self.run, self.job, self.training, self.mine = run, job, job.training, mine
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.record = Record(run, mine)
        self.nimg, self.trained_s, self.substituted, self.failed_saves = 0, 0.0, 0, 0
        self.saved: int | None = None  # images seen at the newest checkpoint
        self.owes_evaluation = False  # the one at this count of images was interrupted
        self.watch = Watch(run, self.rank, job.compute.hang_s, self._on_hang)
        self.device = pick_device(job.device)
        self.dtype = pick_dtype(job.compute.precision, self.device)
        set_determinism(job.compute.deterministic)
        if job.threads:
            torch.set_num_threads(job.threads)
        self.split = Split(job, self.rank, self.world)
        self.control = join_group(self.device, job.compute.hang_s)
        self.state = State(job, self.device, self.dtype)
        self.returns: list[dict[str, int]] = self._read_returns()
        self._start()
        self._open_data()
        self.gradients = Gradients(job, self.split, self.world, self.state, self.encoder, self.dtype)
        self.window = self._window()
        self.pending: Closed | None = None
        self.record.open(job, self.device, self.dtype, self.world)
        if mine is not None:
            (run / "checkpoints").mkdir(exist_ok=True)
            self.writer = Writer(run / "checkpoints", job.cadence, mine.check)

    def _open_data(self) -> None:
        job = self.job
        train = Shards(Path(job.train_data), job.text, job.storage, job.train_digest)
        val = Shards(Path(job.val_data), job.text, job.storage, job.val_digest)
        if self.rank == 0:
            for line in [*train.check(), *val.check()]:
                self.record.say(line)
        if self.data_seen is not None and self.data_seen["digest"] != train.revision["digest"]:
            raise ValueError(f"{self.run} was trained on another data set than {job.train_data} is now")
        if self.data_seen is not None and self.data_seen != train.revision:
            self.record.say(
                f"samples were removed from {job.train_data} since the last checkpoint; the others keep their turn"
            )
        self.revision = train.revision
        dropout = self.training.caption_dropout if job.model.text else self.training.label_dropout
        null = null_condition(job.model, train)
        self.data = TrainingSet(train, job.seed, null, dropout, self.training.flip, self.training.window_shards)
        self.encoder = online_encoder(job.text, self.device)
        self.held_out = HeldOut(
            val, self.encoder, job.model, self.training.loss, job.sampling, job.seed, self.device, self.split.micro
        )

    # -- state ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """From the newest whole checkpoint, or else from another stage's weights, or fresh."""
        self.data_seen: dict[str, Any] | None = None
        self.windows: list[dict[str, Any]] = []
        checkpoint = self._choose_checkpoint()
        if checkpoint is not None:
            self._load(checkpoint)
            self.record.say(f"resuming from {checkpoint.name}")
        elif self.job.init is not None:
            self.state.start_from(Path(self.job.init))

    def _choose_checkpoint(self, before_skips: bool = False) -> Path | None:
        """The newest whole checkpoint, the same on all ranks; for a return, one from before steps were skipped."""
        chosen: list[Any] = [None]
        if self.rank == 0:
            wanted = (lambda folder: not _counters(folder)["skipping"]) if before_skips else None
            checkpoint, passed_over = newest_checkpoint(self.run / "checkpoints", wanted)
            for line in passed_over:
                self.record.say(line)
            chosen = [None if checkpoint is None else str(checkpoint)]
        if self.control is not None:
            dist.broadcast_object_list(chosen, src=0, group=self.control)
        return None if chosen[0] is None else Path(chosen[0])

    def _load(self, checkpoint: Path) -> None:
        counters = _counters(checkpoint)
        self.state.load(checkpoint, counters["scaler"])
        self.saved = self.nimg = counters["nimg"]
        self.trained_s, self.substituted = counters["trained_s"], counters["substituted"]
        self.data_seen, self.windows = counters["data"], counters["windows"]
        self.owes_evaluation = counters["owes_evaluation"]

    def _window(self) -> Window:
        window = Window(self.device, len(self.job.model.levels))
        if len(self.windows) == self.world:  # at another world size the first metrics line covers fewer steps
            window.load(self.windows[self.rank])
        return window

    def save(self, wait: bool = False) -> OSError | None:
        """Have everything written (rank 0). ``wait``: until it is on the disk -> why it is not, if so."""
        self._read_pending()
        if self.window.row > 0 and not wait:
            return None  # amid skipped steps: it would push out the last one from before
        begun, error = time.perf_counter(), None
        if self.saved != self.nimg:
            self._copy_and_submit()
            self.saved = self.nimg
        if wait and self.rank == 0:
            error = self.writer.finish()
            self._note_failure(error)
        self.window.clock.stall += time.perf_counter() - begun
        if wait:
            self._barrier()
        return error

    def _copy_and_submit(self) -> None:
        """Whole copies of all state on rank 0, and on to the thread that writes them."""
        windows = [self.window.state()]
        if self.control is not None:
            windows *= self.world
            dist.all_gather_object(windows, windows[0], group=self.control)
        raw, ema, files = self.state.whole()
        if self.mine is None:
            return
        counters = {
            "nimg": self.nimg,
            "trained_s": self.trained_s,
            "substituted": self.substituted,
            "owes_evaluation": self.owes_evaluation,
            "skipping": windows[0]["sums"][-1] > 0,
            "data": self.revision,
            "scaler": self.state.scaler.state_dict(),
            "windows": windows,
        }
        milestone = next((name for name, at in self.job.cadence.milestones.items() if self._passed(at)), None)
        self._note_failure(self.writer.finish())
        self.writer.submit(Contents(self.nimg, self.mine.number, self.job.model, raw, ema, files, counters, milestone))

    def _note_failure(self, error: OSError | None) -> None:
        if error is not None:
            self.failed_saves += 1
            self.record.say(f"CHECKPOINT NOT WRITTEN: {error}. Training goes on, the last whole one is kept")
            self.record.log(self.nimg, {"checkpoint/failed": float(self.failed_saves)}, len(self.returns))

    # -- the loop ------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """See ``training.nimg`` images; raises Stop when asked to end."""
        if self.nimg == 0 or self.owes_evaluation:
            self.evaluate()
            self.save()
        while True:
            try:
                self._steps()
                break
            except NotFinite as trouble:
                self._return(str(trouble))
        error = self.save(wait=True)
        if error is not None:
            raise error

    def _steps(self) -> None:
        training, job = self.training, self.job
        bar = tqdm(
            total=training.nimg,
            initial=self.nimg,
            unit="img",
            desc=f"train {'/'.join(map(str, job.model.resolutions))} px",
            disable=self.rank != 0 or not sys.stderr.isatty(),
        )
        cuda = self.device.type == "cuda"
        loader = batches(self.data, self._groups(self.nimg), job.data_workers, pin=cuda)
        while self.nimg < training.nimg:
            self._heed()
            clock = self.window.clock
            clock.begin_step()
            losses, substituted = torch.zeros(len(job.model.levels), device=self.device), 0
            for i, places in enumerate(self.split.places):
                batch = next(loader)
                clock.got_data()
                for line in batch.substituted:
                    print(line, flush=True)
                substituted += len(batch.substituted)
                losses += self.gradients(batch, places, last=i == len(self.split.places) - 1)
                clock.end_phase("forward_backward")
            grad_norm, keep = self.state.step(losses, self.nimg)
            self.nimg += training.batch_size
            self.window.add(losses, grad_norm, keep, substituted)
            clock.end_phase("optimizer")
            clock.end_step(training.batch_size)
            self.watch.beat()
            bar.update(training.batch_size)
            self._report()
        bar.close()

    def _groups(self, start: int) -> Iterator[list[int]]:
        """Positions of this process's micro-batches, from a count of images on."""
        for nimg in range(start, self.training.nimg, self.training.batch_size):
            first = self._first(nimg)
            yield from ([first + place for place in places] for places in self.split.places)

    def _first(self, nimg: int) -> int:
        """Position of the first sample of the step that begins at nimg images: further on after returns."""
        return nimg + sum(entry["offset"] for entry in self.returns if entry["to"] <= nimg)

    def _report(self) -> None:
        """Whatever is due by now: a metrics line, held-out loss and samples, a snapshot, a checkpoint."""
        cadence, done = self.job.cadence, self.nimg >= self.training.nimg
        if done or self._due(cadence.log_every_nimg):
            closed = self.window.close(self.nimg)
            self._read_pending()
            self.pending = closed
            if done or self.device.type == "cpu":  # a GPU's numbers are read an interval late
                self._read_pending()
        if done or self._due(cadence.eval_every_nimg):
            self.evaluate()
        if self.state.averages is not None and (done or self._due(cadence.average_every_nimg)):
            whole = self.state.whole_averages()
            if self.rank == 0:
                with self.record.may_fail("snapshot"):
                    write_snapshot(self.run, self.nimg, self.job.model, whole)
        if not done and (
            self._due(cadence.checkpoint_every_nimg) or any(self._passed(at) for at in cadence.milestones.values())
        ):
            self.save()

    def _read_pending(self) -> None:
        """Write down the window that ended last; raises NotFinite where too many steps in a row were skipped."""
        closed, self.pending = self.pending, None
        if closed is None:
            return
        means = closed.read()
        self.trained_s += closed.clock.wall
        self.substituted += means.substituted
        self.record.window(closed, means, None if self.encoder is None else self.encoder.cut, len(self.returns))
        for i, bad in enumerate(means.skipped):
            if bad and self.mine is not None:
                nimg = closed.nimg - (len(means.skipped) - i) * self.training.batch_size
                first = self._first(nimg)
                samples = [self.data.index(first + place) for place in range(self.training.batch_size)]
                self.record.evidence(nimg, first, samples)
        if self.substituted > self.job.storage.tolerate:
            raise DamagedShard(
                f"{self.substituted} samples could not be read (named in the log), {self.job.storage.tolerate} are "
                "tolerated: repair the shards, or raise storage.tolerate (--tolerate)"
            )
        if means.longest_row >= self.training.max_skips:
            raise NotFinite(f"{means.longest_row} steps in a row up to {closed.nimg} images were not finite")

    def _return(self, why: str) -> None:
        """Go back to the last checkpoint from before, and on from there with other data."""
        evidence = "the steps stand in nonfinite.jsonl"
        if len(self.returns) >= self.training.max_returns:
            raise FloatingPointError(
                f"{why}, after {len(self.returns)} returns to a checkpoint: {evidence}; lower training.lr or look there"
            )
        if self.rank == 0:
            self._note_failure(self.writer.finish())
        checkpoint = self._choose_checkpoint(before_skips=True) or self._choose_checkpoint()
        if checkpoint is None:
            raise FloatingPointError(f"{why}, and there is no whole checkpoint to return to: {evidence}")
        left = self.nimg
        self._load(checkpoint)
        self.returns.append({"to": self.nimg, "offset": left - self.nimg + self.training.batch_size, "from": left})
        if self.rank == 0:
            write_json(self.run / "returns.json", self.returns)
        self.windows, self.pending = [], None
        self.window = self._window()
        self.record.say(
            f"{why}: back to {checkpoint.name}, on with other data (return {len(self.returns)}); {evidence}"
        )

    def _read_returns(self) -> list[dict[str, int]]:
        path = self.run / "returns.json"
        return json.loads(path.read_text()) if path.exists() else []

    def evaluate(self) -> None:
        """Held-out loss of the EMA and a grid of its samples, at all resolutions."""
        self._read_pending()
        weights = self.state.spread.whole(self.state.ema.weights)
        if self.rank == 0:
            with torch.device("meta"):
                network = NestedUNet(self.job.model)
            network.to_empty(device=self.device).load_state_dict(weights)
            path = self.run / "samples" / f"{self.nimg:012d}.png"
            self.owes_evaluation = True
            with contextlib.suppress(Interrupted):
                losses = self.held_out.losses(network.eval(), self._alive)
                self.record.log(self.nimg, losses, len(self.returns))
                with self.record.may_fail("sample grid"):
                    self.held_out.grid(network, path, self._alive)
                self.owes_evaluation = False
        self._barrier()

    # -- small things --------------------------------------------------------------------------------------------

    def _due(self, every_nimg: int) -> bool:
        return crossed(self.nimg, self.training.batch_size, every_nimg)

    def _passed(self, nimg: int) -> bool:
        """Whether the last step went over that count of images."""
        return self.nimg - self.training.batch_size < nimg <= self.nimg

    def _alive(self) -> None:
        """Between two steps of an evaluation: a sign of life, and an end to it where a stop was asked for."""
        self.watch.beat()
        if self._asked() != GO_ON:
            raise Interrupted

    def _asked(self) -> int:
        if self.mine is not None and self.mine.is_fenced():
            return LEAVE
        asked = self.watch.asked or removal_asked() or (self.rank == 0 and (self.run / "STOP").exists())
        return STOP if asked else GO_ON

    def _heed(self) -> None:
        """Between steps: do what any rank was asked to; all ranks find the same at the same step."""
        asked = self._asked()
        if self.control is not None:
            flag = torch.tensor(asked)
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.control)
            asked = int(flag)
        if asked == LEAVE:
            raise Fenced("a newer attempt owns the run folder: leaving without writing")
        if asked == STOP:
            self.save(wait=True)
            raise Stop(f"asked to stop at {self.nimg} images" + (f": {why}" if (why := removal_asked()) else ""))

    def _barrier(self) -> None:
        if self.control is not None:
            with self.watch.paused():
                dist.barrier(self.control)

    def _on_hang(self, reason: str) -> None:
        if self.mine is not None:
            self.mine.end("failed", nimg=self.nimg, seconds=self.trained_s, reason=reason)


def _counters(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "state" / "state.json").read_text())


def _work(run: Path, job: Job, mine: Attempt | None) -> str:
    """Train to an end, write the last word -> the outcome."""
    trainer, outcome, reason = None, "done", ""
    try:
        trainer = Trainer(run, job, mine)
        trainer.train()
    except Stop as stop:
        outcome, reason = "stopped", str(stop)
        print(f"{reason}; the same command goes on from there", file=sys.stderr, flush=True)
    except Fenced as fenced:
        print(fenced, file=sys.stderr, flush=True)
        return "fenced"
    except Exception as error:
        outcome, reason = "failed", f"{type(error).__name__}: {error}"
        traceback.print_exc()
    if mine is not None:
        nimg, seconds = (trainer.nimg, trainer.trained_s) if trainer else (0, 0.0)
        mine.end(outcome, nimg=nimg, seconds=seconds, reason=reason)
    return outcome


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mdm.train", description="Train the job of a run folder.")
    parser.add_argument("run", metavar="RUN_FOLDER", type=Path)
    parser.add_argument("--attempt", type=int, metavar="N", help="number of this start (default: the next)")
    parser.add_argument("--tolerate", type=int, metavar="N", help="unreadable samples that others may replace")
    arguments = parser.parse_args(argv)
    try:
        job = load_job(arguments.run)
        if arguments.tolerate is not None:
            job = replace(job, storage=replace(job.storage, tolerate=arguments.tolerate))
        if int(os.environ.get("RANK", "0")) == 0:
            folders = {Path(folder).parent for folder in (job.train_data, job.val_data)}
            with attempt(arguments.run, arguments.attempt) as mine, contextlib.ExitStack() as leases:
                for folder in sorted(folders):
                    leases.enter_context(Lease(folder, f"training {arguments.run}"))
                outcome = _work(arguments.run, job, mine)
        else:
            outcome = _work(arguments.run, job, None)
    except (ValueError, Fenced) as error:
        print(f"mdm train: {error}", file=sys.stderr)
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0 if outcome == "done" else 1


if __name__ == "__main__":
    sys.exit(main())
