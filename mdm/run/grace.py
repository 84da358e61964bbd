"""How long a job that is asked to stop needs to end well, measured by its trainer, for whoever asks.

TRAINING/grace.json: {"step_s": longest time between two looks for a stop, "save_s": longest write of a checkpoint}
"""

import json
from pathlib import Path

from mdm.files import write_json

FILE = "grace.json"
ENDING_S = 30.0  # for all that is no step and no checkpoint: processes that begin or end, a last metrics line
UNMEASURED_S = 120.0
MARGIN = 1.5  # a disk is slower when many jobs are asked to stop at once
GROWN = 1.1  # noted again when it has grown by so much


class Pace:
    """The longest that this attempt took between two looks for a stop, and for a checkpoint."""

    def __init__(self) -> None:
        self.step_s = self.save_s = 0.0
        self._looked: float | None = None
        self._noted = (0.0, 0.0)

    def looked(self, now: float) -> None:
        """A stop would have been seen at that time (``time.monotonic``)."""
        if self._looked is not None:
            self.step_s = max(self.step_s, now - self._looked)
        self._looked = now

    def begin(self) -> None:
        """After the first step: loading, compilation, what was before is not what comes."""
        self.step_s, self._looked = 0.0, None

    def saved(self, seconds: float) -> None:
        self.save_s = max(self.save_s, seconds)

    def note(self, run: Path) -> None:
        """Write it down where it has changed by much."""
        known = self._noted
        if self.step_s > GROWN * known[0] or self.save_s > GROWN * known[1]:
            write_json(run / FILE, {"step_s": self.step_s, "save_s": self.save_s})
            self._noted = self.step_s, self.save_s


def grace_s(run: Path) -> float:
    """Seconds between asking a job of that folder to stop and killing it.

    A step, the checkpoint that is being written, one more, and an ending. Before anything was measured: two minutes.
    """
    try:
        measured = json.loads((run / FILE).read_text())
        return ENDING_S + MARGIN * (float(measured["step_s"]) + 2 * float(measured["save_s"]))
    except (OSError, ValueError, KeyError, TypeError):
        return UNMEASURED_S
