"""The trainer: one loop for every stage, from one CPU process to many GPUs. Runs under torchrun:

    torchrun --nproc-per-node 2 -m mdm.train RUN_FOLDER

The run folder holds ``job.json`` (what to train, see ``Job``) and receives metrics.jsonl, samples/, checkpoints/,
and outcome.json, which has the last word: {"outcome": done | stopped | failed, "nimg", "attempt", "seconds", "reason"}.
Started again it goes on from its newest whole checkpoint.
"""

import contextlib
import fcntl
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from mdm.checkpoint import load_weights, newest_checkpoint, save_checkpoint, write_json
from mdm.config import Device, Model, Sampling
from mdm.data import Batch, Shards, TrainingSet, batches, hash64, null_condition
from mdm.diffusion import Process, mixed_sizes
from mdm.ema import EMA
from mdm.embeddings import TextSource
from mdm.heldout import HeldOut
from mdm.metrics import MetricsFile, Window, crossed
from mdm.nested import NestedUNet
from mdm.stage import Cadence, Compute, Storage, Training
from mdm.structure import from_dict
from mdm.text import online_encoder

PIXEL_SCALE = 127.5  # uint8 -> [-1, 1]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a trainer needs to know, as ``job.json`` in the run folder."""

    model: Model
    training: Training
    compute: Compute = field(default_factory=Compute)
    cadence: Cadence = field(default_factory=Cadence)
    storage: Storage = field(default_factory=Storage)
    sampling: Sampling
    train_data: str  # dataset folders
    val_data: str
    text: TextSource | None  # their captions' states: stored, or made by the encoder; none for labels
    init: str | None = None  # folder to start from: raw/, ema/ (mdm.progressive.start_folder)
    seed: int = 0
    device: Device = "auto"
    threads: int = 0  # CPU threads per process; 0: torch's choice
    data_workers: int = 0  # decoding processes per trainer process; 0: in the trainer itself


class Stop(Exception):
    """A clean end was asked for: by signal, or by a STOP file in the run folder."""


class Interrupted(Exception):
    """Work between two steps was given up, because a stop was asked for; the next step ends the run."""


