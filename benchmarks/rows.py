"""Measured figures with their aims beside them, as lines of a table."""

import argparse
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

HEADER = ("| what | measured | figure | least to most | aim | |", "|---|---|---|---|---|---|")


@dataclass(frozen=True)
class Row:
    """One figure, measured in several rounds, and the aim that its median should reach."""

    what: str
    way: str
    values: list[float]
    unit: str
    least: float | None = None
    most: float | None = None

    @property
    def missed(self) -> bool:
        middle = statistics.median(self.values)
        return (self.least is not None and middle < self.least) or (self.most is not None and middle > self.most)

    def __str__(self) -> str:
        aim = f"at least {self.least:g}" if self.least is not None else ""
        aim = f"at most {self.most:g}" if self.most is not None else aim
        found = (statistics.median(self.values), min(self.values), max(self.values))
        middle, low, high = (f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in found)
        verdict = ("missed" if self.missed else "reached") if aim else ""
        return f"| {self.what} | {self.way} | {middle} {self.unit} | {low} to {high} | {aim} | {verdict} |"


def show(rows: Iterable[Row]) -> None:
    print("\n".join([*HEADER, *map(str, rows)]), flush=True)


def rounds_asked(doc: str | None, usual: int) -> int:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=usual)
    return int(parser.parse_args().rounds)
