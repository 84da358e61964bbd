"""The trainer: one loop for every stage, from one CPU process to many GPUs. Runs under torchrun:

    torchrun --nproc-per-node 2 -m mdm.train RUN_FOLDER [--attempt N] [--tolerate N]

The run folder holds ``job.json`` (what to train, see ``job.py``) and receives config.json, metrics.jsonl, samples/,
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
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from mdm.attempts import Attempt, Fenced, attempt
from mdm.checkpoint import Snapshot, Writer, load_weights, newest_checkpoint, write_json
from mdm.compute import DTYPE_NAMES, Spread, join_group, pick_device, pick_dtype, set_determinism
from mdm.costs import model_flops_per_image, peak_flops
from mdm.data import Batch, Shards, TrainingSet, batches, null_condition
from mdm.diffusion import Process
from mdm.draws import noise, uniforms
from mdm.ema import EMA, PowerAverages
from mdm.heldout import HeldOut
from mdm.job import Job, load_job, resolved
from mdm.metrics import Closed, MetricsFile, SystemMetrics, Window, crossed
from mdm.nested import NestedUNet
from mdm.order import hash64
from mdm.posthoc import write_snapshot
from mdm.tars import DamagedShard
from mdm.text import online_encoder
from mdm.watch import Watch

PIXEL_SCALE = 127.5  # uint8 -> [-1, 1]
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
        self.nimg, self.trained_s, self.substituted, self.failed_saves = 0, 0.0, 0, 0
        self.saved: int | None = None  # images seen at the newest checkpoint
        self.owes_evaluation = False  # the one at this count of images was interrupted
        self.watch = Watch(run, self.rank, job.compute.hang_s, self._on_hang)
        self.device = pick_device(job.device)
        self.dtype = pick_dtype(job.compute.precision, self.device)
        set_determinism(job.compute.deterministic)
        if job.threads:
            torch.set_num_threads(job.threads)
        self.places = self._split()
        self.control = join_group(self.device, job.compute.hang_s)
        self.process = Process.of(job.model)
        self._build()
        self.returns: list[dict[str, int]] = self._read_returns()
        self._start()
        self._open_data()
        self.window = self._window()
        self.pending: Closed | None = None
        if self.rank == 0:
            self._open_record()

    def _split(self) -> list[list[int]]:
        """The places of the global batch that each micro-batch of this process takes, those with the top level first.

        Which samples carry the top level depends on the place alone, so any number of processes trains on the same.
        """
        training, compute = self.training, self.job.compute
        self.per_process = training.batch_size // self.world
        if self.per_process * self.world != training.batch_size:
            raise ValueError(f"training.batch_size {training.batch_size} does not divide by {self.world} processes")
        self.micro = min(self.per_process, compute.max_batch_per_process)
        if self.per_process % self.micro:
            raise ValueError(
                f"{self.per_process} images per process do not split into micro-batches of {self.micro}: change "
                "compute.max_batch_per_process"
            )
        if compute.parallel == "fsdp" and self.dtype == torch.float16:
            raise ValueError("compute.precision float16 scales the loss, which needs compute.parallel ddp")
        mixed = len(self.job.model.levels) > 1
        self.top = {p for p in range(training.batch_size) if not mixed or training.carries_top(p)}
        first = self.rank * self.per_process
        starts = range(first, first + self.per_process, self.micro)
        places = [sorted(range(s, s + self.micro), key=lambda place: place not in self.top) for s in starts]
        if not all(self.top.intersection(part) for part in places):
            raise ValueError(
                f"training.low_only {training.low_only:g} leaves a micro-batch of {self.micro} without the top level"
            )
        return places

    def _build(self) -> None:
        """Network, averages, optimizer."""
        training, compute = self.training, self.job.compute
        torch.manual_seed(hash64(self.job.seed, "init"))
        self.network = NestedUNet(self.job.model).to(self.device)
        self.spread = Spread(self.network, compute, self.device)
        self.ema = EMA(self.spread.local)
        self.averages = PowerAverages(self.spread.local) if self.job.cadence.average_every_nimg else None
        self.optimizer = torch.optim.Adam(
            self.spread.local.values(),
            lr=training.lr,
            betas=(training.beta1, training.beta2),
            eps=training.adam_eps,
            weight_decay=training.weight_decay,
            fused=compute.fused_adam,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def _open_data(self) -> None:
        job = self.job
        train, val = (Shards(Path(folder), job.text, job.storage) for folder in (job.train_data, job.val_data))
        if self.rank == 0:
            for line in [*train.check(), *val.check()]:
                self._say(line)
        if self.data_seen is not None and self.data_seen["digest"] != train.revision["digest"]:
            raise ValueError(f"{self.run} was trained on another data set than {job.train_data} is now")
        if self.data_seen is not None and self.data_seen != train.revision:
            self._say(
                f"samples were removed from {job.train_data} since the last checkpoint; the others keep their turn"
            )
        self.revision = train.revision
        dropout = self.training.caption_dropout if job.model.text else self.training.label_dropout
        null = null_condition(job.model, train)
        self.data = TrainingSet(train, job.seed, null, dropout, self.training.flip, self.training.window_shards)
        self.encoder = online_encoder(job.text, self.device)
        chunk = max(1, self.micro)
        self.held_out = HeldOut(
            val, self.encoder, job.model, self.training.loss, job.sampling, job.seed, self.device, chunk
        )

    def _open_record(self) -> None:
        """config.json, and what rank 0 writes with."""
        assert self.mine is not None
        record = resolved(self.job, self.device, self.world)
        known = self.run / "config.json"
        flop = json.loads(known.read_text()).get("flop_per_image") if known.exists() else None
        self.flop_per_image = flop or model_flops_per_image(self.job.model, self.training)
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        peak = peak_flops(name, DTYPE_NAMES[self.dtype])
        self.peak_flops = peak and peak * self.world
        write_json(known, {**record, "flop_per_image": self.flop_per_image})
        self.metrics = MetricsFile(self.run / "metrics.jsonl")
        self.system = SystemMetrics(self.device)
        (self.run / "checkpoints").mkdir(exist_ok=True)
        self.writer = Writer(self.run / "checkpoints", self.job.cadence, self.mine.check)

    # -- state ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """From the newest whole checkpoint, or else from another stage's weights, or fresh."""
        self.data_seen: dict[str, Any] | None = None
        self.windows: list[dict[str, Any]] = []
        checkpoint = self._choose_checkpoint()
        if checkpoint is not None:
            self._load(checkpoint)
            self._say(f"resuming from {checkpoint.name}")
        elif self.job.init is not None:
            folder = Path(self.job.init)
            self._load_weights(folder / "raw", self.spread.local)
            self._load_weights(folder / "ema", self.ema.weights)
            if (folder / "optimizer.safetensors").exists():
                self._load_optimizer(load_file(folder / "optimizer.safetensors"))
            if self.averages is not None:
                self.averages = PowerAverages(self.spread.local)

    def _choose_checkpoint(self, before_skips: bool = False) -> Path | None:
        """The newest whole checkpoint, the same on all ranks; for a return, one from before steps were skipped."""
        chosen: list[Any] = [None]
        if self.rank == 0:
            wanted = (lambda folder: not _state(folder)["skipping"]) if before_skips else None
            checkpoint, passed_over = newest_checkpoint(self.run / "checkpoints", wanted)
            for line in passed_over:
                self._say(line)
            chosen = [None if checkpoint is None else str(checkpoint)]
        if self.control is not None:
            dist.broadcast_object_list(chosen, src=0, group=self.control)
        return None if chosen[0] is None else Path(chosen[0])

    def _load(self, checkpoint: Path) -> None:
        self._load_weights(checkpoint / "raw", self.spread.local)
        self._load_weights(checkpoint / "ema", self.ema.weights)
        self._load_optimizer(load_file(checkpoint / "state" / "optimizer.safetensors"))
        if self.averages is not None:
            saved = load_file(checkpoint / "state" / "averages.safetensors")
            for length, parts in self.averages.weights.items():
                self.spread.load({name: saved[f"{length:.3f}/{name}"] for name in parts}, parts)
        state = _state(checkpoint)
        self.saved = state["nimg"]
        self.nimg, self.trained_s, self.substituted = state["nimg"], state["trained_s"], state["substituted"]
        self.data_seen, self.windows = state["data"], state["windows"]
        self.owes_evaluation = state["owes_evaluation"]
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

    def _load_weights(self, folder: Path, into: dict[str, Any]) -> None:
        model, weights = load_weights(folder)
        if model != self.job.model:
            raise ValueError(f"{folder} holds another model ({model.resolutions} px) than this job trains")
        self.spread.load(weights, into)

    def _load_optimizer(self, moments: dict[str, Tensor]) -> None:
        """Adam's state of the parameters that it is there for, laid out in memory as the fused optimizer assumes."""
        self.optimizer.state.clear()
        for key, whole in moments.items():
            kind, name = key.split("/")
            parameter = self.spread.local.get(name)
            if parameter is None:
                continue
            part = self.spread.part_of(name, whole).to(self.device)
            laid_out = part if part.shape != parameter.shape else torch.empty_like(parameter).detach().copy_(part)
            self.optimizer.state[parameter][kind] = laid_out

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
        spread, windows = self.spread, [self.window.state()]
        if self.control is not None:
            windows *= self.world
            dist.all_gather_object(windows, windows[0], group=self.control)
        moments: dict[str, Tensor] = {}
        for kind in ("step", "exp_avg", "exp_avg_sq"):
            held = {name: self.optimizer.state[p][kind] for name, p in spread.local.items() if self.optimizer.state[p]}
            moments |= {f"{kind}/{name}": tensor for name, tensor in spread.whole(held).items()}
        state = {"optimizer": moments}
        raw, ema = spread.whole(spread.local), spread.whole(self.ema.weights)
        if self.averages is not None:
            whole = {length: spread.whole(parts) for length, parts in self.averages.weights.items()}
            state["averages"] = {f"{le:.3f}/{name}": t for le, named in whole.items() for name, t in named.items()}
        if self.rank != 0:
            return
        assert self.mine is not None
        counters = {
            "nimg": self.nimg,
            "trained_s": self.trained_s,
            "substituted": self.substituted,
            "owes_evaluation": self.owes_evaluation,
            "skipping": windows[0]["sums"][-1] > 0,
            "data": self.revision,
            "scaler": self.scaler.state_dict(),
            "windows": windows,
        }
        milestone = next((name for name, at in self.job.cadence.milestones.items() if self._passed(at)), None)
        self._note_failure(self.writer.finish())
        self.writer.submit(Snapshot(self.nimg, self.mine.number, self.job.model, raw, ema, state, counters, milestone))

    def _note_failure(self, error: OSError | None) -> None:
        if error is not None:
            self.failed_saves += 1
            self._say(f"CHECKPOINT NOT WRITTEN: {error}. Training goes on, the last whole one is kept")
            self._log(self.nimg, {"checkpoint/failed": float(self.failed_saves)})

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
            for i, places in enumerate(self.places):
                batch = next(loader)
                clock.got_data()
                for line in batch.substituted:
                    print(line, flush=True)
                substituted += len(batch.substituted)
                losses += self._backward(batch, places, last=i == len(self.places) - 1)
                clock.end_phase("forward_backward")
            self._update(losses, substituted)
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
            yield from ([first + place for place in places] for places in self.places)

    def _first(self, nimg: int) -> int:
        """Position of the first sample of the step that begins at nimg images: further on after returns."""
        return nimg + sum(entry["offset"] for entry in self.returns if entry["to"] <= nimg)

    def _backward(self, batch: Batch, places: list[int], last: bool) -> Tensor:
        """Gradients of one micro-batch -> its share of the global batch's loss (Eq. 3) per level [R], detached."""
        job, training = self.job, self.training
        tops = sum(place in self.top for place in places)
        sizes = [len(places)] * (len(job.model.levels) - 1) + [tops]  # Sec. 4.1: some carry only the lower levels
        counts = [training.batch_size] * (len(job.model.levels) - 1) + [len(self.top)]
        images = batch.images.to(self.device, non_blocking=True).float() / PIXEL_SCALE - 1
        if job.compute.channels_last:
            images = images.to(memory_format=torch.channels_last)
        xs = [x[:size] for x, size in zip(self.process.downsample(images), sizes, strict=True)]
        drawn = noise(job.seed, batch.positions, self.process.resolutions, self.device)
        first = batch.positions[0] - places[0]
        u = uniforms(job.seed, first, training.batch_size, places).to(self.device, non_blocking=True)
        k = self.process.times(u, training.time_power)
        condition = batch.condition if self.encoder is None else self.encoder.condition(batch.captions)
        condition = {name: value.to(self.device, non_blocking=True) for name, value in condition.items()}
        if any(level.dropout for level in job.model.levels):
            torch.manual_seed(hash64(job.seed, "dropout", batch.positions[0]))
        with self.spread.accumulating(last):
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                per_sample = self.process.loss(
                    lambda zs, t: self.spread.model(zs, t, **condition),
                    xs,
                    [n[: len(x)] for n, x in zip(drawn, xs, strict=True)],
                    k,
                    training.loss,
                )
            shares = [level.sum() / count for level, count in zip(per_sample, counts, strict=True)]
            weights = training.level_weights or (1.0,) * len(shares)
            total = torch.stack([w * share for w, share in zip(weights, shares, strict=True)]).sum()
            self.scaler.scale(total * self.world).backward()  # the processes' gradients are averaged
        return torch.stack(shares).detach()

    def _update(self, losses: Tensor, substituted: int) -> None:
        """Clip, Adam, averages, count. A step that is not finite changes nothing, on all ranks alike, unread."""
        training, spread = self.training, self.spread
        for group in self.optimizer.param_groups:
            group["lr"] = training.lr_at(self.nimg)
        spread.collect_gradients()
        self.scaler.unscale_(self.optimizer)
        grad_norm = spread.gradient_norm()
        bad = ~(losses.sum().isfinite() & grad_norm.isfinite())
        bad = bad.float()
        if self.world > 1:
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        nn.utils.clip_grads_with_norm_(spread.local.values(), training.grad_clip, grad_norm)
        if self.job.compute.fused_adam:
            self.optimizer.found_inf, self.optimizer.grad_scale = bad, None  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not bad.item():
            self.optimizer.step()
        self.scaler.update()
        spread.zero_grad()
        self.nimg += training.batch_size
        keep, weights = 1 - bad, list(spread.local.values())
        self.ema.update(weights, training.ema_decay_at(self.nimg), keep)
        if self.averages is not None:
            self.averages.update(weights, self.nimg, training.batch_size, keep)
        self.window.add(losses, grad_norm, keep, substituted)

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
        if self.averages is not None and (done or self._due(cadence.average_every_nimg)):
            whole = {length: self.spread.whole(parts) for length, parts in self.averages.weights.items()}
            if self.rank == 0:
                with self._may_fail("snapshot"):
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
        means, clock = closed.read(), closed.clock
        self.trained_s += clock.wall
        self.substituted += means.substituted
        batch_size = self.training.batch_size
        if self.rank == 0:
            line = means.line(self.job.model.resolutions) | {"lr": self.training.lr_at(closed.nimg - batch_size)}
            if self.encoder is not None:  # stored embeddings have their count in their manifest
                line |= {"data/captions_cut": float(self.encoder.cut)}  # of rank 0, since it started
            line |= clock.line(self.flop_per_image, self.peak_flops) | self.system.line()
            self._log(closed.nimg, line, closed.time_ms)
            if not sys.stderr.isatty():
                rate, loss = line.get("speed/images_per_s", float("nan")), line.get("train/loss", float("nan"))
                self._say(f"{closed.nimg:,}/{self.training.nimg:,} images, loss {loss:.4f}, {rate:.1f} images/s")
            self._keep_evidence(closed, means.skipped)
        if self.substituted > self.job.storage.tolerate:
            raise DamagedShard(
                f"{self.substituted} samples could not be read (named in the log), {self.job.storage.tolerate} are "
                "tolerated: repair the shards, or raise storage.tolerate (--tolerate)"
            )
        if means.longest_row >= self.training.max_skips:
            raise NotFinite(f"{means.longest_row} steps in a row up to {closed.nimg} images were not finite")

    def _keep_evidence(self, closed: Closed, skipped: list[bool]) -> None:
        """A line in nonfinite.jsonl per skipped step: with the checkpoint before it, enough to do it again."""
        batch_size = self.training.batch_size
        for i, bad in enumerate(skipped):
            if bad:
                nimg = closed.nimg - (len(skipped) - i) * batch_size
                first = self._first(nimg)
                samples = [self.data.index(first + place) for place in range(batch_size)]
                with self._may_fail("evidence"), (self.run / "nonfinite.jsonl").open("a") as file:
                    file.write(json.dumps({"nimg": nimg, "position": first, "samples": samples}) + "\n")

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
        self._say(f"{why}: back to {checkpoint.name}, on with other data (return {len(self.returns)}); {evidence}")

    def _read_returns(self) -> list[dict[str, int]]:
        path = self.run / "returns.json"
        return json.loads(path.read_text()) if path.exists() else []

    def evaluate(self) -> None:
        """Held-out loss of the EMA and a grid of its samples, at all resolutions."""
        self._read_pending()
        weights = self.spread.whole(self.ema.weights)
        if self.rank == 0:
            with torch.device("meta"):
                network = NestedUNet(self.job.model)
            network.to_empty(device=self.device).load_state_dict(weights)
            path = self.run / "samples" / f"{self.nimg:012d}.png"
            self.owes_evaluation = True
            with contextlib.suppress(Interrupted):
                self._log(self.nimg, self.held_out.losses(network.eval(), self._alive))
                with self._may_fail("sample grid"):
                    self.held_out.grid(network, path, self._alive)
                self.owes_evaluation = False
        self._barrier()

    # -- small things --------------------------------------------------------------------------------------------

    def _due(self, every_nimg: int) -> bool:
        return crossed(self.nimg, self.training.batch_size, every_nimg)

    def _passed(self, nimg: int) -> bool:
        """Whether the last step went over that count of images."""
        return self.nimg - self.training.batch_size < nimg <= self.nimg

    def _log(self, nimg: int, values: dict[str, float], time_ms: int = 0) -> None:
        if self.rank == 0 and self.mine is not None:
            self.mine.check()
            with self._may_fail("metrics"):
                time_ms = time_ms or int(time.time() * 1000)
                self.metrics.append(nimg, self.mine.number, len(self.returns), time_ms, values)

    @contextlib.contextmanager
    def _may_fail(self, what: str) -> Iterator[None]:
        """A full disk must not end the training: say so, and go on."""
        try:
            yield
        except OSError as error:
            self._say(f"{what.upper()} NOT WRITTEN: {error}. Training goes on")

    def _say(self, line: str) -> None:
        if self.rank == 0:
            with contextlib.suppress(OSError):
                print(line, flush=True)

    def _alive(self) -> None:
        """Between two steps of an evaluation: a sign of life, and an end to it where a stop was asked for."""
        self.watch.beat()
        if self._asked() != GO_ON:
            raise Interrupted

    def _asked(self) -> int:
        if self.mine is not None and self.mine.is_fenced():
            return LEAVE
        return STOP if self.watch.asked or (self.rank == 0 and (self.run / "STOP").exists()) else GO_ON

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
            raise Stop(f"asked to stop at {self.nimg} images")

    def _barrier(self) -> None:
        if self.control is not None:
            with self.watch.paused():
                dist.barrier(self.control)

    def _on_hang(self, reason: str) -> None:
        if self.mine is not None:
            self.mine.end("failed", nimg=self.nimg, seconds=self.trained_s, reason=reason)


def _state(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "state" / "state.json").read_text())


def _work(run: Path, job: Job, mine: Attempt | None) -> str:
    """Train to an end, write the last word -> the outcome."""
    trainer, outcome, reason = None, "done", ""
    try:
        trainer = Trainer(run, job, mine)
        trainer.train()
    except Stop as stop:
        outcome, reason = "stopped", str(stop)
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
            with attempt(arguments.run, arguments.attempt) as mine:
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
