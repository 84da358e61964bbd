"""All that the data's way should reach, with the limits beside it: loader, download, shards, frames, embedded set.

    make bench-data

What is compared took turns in the same run. Writes results/YYYY-MM-DD-data.md; a missed aim is said, not an error.
"""

import datetime
import os
import platform
import subprocess
from pathlib import Path

from benchmarks import data_download, data_loader, data_openmoji, data_pack, data_scale, data_video
from benchmarks.rows import HEADER

ROUNDS = {data_loader: 7, data_download: 3, data_pack: 5, data_scale: 1, data_video: 3, data_openmoji: 1}


def main() -> None:
    cpu = next((x.split(": ")[1] for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    today = datetime.date.today().isoformat()
    lines = [
        f"# The data's way, {today}",
        "",
        f"- hardware: {cpu}, {os.cpu_count()} cores, {memory:.0f} GB, no GPU; load {os.getloadavg()[0]:.1f}",
        f"- software: Python {platform.python_version()}",
        f"- commit: {commit}",
        "- command: `make bench-data`",
        "",
        "Median and spread of the rounds. Loader, packing and costs per shard by CPU time, the rest by the clock.",
        "",
        *HEADER,
    ]
    print("\n".join(lines), flush=True)
    for script, rounds in ROUNDS.items():
        for row in script.measure(rounds):
            print(row, flush=True)
            lines.append(str(row))
    page = Path(__file__).parent / "results" / f"{today}-data.md"
    page.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
