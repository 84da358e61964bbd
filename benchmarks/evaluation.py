"""`make bench-evaluation`: what measuring costs and how exact it is, beside the usual way of doing it.

Everything that is compared takes turns in one run, on one thread, and is counted in CPU seconds: other work on the same
cores changes those least. Writes results/DATE-evaluation.md.
"""

import argparse
import datetime
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # from its own folder, this file would be taken for the package `evaluation`
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")  # read when NumPy is imported

import cleanfid.fid  # noqa: E402
import numpy as np  # noqa: E402
import scipy  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from evaluation.frechet import Gaussian, distance  # noqa: E402
from mdm.run.job import commit, cpu_name  # noqa: E402

Array = NDArray[np.float64]


def frechet(rounds: int) -> Iterator[str]:
    """Features of which the exact distance is known, more of them than dimensions and fewer, to a kept reference."""
    dim = 2048
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    falling = 10 * np.arange(1.0, dim + 1) ** -1.5  # variances along the axes, as steep as a network's features' are
    theirs, ours = falling * rng.uniform(0.5, 2, dim), falling * rng.uniform(0.5, 2, dim)
    covariance = (axes * theirs) @ axes.T
    reference = Gaussian.of_moments(np.zeros(dim), (covariance + covariance.T) / 2)
    covariance = (covariance + covariance.T) / 2
    begun = time.process_time()
    _ = reference.factor
    yield f"The reference is factored once, in {time.process_time() - begun:.2f} s. Features are float64 [N, {dim}]."
    yield ""
    yield "| N | what is timed | clean-fid, s | ours, s | ratio | clean-fid's error | our error |"
    yield "|---|---|---|---|---|---|---|"
    for count in (5000, 1000):
        rank = min(count - 1, dim)
        exact = np.square(np.full(dim, 0.05)).sum() + theirs.sum() + ours[:rank].sum()
        exact -= 2 * np.sqrt(theirs * ours)[:rank].sum()
        features = with_moments(rng, count, axes[:, :rank] * np.sqrt(ours[:rank])) + 0.05

        def usual(features: Array = features) -> tuple[float, float]:
            """As clean-fid does it -> the distance, and the CPU seconds of its last part alone."""
            mean, cov = np.mean(features, axis=0), np.cov(features, rowvar=False)
            begun = time.process_time()
            found = cleanfid.fid.frechet_distance(mean, cov, reference.mean, covariance)
            return float(found), time.process_time() - begun

        def kept(features: Array = features) -> tuple[float, float]:
            samples = Gaussian.of_features(features)
            begun = time.process_time()
            return distance(samples, reference), time.process_time() - begun

        (a, a_last, a_found), (b, b_last, b_found) = in_turn(rounds, usual, kept)
        errors = f"{max(abs(v - exact) for v in a_found):.1e} | {max(abs(v - exact) for v in b_found):.1e}"
        yield f"| {count:,} | from features | {spread(a)} | {spread(b)} | {ratios(a, b)} | {errors} |"
        yield f"| {count:,} | from moments | {spread(a_last)} | {spread(b_last)} | {ratios(a_last, b_last)} | | |"


def with_moments(rng: np.random.Generator, count: int, factor: Array) -> Array:
    """Rows [count, D] of mean 0 and covariance factor factor' [D, D], up to rounding."""
    ones = np.ones((count, 1))
    columns = np.linalg.qr(np.hstack([ones, rng.normal(size=(count, factor.shape[1]))]))[0][:, 1:]
    return np.asarray(np.sqrt(count - 1) * columns @ factor.T)


def in_turn(
    rounds: int, *functions: Callable[[], tuple[float, float]]
) -> list[tuple[list[float], list[float], list[float]]]:
    """Per function its CPU seconds, those of its last part, and its values, of every round."""
    found: list[tuple[list[float], list[float], list[float]]] = [([], [], []) for _ in functions]
    for _ in range(rounds):
        for function, (whole, last, values) in zip(functions, found, strict=True):
            begun = time.process_time()
            value, seconds = function()
            whole.append(time.process_time() - begun)
            last.append(seconds)
            values.append(value)
    return found


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def ratios(usual: list[float], ours: list[float]) -> str:
    """Of each round by itself."""
    each = [a / b for a, b in zip(usual, ours, strict=True)]
    return f"{statistics.median(each):.1f} ({min(each):.1f}–{max(each):.1f})"


PARTS: dict[str, Callable[[int], Iterator[str]]] = {"Fréchet distance": frechet}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # what clean-fid calls of SciPy
    page = Path(__file__).parent / "results" / f"{datetime.date.today().isoformat()}-evaluation.md"
    lines = [
        f"# Measuring, {datetime.date.today().isoformat()}",
        "",
        f"{cpu_name()}, one thread of {os.cpu_count()} cores, no GPU; Python {platform.python_version()}, "
        f"NumPy {np.__version__}, SciPy {scipy.__version__}; commit {commit(ROOT)}; `make bench-evaluation`. "
        f"CPU seconds: median of {rounds} rounds (smallest–largest), taken in turn. Each ratio is of one round.",
    ]
    for title, part in PARTS.items():
        lines += ["", f"## {title}", ""]
        for line in part(rounds):
            print(line, flush=True)
            lines.append(line)
    page.write_text("\n".join(lines) + "\n")
    print(f"written to {page}")


if __name__ == "__main__":
    main()
