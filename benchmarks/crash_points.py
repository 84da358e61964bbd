"""Every crash point of a small training's saves, judged by ckpt-chaos: python benchmarks/crash_points.py [OPTION…]

One process killed before every file event and with every file torn; SIGTERM at every event; two processes, each of
them killed. Writes results/DATE-crash-points.md: the verdicts. Exits with 1 where one is not PASS (lost work neither).
``--only two`` takes the modes that begin so; all other options go to ckpt-chaos (``--max-points 40``: evenly spread).
"""

import argparse
import datetime
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "mdm" / "run")]

from chaos_target import command  # noqa: E402

from mdm.run.job import commit, cpu_name  # noqa: E402
from small import write_dataset  # noqa: E402

MODES = {
    "one process, killed or a file torn": ["--modes", "before,torn"],
    "one process, SIGTERM": ["--modes", "term", "--grace", "60"],
    "two processes, rank 0 killed or a file torn": ["--modes", "before,torn", "--ranks", "2"],
    "two processes, rank 0 SIGTERM": ["--modes", "term", "--grace", "60", "--ranks", "2"],
}


def main(options: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", default="", metavar="HOW", help="modes whose name begins so: one, two")
    asked, of_chaos = parser.parse_known_args(options)
    today = datetime.date.today().isoformat()
    out = ROOT / "benchmarks" / "results" / f"{today}-crash-points{asked.only and '-' + asked.only}.md"
    lines = [f"# Crash points, {today}", "", f"`{' '.join(['python benchmarks/crash_points.py', *options])}`"]
    lines += [f"ckpt-chaos {version('ckpt-chaos')}, commit {commit(ROOT)}, {cpu_name()}, {os.cpu_count()} cores.", ""]
    lines += ["| how | points | verdicts | minutes |", "|---|---|---|---|"]
    failed = False
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        for split, count in (("train", 40), ("val", 9)):
            write_dataset(data, split, count, 32)
        for number, (how, mode) in enumerate(row for row in MODES.items() if row[0].startswith(asked.only)):
            work, begun = Path(folder) / str(number), time.monotonic()
            summary = Path(folder) / f"{number}.md"
            every = ["--max-points", "1000", "--summary", str(summary)]
            done = subprocess.run(command(work, data, *every, *mode, *of_chaos), env=environment)
            failed |= done.returncode != 0
            verdicts = re.findall(r"^\| \*\*(\w+)\*\* \| (\d+) \|", summary.read_text(), re.MULTILINE)
            runs, told = sum(int(n) for _, n in verdicts), ", ".join(f"{n} {verdict}" for verdict, n in verdicts)
            lines.append(f"| {how} | {runs} | {told} | {(time.monotonic() - begun) / 60:.0f} |")
            out.write_text("\n".join(lines) + "\n")  # an hour's work: what is known stands
    print(out.read_text())
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
