"""What a person sees while a flow runs: one live table of the stages on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text


@dataclass
class Row:
    """One stage."""

    name: str
    state: str = "waiting"  # waiting, running, done, reused, failed
    done: float = 0
    total: float = 0
    unit: str = ""
    note: str = ""
    begun: float = 0
    begun_done: float = 0  # where this attempt took up the work
    seconds: float = 0

    def rate(self) -> float:
        elapsed = time.monotonic() - self.begun
        return (self.done - self.begun_done) / elapsed if self.done > self.begun_done and elapsed > 0 else 0.0

    def left_s(self) -> float:
        return (self.total - self.done) / self.rate() if self.rate() else 0.0


@dataclass
class Board:
    """The stages of one flow run. On a terminal it redraws itself; otherwise a stage prints a line now and then."""

    stages: list[str]
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    every_s: float = 15
    log: Callable[[str], None] | None = None  # where lines go instead of standard error

    def __post_init__(self) -> None:
        self.rows = {name: Row(name) for name in self.stages}
        self.notes: list[str] = []
        self.begun = time.monotonic()
        self.printed = 0.0
        self.live = Live(get_renderable=self._render, console=self.console, refresh_per_second=4, transient=False)
        self.is_live = self.console.is_terminal and self.log is None

    def __enter__(self) -> "Board":
        if self.is_live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_live:
            self.live.stop()

    def start(self, name: str, total: float = 0, unit: str = "") -> None:
        row = self.rows[name]
        row.state, row.total, row.unit, row.begun = "running", total, unit, time.monotonic()
        self._line(f"{name}: started")

    def update(self, name: str, done: float, total: float | None = None, note: str = "") -> None:
        row = self.rows[name]
        if row.begun_done == 0 and row.done == 0 and done > 0:
            row.begun_done = done  # what was there before is not this attempt's speed
            row.begun = time.monotonic()
        row.done, row.total, row.note = done, row.total if total is None else total, note or row.note
        if time.monotonic() - self.printed > self.every_s:
            self._line(f"{name}: {self._progress(row)} {row.note}")

    def finish(self, name: str, state: str, seconds: float, note: str = "") -> None:
        row = self.rows[name]
        row.state, row.seconds, row.note = state, seconds, note or row.note
        if row.total:
            row.done = row.total
        self._line(f"{name}: {state} {clock(seconds)} {row.note}".rstrip())

    def say(self, line: str) -> None:
        """A line that stays."""
        self.notes.append(line)
        self._line(line)

    def _line(self, text: str) -> None:
        self.printed = time.monotonic()
        if self.log is not None:
            self.log(text)
        elif not self.is_live:
            print(f"[{clock(time.monotonic() - self.begun)}] {text}", file=sys.stderr, flush=True)

    def _progress(self, row: Row) -> str:
        if not row.total:
            return ""
        text = f"{row.done:,.0f}/{row.total:,.0f} {row.unit}"
        if row.state == "running" and row.rate():
            text += f", {row.rate():.1f} {row.unit}/s, {clock(row.left_s())} left"
        return text

    def _render(self) -> Group:
        table = Table.grid(padding=(0, 2))
        marks = {"waiting": "·", "running": "▶", "done": "✓", "reused": "✓", "failed": "✗"}
        styles = {"waiting": "dim", "running": "bold", "done": "green", "reused": "green", "failed": "red"}
        for row in self.rows.values():
            filled = round(20 * min(1, row.done / row.total)) if row.total else 0
            bar = "█" * filled + "░" * (20 - filled) if row.state == "running" and row.total else ""
            seconds = time.monotonic() - row.begun if row.state == "running" else row.seconds
            passed = clock(seconds) if row.state in ("running", "done", "failed") else row.state
            progress = self._progress(row) if row.state == "running" else ""
            table.add_row(
                Text(f"{marks[row.state]} {row.name}", styles[row.state]),
                Text(passed),
                Text(bar),
                Text(progress),
                Text(row.note, "dim"),
            )
        return Group(
            table,
            *[Text(note) for note in self.notes[-6:]],
            Text(f"total {clock(time.monotonic() - self.begun)}", "dim"),
        )


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


_board: Board | None = None


def board(stages: list[str] | None = None, log: Callable[[str], None] | None = None) -> Board:
    """This process's board; made anew where stages are given."""
    global _board
    if stages is not None:
        _board = Board(stages, log=log)
    if _board is None:
        raise RuntimeError("no flow is running in this process")
    return _board
