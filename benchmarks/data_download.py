"""What the shield costs: the same pictures from the same local server by plain img2dataset and through the shield.

    python benchmarks/data_download.py [--pictures 4000] [--rounds 3]

One process on one core, the server on another. Pairs in turn, each time into an empty folder. ``download``: from a
shard's first picture asked for to its last one written, by img2dataset's statistics; ``whole call``: with imports,
workers and verification.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow
import pyarrow.parquet

from preprocessing.download import download
from preprocessing.shield import Policy

BYTES, PER_SHARD, THREADS = 100_000, 1000, 32
PLAIN = """
import json, os, sys
import img2dataset
if __name__ == "__main__":
    img2dataset.download(**json.loads(sys.argv[1]))
"""


def serve(port: Connection) -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    body = os.urandom(BYTES)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        found = b"404 Not Found" if b"robots.txt" in request else b"200 OK"
        sent = b"" if b"robots.txt" in request else body
        writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (found, len(sent)) + sent)
        await writer.drain()
        writer.close()

    async def forever() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=512)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(forever())


def rate(statistics_files: list[Path]) -> float:
    """Pictures per second of all shards together."""
    found = [json.loads(file.read_bytes()) for file in statistics_files]
    assert all(stats["successes"] == stats["count"] for stats in found)
    return sum(stats["count"] for stats in found) / sum(stats["duration"] for stats in found)


def plain(urls: list[str], folder: Path) -> float:
    pyarrow.parquet.write_table(pyarrow.table({"url": urls}), folder / "list.parquet")
    script = folder / "plain.py"
    script.write_text(PLAIN)
    settings = {
        "url_list": str(folder / "list.parquet"),
        "input_format": "parquet",
        "output_folder": str(folder / "out"),
        "output_format": "webdataset",
        "number_sample_per_shard": PER_SHARD,
        "thread_count": THREADS,
        "disable_all_reencoding": True,
        "extract_exif": False,
    }
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1", "TQDM_DISABLE": "1"}
    subprocess.run([sys.executable, script, json.dumps(settings)], check=True, capture_output=True, env=environment)
    return rate(list((folder / "out").glob("*_stats.json")))


def shielded(urls: list[str], folder: Path) -> float:
    name = urls[0].split("/")[2]
    rows = [(f"{i:06d}", url) for i, url in enumerate(urls)]
    policy = Policy(allow=(name,), per_host=THREADS)
    shards = range(len(urls) // PER_SHARD)
    list(download(shards, lambda n: rows[n * PER_SHARD : (n + 1) * PER_SHARD], folder, policy, threads=THREADS))
    return rate(list(folder.glob("*/stats.json")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    port = ours.recv()
    urls = [f"http://127.0.0.1:{port}/{i}.jpg" for i in range(options.pictures // PER_SHARD * PER_SHARD)]
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found: dict[str, list[tuple[float, float]]] = {"plain img2dataset": [], "through the shield": []}
    for _ in range(options.rounds):
        for label, run in (("plain img2dataset", plain), ("through the shield", shielded)):
            with tempfile.TemporaryDirectory() as folder:
                began = time.monotonic()
                downloading = run(urls, Path(folder))
                found[label].append((downloading, len(urls) / (time.monotonic() - began)))
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, one core for the download"
    )
    print(
        f"{len(urls)} pictures of {BYTES:,} bytes, {THREADS} threads, {options.rounds} rounds: median (least to most)\n"
    )
    print("| | download, pictures/s | whole call, pictures/s |\n|---|---|---|")
    for label, rounds in found.items():
        cells = [f"{statistics.median(x):.0f} ({min(x):.0f} to {max(x):.0f})" for x in zip(*rounds, strict=True)]
        print(f"| {label} | {cells[0]} | {cells[1]} |")
    ratios = [
        statistics.median(ours[i] / theirs[i] for theirs, ours in zip(*found.values(), strict=True)) for i in (0, 1)
    ]
    print(f"| ratio, pair by pair | {ratios[0]:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
