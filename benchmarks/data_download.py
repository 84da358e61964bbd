"""What the shield costs: the same pictures from the same local server by plain img2dataset and through the shield.

    python -m benchmarks.data_download [--rounds 3]

One process on one core, the server on another. Pairs in turn, each time into an empty folder. ``download``: from a
shard's first picture asked for to its last one written, by img2dataset's statistics; ``whole call``: with imports,
workers and verification.
"""

import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow
import pyarrow.parquet

from benchmarks.rows import Row, rounds_asked, show
from preprocessing.fetch.download import download
from preprocessing.fetch.shield import Policy

BYTES, PER_SHARD, THREADS, LEAST = 100_000, 1000, 32, 0.9
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


def measure(rounds: int, pictures: int = 2000) -> list[Row]:
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    port = ours.recv()
    urls = [f"http://127.0.0.1:{port}/{i}.jpg" for i in range(pictures // PER_SHARD * PER_SHARD)]
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    found: dict[str, list[tuple[float, float]]] = {"plain img2dataset": [], "through the shield": []}
    try:
        for _ in range(rounds):
            for label, run in (("plain img2dataset", plain), ("through the shield", shielded)):
                with tempfile.TemporaryDirectory() as folder:
                    began = time.monotonic()
                    downloading = run(urls, Path(folder))
                    found[label].append((downloading, len(urls) / (time.monotonic() - began)))
    finally:
        os.sched_setaffinity(0, cores)
        server.terminate()
    rows = []
    for place, what in enumerate(("download", "whole call")):
        for label, rates in found.items():
            rows.append(Row(what, label, [rate[place] for rate in rates], "pictures/s per core"))
        pairs = zip(*found.values(), strict=True)
        rows.append(Row("", "ratio, pair by pair", [b[place] / a[place] for a, b in pairs], "", least=LEAST))
    return rows


if __name__ == "__main__":
    show(measure(rounds_asked(__doc__, 3)))
