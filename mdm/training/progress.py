"""Where a training is: its counters, its returns to earlier checkpoints, and the checkpoints that keep all of it."""

import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from time import monotonic
from typing import Any

from mdm.files import load_json, write_json
from mdm.run.attempts import Attempt
from mdm.run.checkpoint import Contents, Writer, newest_checkpoint
from mdm.run.grace import Pace
from mdm.run.job import Job
from mdm.training.compute import Ranks
from mdm.training.metrics import Window, crossed
from mdm.training.record import Record
from mdm.training.state import State


@dataclass
class Counters:
    """What a resumed training goes on counting from: in ``state/state.json`` of every checkpoint."""

    nimg: int = 0  # images seen
    trained_s: float = 0.0
    substituted: int = 0  # samples that others took the place of
    owes_evaluation: bool = False  # the one at this count of images was interrupted
    milestones: dict[str, int] = field(default_factory=dict)  # passed, but in no checkpoint as yet: name -> images

    def load(self, saved: dict[str, Any]) -> None:
        for one in fields(self):
            if one.name in saved:
                setattr(self, one.name, saved[one.name])


class Returns:
    """``returns.json``: how often the training went back to a checkpoint, and on from there with other data."""

    def __init__(self, run: Path) -> None:
        self.path, self._written = run / "returns.json", True
        self.entries: list[dict[str, int]] = load_json(self.path) if self.path.exists() else []
        if not all(isinstance(e, dict) and {"to", "offset", "from"} <= e.keys() for e in self.entries):
            raise ValueError(f"{self.path} does not say what was returned to: put back the one that was there")

    def __len__(self) -> int:
        return len(self.entries)

    def first(self, nimg: int) -> int:
        """Position of the first sample of the step that begins at ``nimg`` images: further on after returns."""
        return nimg + sum(entry["offset"] for entry in self.entries if entry["to"] <= nimg)

    def add(self, to: int, left: int, batch_size: int) -> None:
        """The training left at ``left`` images for the checkpoint at ``to``."""
        self.entries.append({"to": to, "offset": left - to + batch_size, "from": left})
        self._written = False

    def write(self) -> None:
        """Where there is something new. Raises OSError; no later checkpoint may be written before this is."""
        if not self._written:
            write_json(self.path, self.entries)
            self._written = True