class Trainer:
    """Everything that one process of a job holds."""

    def __init__(self, run: Path, job: Job, attempt: int) -> None:
        self.attempt, self.nimg, self.trained_s = attempt, 0, 0.0
        self.run, self.job, self.training = run, job, job.training
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.device = pick_device(job.device)
        if job.threads:
            torch.set_num_threads(job.threads)
        self.per_process = self.training.batch_size // self.world
        if self.per_process * self.world != self.training.batch_size:
            raise ValueError(
                f"training.batch_size {self.training.batch_size} does not divide by {self.world} processes"
            )
        if self.world > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        # Control flags travel over a CPU group, so that reading them never waits for the GPU.
        self.control: Any = dist.new_group(backend="gloo") if self.world > 1 else None
        self.process = Process.of(job.model)
        self.window = Window(self.device, len(job.model.levels))
        self.stop_asked = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

        torch.manual_seed(hash64(job.seed, "init"))
        # channels_last: faster convolutions on CPU and GPU alike
        self.network = NestedUNet(job.model).to(self.device).to(memory_format=torch.channels_last)
        if job.init is not None:
            model, weights = load_weights(Path(job.init) / "raw")
            if model != job.model:
                raise ValueError(f"{job.init} holds another model ({model.resolutions} px) than this job trains")
            self.network.load_state_dict(weights)
        self.ema = EMA(self.network)
        if job.init is not None:
            for name, average in load_weights(Path(job.init) / "ema")[1].items():
                self.ema.weights[name].copy_(average)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(),
            lr=self.training.lr,
            betas=(self.training.beta1, self.training.beta2),
            eps=self.training.adam_eps,
            weight_decay=self.training.weight_decay,
            fused=True,
        )
        self._resume()
        self.model: nn.Module = self.network
        if self.world > 1:
            self.model = DistributedDataParallel(self.network, gradient_as_bucket_view=True)
        train, val = Shards(Path(job.train_data), job.text), Shards(Path(job.val_data), job.text)
        dropout = self.training.caption_dropout if job.model.text else self.training.label_dropout
        self.data = TrainingSet(train, job.seed, null_condition(job.model, train), dropout, self.training.flip)
        self.encoder = online_encoder(job.text, self.device)
        self.held_out = HeldOut(val, self.encoder, job.model, self.training.loss, job.sampling, job.seed, self.device)
        self.metrics = MetricsFile(run / "metrics.jsonl") if self.rank == 0 else None

    # -- state ---------------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        checkpoint, passed_over = newest_checkpoint(self.run / "checkpoints")
        for line in passed_over:
            self._say(line)
        if checkpoint is None:
            return
        self.network.load_state_dict(load_weights(checkpoint / "raw")[1])
        for name, average in load_weights(checkpoint / "ema")[1].items():
            self.ema.weights[name].copy_(average)
        moments = load_file(checkpoint / "state" / "optimizer.safetensors", device=str(self.device))
        for name, parameter in self.network.named_parameters():
            state = {key.split("/")[0]: value for key, value in moments.items() if key.split("/")[1] == name}
            for key, value in state.items():  # laid out in memory as the parameter is: the fused optimizer assumes it
                laid_out = value if value.shape != parameter.shape else torch.empty_like(parameter).copy_(value)
                self.optimizer.state[parameter][key] = laid_out
        saved = json.loads((checkpoint / "state" / "state.json").read_text())
        self.nimg, self.trained_s = saved["nimg"], saved["trained_s"]
        if len(saved["windows"]) == self.world:  # at another world size the first metrics line covers fewer steps
            self.window.load(saved["windows"][self.rank])
        self._say(f"resuming from {checkpoint.name}")

    def save(self) -> None:
        """Write a checkpoint (rank 0); the other ranks hold the same weights."""
        windows: list[Any] = [self.window.state()] * self.world
        if self.control is not None:
            dist.all_gather_object(windows, self.window.state(), group=self.control)
        if self.rank == 0:
            moments = {
                f"{key}/{name}": value
                for name, parameter in self.network.named_parameters()
                for key, value in self.optimizer.state.get(parameter, {}).items()
            }
            raw = {name: p.detach() for name, p in self.network.named_parameters()}
            state = {"nimg": self.nimg, "trained_s": self.trained_s, "windows": windows}
            save_checkpoint(
                self.run / "checkpoints",
                self.nimg,
                self.job.model,
                raw,
                self.ema.weights,
                moments,
                state,
                self.job.cadence.keep_checkpoints,
            )
        self._barrier()

    # -- the loop ------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """See ``training.nimg`` images; raises Stop when asked to end."""
        job, training, window = self.job, self.training, self.window
        start = self.nimg
        if start == 0:
            self.evaluate()
            self.save()
        bar = tqdm(
            total=training.nimg,
            initial=start,
            unit="img",
            desc=f"train {'/'.join(map(str, job.model.resolutions))} px",
            disable=self.rank != 0 or not sys.stderr.isatty(),
        )
        micro = min(self.per_process, self.job.compute.max_batch_per_process)
        loader = batches(self.data, self._groups(start, micro), job.data_workers)
        while self.nimg < training.nimg:
            window.begin_step()
            for left in range(self.per_process - micro, -1, -micro):
                batch = next(loader)
                window.got_data()
                losses = self._backward(batch, last=left == 0)
                window.add_losses(losses, micro / self.per_process)
            grad_norm = self._update()
            window.end_step(grad_norm, training.batch_size)
            bar.update(training.batch_size)
            self._report()
            if self._stop_agreed():
                self.save()
                raise Stop(f"asked to stop at {self.nimg} images")
        bar.close()

    def _groups(self, start: int, micro: int) -> Iterator[list[int]]:
        """Positions of this process's micro-batches, from a global position on."""
        if self.per_process % micro:
            raise ValueError(f"{self.per_process} images per process do not split into micro-batches of {micro}")
        for nimg in range(start, self.training.nimg, self.training.batch_size):
            first = nimg + self.rank * self.per_process
            for offset in range(0, self.per_process, micro):
                yield list(range(first + offset, first + offset + micro))

    def _backward(self, batch: Batch, last: bool) -> list[Tensor]:
        """Loss (Eq. 3) and gradients of one micro-batch -> mean loss per level, detached."""
        count = len(batch.positions)
        generator = torch.Generator(self.device).manual_seed(hash64(self.job.seed, "noise", batch.positions[0]))
        images = batch.images.to(self.device, non_blocking=True).float() / PIXEL_SCALE - 1
        sizes = mixed_sizes(count, len(self.job.model.levels), self.training.low_only)
        xs = [x[:size] for x, size in zip(self.process.downsample(images), sizes, strict=True)]
        noise = [n[: len(x)] for n, x in zip(self.process.draw_noise(count, generator), xs, strict=True)]
        k = self.process.draw_times(count, generator, self.training.time_power)
        condition = batch.condition if self.encoder is None else self.encoder.condition(batch.captions)
        condition = {name: value.to(self.device) for name, value in condition.items()}
        sync = contextlib.nullcontext() if last or self.world == 1 else self.model.no_sync()  # type: ignore[operator]
        autocast = torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda")
        with sync:
            with autocast:
                per_sample = self.process.loss(
                    lambda zs, t: self.model(zs, t, **condition), xs, noise, k, self.training.loss
                )
            losses = [level.mean() for level in per_sample]
            weights = self.training.level_weights or (1.0,) * len(losses)
            total = torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)]).sum()
            (total * (count / self.per_process)).backward()
        return [loss.detach() for loss in losses]

    def _update(self) -> Tensor:
        """Clip, Adam, EMA, count -> gradient norm (a tensor: nothing waits for it)."""
        training = self.training
        for group in self.optimizer.param_groups:
            group["lr"] = training.lr_at(self.nimg)
        grad_norm = nn.utils.clip_grad_norm_(self.network.parameters(), training.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.nimg += training.batch_size
        self.ema.update(self.network, training.ema_decay_at(self.nimg))
        return grad_norm

    def _report(self) -> None:
        """Whatever is due at this count of images: a metrics line, held-out loss and samples, a checkpoint."""
        training, nimg, window = self.training, self.nimg, self.window
        done = nimg >= training.nimg
        if done or crossed(nimg, training.batch_size, self.job.cadence.log_every_nimg):
            line = window.read(self.job.model.resolutions, self.world)
            if not all(map(math.isfinite, line.values())):
                raise FloatingPointError(f"loss or gradient is not finite at {nimg} images: lower training.lr")
            line |= {"lr": training.lr_at(nimg - training.batch_size)}
            if self.encoder is not None:  # stored embeddings have their count in their manifest
                line |= {"data/captions_cut": self.encoder.cut}  # of rank 0, since it started
            self.trained_s += window.seconds
            window.reset()
            self._log(line)
        if done or crossed(nimg, training.batch_size, self.job.cadence.eval_every_nimg):
            self.evaluate()
        if done or crossed(nimg, training.batch_size, self.job.cadence.checkpoint_every_nimg):
            self.save()

    def evaluate(self) -> None:
        """Held-out loss of the EMA and a grid of its samples, at all resolutions."""
        if self.rank == 0:
            network = NestedUNet(self.job.model).to(self.device).eval()
            self.ema.copy_to(network)
            self._log(self.held_out.losses(network))
            with contextlib.suppress(Interrupted):
                self.held_out.grid(network, self.run / "samples" / f"{self.nimg:012d}.png", self._give_up_if_asked)
        self._barrier()

    # -- small things --------------------------------------------------------------------------------------------

    def _log(self, values: dict[str, float]) -> None:
        if self.metrics is not None:
            self.metrics.append(self.nimg, self.attempt, values)

    def _say(self, line: str) -> None:
        if self.rank == 0:
            print(line, flush=True)

    def _on_signal(self, *_: Any) -> None:
        self.stop_asked = True

    def _give_up_if_asked(self) -> None:
        if self.stop_asked:
            raise Interrupted

    def _stop_agreed(self) -> bool:
        """Whether any rank was asked to stop; all ranks give the same answer at the same step."""
        asked = self.stop_asked or (self.rank == 0 and (self.run / "STOP").exists())
        if self.control is None:
            return asked
        flag = torch.tensor(int(asked))
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.control)
        return bool(flag)

    def _barrier(self) -> None:
        if self.control is not None:
            dist.barrier(self.control)


