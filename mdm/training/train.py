"""The trainer: one loop for every stage, from one CPU process to many GPUs. Runs under torchrun:

    torchrun --nproc-per-node 2 -m mdm.train RUN_FOLDER [--attempt N] [--tolerate N]

The run folder holds ``job.json`` (what to train, see ``run/job.py``) and receives config.json, metrics.jsonl, samples/,
checkpoints/ and outcome.json, which has the last word: {"outcome": done | stopped | failed, "nimg", "attempt",
"seconds", "reason"}. Started again it goes on from its newest whole checkpoint.
"""

import argparse
import contextlib
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist

from mdm.data.batches import TrainingSet
from mdm.data.leases import Lease, removal_asked
from mdm.data.shards import Shards, null_condition
from mdm.data.tars import DamagedShard
from mdm.data.text import online_encoder
from mdm.data.workers import batches
from mdm.network.nested import NestedUNet
from mdm.run.attempts import Attempt, Fenced, attempt
from mdm.run.job import Job, load_job
from mdm.run.watch import STOPS, Watch
from mdm.training.compute import Ranks, pick_device, pick_dtype, place_of_process, set_determinism
from mdm.training.gradients import Gradients, Split
from mdm.training.heldout import HeldOut
from mdm.training.metrics import Closed, Window, crossed
from mdm.training.progress import Checkpoints, Counters, Returns
from mdm.training.record import Record, say
from mdm.training.state import State

GO_ON, SAVE, STOP, LEAVE = 0, 1, 2, 3  # what the ranks agree on at every step


class Stop(Exception):
    """A clean end was asked for: by signal, or by a STOP file in the run folder."""


class Interrupted(Exception):
    """Work between two steps was given up, because a stop was asked for; the next step ends the run."""


class NotFinite(Exception):
    """Too many steps in a row had a loss or gradient that was not finite."""