class Checkpoints:
    """Which checkpoint to go on from, when the next one is due, and what became of it. Every process has one."""

    def __init__(
        self, run: Path, job: Job, state: State, ranks: Ranks, record: Record, returns: Returns, pace: Pace
    ) -> None:
        self.folder, self.job, self.state, self.ranks = run / "checkpoints", job, state, ranks
        self.record, self.returns, self.pace = record, returns, pace
        self.due = False
        self._since = monotonic()  # the last one was begun, or this attempt
        self.saved: int | None = None  # images seen at the newest
        self.failed = 0
        self._writing: dict[str, int] = {}  # milestones of the one that is being written
        self.mine: Attempt | None = record.mine
        if self.mine is not None:
            self.folder.mkdir(exist_ok=True)
            self.writer = Writer(self.folder, job.cadence, self.mine.check)

    def choose(self, wanted: Callable[[dict[str, Any]], bool] | None = None) -> Path | None:
        """The newest whole checkpoint, or the newest whose ``state.json`` is as ``wanted``: the same on all ranks.

        Raises ValueError where there are damaged ones only: what they held is not to be given up unasked.
        """
        found: Path | None = None
        refusal = ""
        if self.ranks.rank == 0:
            found, damaged = newest_checkpoint(
                self.folder, None if wanted is None else lambda folder: wanted(read_state(folder))
            )
            if found is not None and damaged:
                self.record.say(f"{'; '.join(damaged)}: going on from the newest whole one, {found.name}")
            elif damaged and wanted is None:
                away = shlex.quote(f"{self.folder}.damaged")
                refusal = (
                    f"{self.folder} holds no whole checkpoint: {'; '.join(damaged)}. Put a whole one there, or, to "
                    f"train from the beginning: mv {shlex.quote(str(self.folder))} {away}, and start again"
                )
        found, refusal = self.ranks.share((found, refusal))
        if refusal:
            raise ValueError(refusal)
        return found

    def load(self, checkpoint: Path, counters: Counters) -> dict[str, Any]:
        """Go on from it -> its ``state.json``."""
        saved = read_state(checkpoint)
        self.state.load(checkpoint, saved["scaler"])
        counters.milestones = {}
        counters.load(saved)
        self.saved, self.due = counters.nimg, bool(counters.milestones)
        return saved

    def stepped(self, counters: Counters) -> None:
        """After a step: what it passed is due. What became of the last checkpoint is looked up, without waiting."""
        batch, cadence = self.job.training.batch_size, self.job.cadence
        passed = {name: at for name, at in cadence.milestones.items() if counters.nimg - batch < at <= counters.nimg}
        counters.milestones |= passed
        every = cadence.checkpoint_every_nimg
        self.due = self.due or bool(passed) or (every > 0 and crossed(counters.nimg, batch, every))
        if self.mine is not None and self.writer.idle:
            self.finish(counters)

    @property
    def overdue(self) -> bool:
        """Whether the cadence's minutes are over, by the clock of rank 0, which speaks for all."""
        minutes = self.job.cadence.checkpoint_every_minutes
        return self.ranks.rank == 0 and not self.due and 0 < 60 * minutes <= monotonic() - self._since

    def save(self, counters: Counters, window: Window, revision: dict[str, Any], wait: bool) -> OSError | None:
        """Copy all state, and have it written. ``wait``: until it is on the disk -> why it is not, if so (rank 0).

        ``revision``: of the training split, and ``since`` which one this training has read it.
        """
        if wait:
            self.finish(counters)
            self.saved = self.ranks.share(self.saved)
        if self.saved != counters.nimg:
            self._submit(counters, window, revision)
        return self.finish(counters) if wait else None

    def _submit(self, counters: Counters, window: Window, revision: dict[str, Any]) -> None:
        windows = self.ranks.gather(window.state())
        raw, ema, files = self.state.whole()
        skipping, milestones = windows[0]["sums"][-1] > 0, counters.milestones
        if skipping and counters.nimg < self.job.training.nimg:
            milestones = {}  # they stay owed: a milestone is of a good step
        else:
            counters.milestones = {}
        self.saved, self.due, self._since = counters.nimg, bool(counters.milestones), monotonic()
        if self.mine is None:
            return
        self.finish(counters)
        saved = {
            **asdict(counters),
            "skipping": skipping,
            "data": revision,
            "scaler": self.state.scaler.state_dict(),
            "windows": windows,
            "metrics": list(self.record.metrics.last),
        }
        self._writing = milestones
        self.writer.submit(
            Contents(counters.nimg, self.mine.number, self.job.model, raw, ema, files, saved, milestones),
            before=self.returns.write,
        )

    def finish(self, counters: Counters) -> OSError | None:
        """Wait for the one that is being written -> why it could not be, if so. Other errors are raised."""
        if self.mine is None:
            return None
        error, milestones = self.writer.finish(), self._writing
        self._writing = {}
        if error is None:
            self.pace.saved(self.writer.seconds)
            return None
        self.saved, counters.milestones = None, milestones | counters.milestones
        self.failed += 1
        self.record.say(f"CHECKPOINT NOT WRITTEN: {error}. Training goes on, the last whole one is kept")
        self.record.log(counters.nimg, {"checkpoint/failed": float(self.failed)}, len(self.returns))
        return error


def read_state(checkpoint: Path) -> dict[str, Any]:
    """``state.json``: counters, and what else a resumed training needs that is no tensor."""
    return load_json(checkpoint / "state" / "state.json")