def pick_device(device: Device) -> torch.device:
    """``auto``: the process's GPU if there is one. Raises where a GPU is asked for and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("job.device is cuda, but torch finds no GPU")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cuda", torch.cuda.current_device())


def load_job(run: Path) -> Job:
    """``job.json`` of a run folder. Raises ValueError naming the file or field."""
    try:
        return from_dict(Job, json.loads((run / "job.json").read_text()))
    except FileNotFoundError:
        raise ValueError(f"{run} is no training run: job.json is missing") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{run / 'job.json'} is not JSON: {error}") from error


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run folder. A second trainer is refused at once; a dead one's hold is gone with it."""
    with (run / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{run} is being trained by another process") from None
        yield


def next_attempt(run: Path) -> int:
    """Number this attempt (call it holding the lock)."""
    path = run / "attempt.json"
    number = json.loads(path.read_text())["attempt"] + 1 if path.exists() else 1
    write_json(path, {"attempt": number, "pid": os.getpid()})
    return number


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print("usage: python -m mdm.train RUN_FOLDER  (under torchrun for several processes)", file=sys.stderr)
        return 2
    run = Path(arguments[0])
    first = int(os.environ.get("RANK", "0")) == 0
    trainer, attempt = None, 0
    try:
        job = load_job(run)
        with locked(run) if first else contextlib.nullcontext():
            if first:
                attempt = next_attempt(run)
                (run / "outcome.json").unlink(missing_ok=True)
                (run / "STOP").unlink(missing_ok=True)
            outcome, reason = "done", ""
            try:
                trainer = Trainer(run, job, attempt)
                trainer.train()
            except Stop as stop:
                outcome, reason = "stopped", str(stop)
            except Exception as error:
                outcome, reason = "failed", f"{type(error).__name__}: {error}"
                traceback.print_exc()
            if first:
                nimg, seconds = (trainer.nimg, trainer.trained_s) if trainer else (0, 0.0)
                last_word = {"outcome": outcome, "nimg": nimg, "attempt": attempt, "seconds": seconds, "reason": reason}
                write_json(run / "outcome.json", last_word)
    except ValueError as error:
        print(f"mdm train: {error}", file=sys.stderr)
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0 if outcome == "done" else 1


if __name__ == "__main__":
    sys.exit(main())