class Trainer:
    """One process of a job. ``mine``: this attempt on rank 0, which alone writes; None on the others."""

    def __init__(self, run: Path, job: Job, mine: Attempt | None, watch: Watch, counters: Counters) -> None:
        rank, world = place_of_process()
        self.job, self.record, self.watch, self.counters = job, Record(run, mine), watch, counters
        self.device = pick_device(job.device)
        dtype = pick_dtype(job.compute.precision, self.device)
        set_determinism(job.compute.deterministic)
        if job.threads:
            torch.set_num_threads(job.threads)
        split = Split(job, rank, world)
        self.ranks = Ranks(self.device, job.compute.hang_s)
        self.state = State(job, self.device, dtype)
        self.returns = Returns(run)
        self.checkpoints = Checkpoints(run, job, self.state, self.ranks, self.record, self.returns, self.watch.pace)
        resumed = self._start()
        train, val = self._open_data(resumed.get("data"))
        encoder = online_encoder(job.text, self.device, Path(job.train_data).parent)
        self.held_out = HeldOut(
            val, encoder, job.model, job.training.loss, job.sampling, job.seed, self.device, split.micro
        )
        for line in self.held_out.left_out:
            self.record.say(line)
        dropout = job.training.caption_dropout if job.model.text else job.training.label_dropout
        null = null_condition(job.model, train)
        self.data = TrainingSet(train, job.seed, null, dropout, job.training.flip, job.training.window_shards)
        self.gradients = Gradients(job, split, world, self.state, encoder, dtype)
        self.window = self._new_window(resumed.get("windows", []))
        self.pending: Closed | None = None  # the window that ended last, on its way from the device
        self.record.open(job, self.device, dtype, world, resumed.get("metrics", ()))

    def _start(self) -> dict[str, Any]:
        """From the newest whole checkpoint -> its ``state.json``; or from another stage's weights, or fresh -> {}."""
        checkpoint = self.checkpoints.choose()
        if checkpoint is not None:
            self.record.say(f"resuming from {checkpoint.name}")
            return self.checkpoints.load(checkpoint, self.counters)
        if self.job.init is not None:
            self.state.start_from(Path(self.job.init))
        return {}

    def _open_data(self, seen: dict[str, Any] | None) -> tuple[Shards, Shards]:
        """Both splits. ``seen``: the training split's revision at the checkpoint, which another set is refused by."""
        job = self.job
        train = Shards(Path(job.train_data), job.text, job.storage, job.train_digest, px=job.model.resolutions[-1])
        val = Shards(Path(job.val_data), job.text, job.storage, job.val_digest, px=job.model.resolutions[-1])
        if self.ranks.rank == 0:
            for line in [*train.check(), *val.check()]:
                self.record.say(line)
        if seen is not None and seen["digest"] != train.revision["digest"]:
            raise ValueError(f"{self.record.run} was trained on another data set than {job.train_data} is now")
        now = train.revision["revision"]
        # What the weights were trained on: a later removal takes samples from the set, not from them.
        self.since = now if seen is None else seen.get("since", seen["revision"])
        if seen is not None and seen["revision"] != now:
            self.record.say(
                f"samples were removed from {job.train_data} since the last checkpoint; the others keep their turn"
            )
        return train, val

    def _new_window(self, saved: list[dict[str, Any]]) -> Window:
        window = Window(self.device, len(self.job.model.levels))
        if len(saved) == self.ranks.world:  # at another world size the first metrics line covers fewer steps
            window.load(saved[self.ranks.rank])
        return window

    # -- the loop ------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """See ``training.nimg`` images; raises Stop when asked to end."""
        if self.counters.nimg == 0 or self.counters.owes_evaluation:
            self._evaluate()
            self._save()
        while True:
            try:
                self._steps()
                break
            except NotFinite as trouble:
                self._return(str(trouble))
        error = self._save(wait=True)
        if error is not None:
            raise error

    def _steps(self) -> None:
        """Step after step: heed a stop, data and gradients of each micro-batch, the update, and whatever is due."""
        job, training, counters = self.job, self.job.training, self.counters
        places, cuda = self.gradients.split.places, self.device.type == "cuda"
        loading = batches(self.data, self._groups(counters.nimg), job.data_workers, pin=cuda, deaf_to=STOPS)
        with contextlib.closing(loading) as loader, self.record.bar(job, counters.nimg) as bar:
            begun = counters.nimg
            while counters.nimg < training.nimg:
                self._heed()
                clock = self.window.clock
                clock.begin_step()
                losses, substituted = torch.zeros(len(job.model.levels), device=self.device), 0
                for i, micro in enumerate(places):
                    batch = next(loader)
                    clock.got_data()
                    for line in batch.substituted:
                        say(line)
                    substituted += len(batch.substituted)
                    losses += self.gradients(batch, micro, last=i == len(places) - 1)
                    clock.end_phase("forward_backward")
                grad_norm, keep = self.state.step(losses, counters.nimg)
                counters.nimg += training.batch_size
                self.window.add(losses, grad_norm, keep, substituted)
                clock.end_phase("optimizer")
                clock.end_step(training.batch_size)
                self.watch.beat()
                if counters.nimg == begun + training.batch_size:
                    self.watch.pace.begin()
                bar.update(training.batch_size)
                self._report()

    def _report(self) -> None:
        """Whatever is due by now: a metrics line, held-out loss and samples, kept averages, a checkpoint."""
        cadence, nimg, done = self.job.cadence, self.counters.nimg, self.counters.nimg >= self.job.training.nimg
        if done or self._due(cadence.log_every_nimg):
            closed = self.window.close(nimg)
            self._read_pending()
            self.pending = closed
            if done or self.device.type == "cpu":  # a GPU's numbers are read an interval late
                self._read_pending()
        if done or self._due(cadence.eval_every_nimg):
            self._evaluate()
        if self.state.averages is not None and (done or self._due(cadence.average_every_nimg)):
            self.record.snapshot(nimg, self.state.whole_averages())
        if cadence.keep_ema_every_nimg and not done and self._due(cadence.keep_ema_every_nimg):
            self.record.kept_ema(nimg, self.state.spread.whole(self.state.ema.weights))
        self.checkpoints.stepped(self.counters)
        if self.checkpoints.due and not done:
            self._save()

    def _read_pending(self) -> None:
        """Write down the window that ended last; raises NotFinite where too many steps in a row were skipped."""
        closed, self.pending = self.pending, None
        if closed is None:
            return
        means, counters, training = closed.read(), self.counters, self.job.training
        counters.trained_s += closed.clock.wall
        counters.substituted += means.substituted
        self.record.window(closed, means, self.gradients.captions_cut, len(self.returns))
        self.record.pace(self.watch.pace)
        for nimg in means.skipped_at(closed.nimg, training.batch_size):
            first = self.returns.first(nimg)
            self.record.evidence(nimg, first, [self.data.index(first + i) for i in range(training.batch_size)])
        if counters.substituted > self.job.storage.tolerate:
            raise DamagedShard(
                f"{counters.substituted} samples could not be read (named in the log), {self.job.storage.tolerate} are "
                "tolerated: repair the shards, or raise storage.tolerate (--tolerate)"
            )
        if means.longest_row >= training.max_skips:
            raise NotFinite(f"{means.longest_row} steps in a row up to {closed.nimg} images were not finite")

    def _save(self, wait: bool = False) -> OSError | None:
        """Have everything written; amid skipped steps it stays due. ``wait``: until it is there -> why it is not."""
        self._read_pending()
        if self.window.row > 0 and not wait:
            return None  # it would push out the last one from before
        begun = perf_counter()
        revision = {**self.data.shards.revision, "since": self.since}
        error = self.checkpoints.save(self.counters, self.window, revision, wait)
        self.window.clock.stall += perf_counter() - begun
        if wait:
            self.record.pace(self.watch.pace)
            self._barrier()
        return error

    def _return(self, why: str) -> None:
        """Go back to the last checkpoint from before, and on from there with other data."""
        training, evidence = self.job.training, "the steps stand in nonfinite.jsonl"
        if len(self.returns) >= training.max_returns:
            raise FloatingPointError(
                f"{why}, after {len(self.returns)} returns to a checkpoint: {evidence}; lower training.lr or look there"
            )
        self.checkpoints.finish(self.counters)
        before = self.checkpoints.choose(lambda saved: not saved["skipping"])
        checkpoint = before or self.checkpoints.choose()
        if checkpoint is None:
            raise FloatingPointError(f"{why}, and there is no whole checkpoint to return to: {evidence}")
        left = self.counters.nimg
        self.checkpoints.load(checkpoint, self.counters)
        self.returns.add(self.counters.nimg, left, training.batch_size)
        if self.ranks.rank == 0:
            with self.record.may_fail("returns.json"):  # before the next checkpoint it is tried again
                self.returns.write()
        self.window, self.pending = self._new_window([]), None
        self.record.say(
            f"{why}: back to {checkpoint.name}, on with other data (return {len(self.returns)}); {evidence}"
        )

    def _evaluate(self) -> None:
        """Held-out loss of the EMA and a grid of its samples, at all resolutions."""
        self._read_pending()
        weights, counters = self.state.spread.whole(self.state.ema.weights), self.counters
        if self.ranks.rank == 0:
            network = NestedUNet.of(self.job.model, weights, self.device)
            counters.owes_evaluation = True
            with contextlib.suppress(Interrupted):
                losses = self.held_out.losses(network, self._alive)
                self.record.log(counters.nimg, losses, len(self.returns))
                with self.record.may_fail("sample grid"):
                    grid = self.record.run / "samples" / f"{counters.nimg:012d}.png"
                    self.held_out.grid(network, grid, self._alive)
                counters.owes_evaluation = False
        self._barrier()

    # -- small things --------------------------------------------------------------------------------------------

    def _groups(self, start: int) -> Iterator[list[int]]:
        """Positions of this process's micro-batches, from a count of images on."""
        for nimg in range(start, self.job.training.nimg, self.job.training.batch_size):
            first = self.returns.first(nimg)
            yield from ([first + place for place in places] for places in self.gradients.split.places)

    def _due(self, every_nimg: int) -> bool:
        return crossed(self.counters.nimg, self.job.training.batch_size, every_nimg)

    def _alive(self) -> None:
        """Between two steps of an evaluation: a sign of life, and an end to it where a stop was asked for."""
        self.watch.beat()
        if self._asked() >= STOP:
            raise Interrupted

    def _asked(self) -> int:
        if self.record.mine is not None and self.record.mine.is_fenced():
            return LEAVE
        stop_file = self.ranks.rank == 0 and (self.record.run / "STOP").exists()
        if self.watch.asked or removal_asked() or stop_file:
            return STOP
        return SAVE if self.checkpoints.overdue else GO_ON

    def _heed(self) -> None:
        """Between steps: do what any rank was asked to; all ranks find the same at the same step."""
        asked = self.ranks.highest(self._asked())
        if asked == LEAVE:
            if self.record.mine is not None:
                self.record.mine.check()  # says which one
            raise Fenced("a newer attempt owns the run folder: leaving without writing")
        if asked == SAVE:  # after the next step, as all that is due
            self.checkpoints.due = True
        if asked == STOP:
            error, why = self._save(wait=True), removal_asked()
            lost = f"; what came after the last checkpoint is lost, this one could not be written: {error}"
            raise Stop(
                f"asked to stop at {self.counters.nimg} images"
                f"{f': {why}' if why else ''}{lost if error is not None else ''}"
            )

    def _barrier(self) -> None:
        with self.watch.paused():
            self.ranks.barrier()


