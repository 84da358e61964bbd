"""A thread beside the training that passes signals on at once, and ends a process that shows no sign of life."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from mdm.run.grace import Pace

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)  # all of them ask for a clean end


def stops_as_ctrl_c() -> None:
    """A batch system's SIGTERM and a closed terminal raise KeyboardInterrupt, unless they are ignored (nohup)."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


class Watch:
    """``beat`` from time to time; after ``hang_s`` seconds without, all stacks are written down and the process ends.

    A signal that asks to stop leaves a STOP file in the run folder, at once and on whichever rank it reaches: Python's
    own handlers would wait while the main thread sits in a collective. One that was ignored at the start stays so, as a
    hang-up under nohup.
    """

    def __init__(self, run: Path, rank: int, hang_s: float, on_hang: Callable[[str], None]) -> None:
        self.run, self.rank, self.hang_s, self.on_hang = run, rank, hang_s, on_hang
        self.asked = False
        self._paused = 0
        self._trouble: Exception | None = None
        self.pace = Pace()
        self.beat()
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._stops = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]
        self._before = [signal.signal(number, self._on_signal) for number in self._stops]
        for work in (self._listen, self._look):
            threading.Thread(target=self._guarded, args=(work,), daemon=True).start()

    def beat(self) -> None:
        """A sign of life, where a stop is looked for. Raises what ended one of the threads here."""
        if self._trouble is not None:
            raise self._trouble
        self._last = time.monotonic()
        self.pace.looked(self._last)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """While waiting for work of another rank, which is watched there."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1
            self.beat()

    def close(self) -> None:
        """Nothing is watched any more, and signals do what they did before."""
        self._paused += 1
        for number, handler in zip(self._stops, self._before, strict=True):
            signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._trouble = error

    def _listen(self) -> None:
        while True:
            if any(number in self._stops for number in os.read(self._reader, 64)):
                self.asked = True
                with contextlib.suppress(OSError):  # a full disk: the rank's own flag still counts
                    (self.run / "STOP").touch()

    def _look(self) -> None:
        while True:
            time.sleep(min(1.0, self.hang_s / 4))
            silent = time.monotonic() - self._last
            if silent > self.hang_s and not self._paused:
                self._end(silent)

    def _end(self, silent: float) -> None:
        try:
            reason = f"rank {self.rank} hung: no sign of life for {silent:.0f} s"
            with contextlib.suppress(OSError), (self.run / f"stacks-rank{self.rank}.txt").open("w") as file:
                faulthandler.dump_traceback(file=file, all_threads=True)
            with contextlib.suppress(Exception):
                self.on_hang(reason)
            print(f"{reason}; its stacks:", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(all_threads=True)
        finally:  # whatever could not be written or said
            os._exit(1)