def _work(run: Path, job: Job, mine: Attempt | None) -> str:
    """Train to an end, write the last word -> the outcome."""
    counters, outcome, reason = Counters(), "done", ""

    def end(outcome: str, reason: str) -> None:
        if mine is not None:
            mine.end(outcome, nimg=counters.nimg, seconds=counters.trained_s, reason=reason)

    watch = Watch(run, place_of_process()[0], job.compute.hang_s, lambda reason: end("failed", reason))
    try:
        Trainer(run, job, mine, watch, counters).train()
    except Stop as stop:
        outcome, reason = "stopped", str(stop)
        say(f"{reason}; the same command goes on from there", sys.stderr)
    except Fenced as fenced:
        say(str(fenced), sys.stderr)
        return "fenced"
    except Exception as error:
        outcome, reason = "failed", f"{type(error).__name__}: {error}"
        say(traceback.format_exc(), sys.stderr)
    finally:
        watch.close()
    end(outcome, reason)
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
        if place_of_process()[0] == 0:
            folders = {Path(folder).parent for folder in (job.train_data, job.val_data)}
            with attempt(arguments.run, arguments.attempt) as mine, contextlib.ExitStack() as leases:
                for folder in sorted(folders):
                    leases.enter_context(Lease(folder, f"training {arguments.run}"))
                outcome = _work(arguments.run, job, mine)
        else:
            outcome = _work(arguments.run, job, None)
    except (ValueError, Fenced, OSError) as error:  # OSError: of the run folder, on a full disk for one
        say(f"mdm train: {error}", sys.stderr)
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0 if outcome == "done" else 1


if __name__ == "__main__":
    sys.exit(main())
