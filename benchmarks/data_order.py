"""What an order of training costs on slow storage: 10,000 shards, a cold page cache, injected latency.

    python benchmarks/data_order.py [--shards 10000] [--rounds 3]

Each open waits 10 ms, each read 2 ms, as on networked storage; streamed files are read ahead by 128 KiB. The files are
evicted from the page cache before every measurement. Every order is measured in turn, in several rounds, and beside
them the usual way: ``wds.WebDataset`` with shuffled shards and a shuffle buffer.
"""

import argparse
import builtins
import datetime
import io
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image

from mdm.data.batches import TrainingSet
from mdm.data.order import Order
from mdm.data.shards import Shards
from mdm.data.workers import batches
from mdm.stage import Storage

OPEN_S, READ_S, READ_AHEAD_BYTES = 0.010, 0.002, 128 * 1024
PER_SHARD, PX, BATCH, BUFFER = 100, 16, 64, 5000
WINDOWS = {"full": 0, "window 32": 32, "window 128": 128}
SAMPLES = {"full": 12 * BATCH, "window 32": 6400, "window 128": 12800, "wds": 12800}  # whole windows
opens = multiprocessing.Value("q", 0)  # of all processes


def make_shards(folder: Path, count: int) -> None:
    """A dataset folder of ``count`` shards: the same tiny pictures in each, with keys of their own."""
    random, buffer, spans, metas = np.random.default_rng(0), io.BytesIO(), [], []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for place in range(PER_SHARD):
            picture = io.BytesIO()
            Image.fromarray(random.integers(0, 255, (PX, PX, 3), np.uint8)).save(picture, "png")
            meta = json.dumps({"key": f"00000-{place:03d}", "label": place}).encode()
            places = []
            for extension, data in (("png", picture.getvalue()), ("txt", b"noise"), ("json", meta)):
                info = tarfile.TarInfo(f"{place:03d}.{extension}")
                info.size = len(data)
                places.append((tar.offset + tarfile.BLOCKSIZE, len(data)))
                tar.addfile(info, io.BytesIO(data))
            spans.append(places)
            metas.append(places[-1][0] + meta.index(b"00000-"))
    index, template = io.BytesIO(), bytearray(buffer.getvalue())
    np.save(index, np.array(spans, dtype=np.int64))
    shards = []
    for number in range(count):
        for at in metas:
            template[at : at + 5] = b"%05d" % number
        (folder / f"{number:05d}.tar").write_bytes(template)
        (folder / f"{number:05d}.idx.npy").write_bytes(index.getvalue())
        shards.append({"file": f"{number:05d}.tar", "samples": PER_SHARD, "bytes": len(template), "sha256": ""})
    (folder / "manifest.json").write_text(json.dumps({"digest": "benchmark", "shards": shards}))


def evict(folder: Path) -> None:
    """Drop the shards from the page cache (they must have been written out)."""
    os.sync()
    for path in folder.iterdir():
        with io.FileIO(path) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class SlowFile(io.FileIO):
    def readinto(self, buffer: Any) -> int:
        time.sleep(READ_S)
        return super().readinto(buffer)


def inject_latency(folder: Path) -> None:
    """From now on this process, and workers that it forks, wait for files in ``folder``."""
    plain_open, os_open, os_pread, os_stat = builtins.open, os.open, os.pread, os.stat

    def is_ours(path: Any) -> bool:
        return isinstance(path, str | Path) and str(path).startswith(str(folder))

    def waits(function: Callable[..., Any], counts: bool) -> Callable[..., Any]:
        def slow(path: Any, *arguments: Any, **options: Any) -> Any:
            if is_ours(path):
                time.sleep(OPEN_S)
                with opens.get_lock():
                    opens.value += counts
            return function(path, *arguments, **options)

        return slow

    def open_stream(path: Any, *arguments: Any, **options: Any) -> Any:
        return io.BufferedReader(SlowFile(path), READ_AHEAD_BYTES)

    def slow_pread(*arguments: Any) -> bytes:
        time.sleep(READ_S)
        return os_pread(*arguments)

    slow_stream = waits(open_stream, counts=True)

    def opened(path: Any, *rest: Any, **options: Any) -> Any:
        return (slow_stream if is_ours(path) else plain_open)(path, *rest, **options)

    builtins.open = opened  # type: ignore[assignment]
    os.open, os.stat = waits(os_open, counts=True), waits(os_stat, counts=False)
    os.pread = slow_pread


def training_set(folder: Path, window: int) -> TrainingSet:
    return TrainingSet(
        Shards(folder, storage=Storage(max_open_files=max(64, 2 * window))), seed=0, window_shards=window
    )


def our_batches(folder: Path, window: int, start: int, count: int, workers: int) -> Iterator[Any]:
    groups = [list(range(i, i + BATCH)) for i in range(start, start + count, BATCH)]
    return batches(training_set(folder, window), groups, workers)


def their_batches(folder: Path, shards: int, workers: int) -> Iterator[tuple[torch.Tensor, list[str]]]:
    """The usual pipeline: shuffled shards, a buffer of samples, batches made in the workers."""

    def collate(samples: list[dict[str, Any]]) -> tuple[torch.Tensor, list[str]]:
        images = torch.stack([torch.from_numpy(s["png"].copy()).permute(2, 0, 1) for s in samples])
        return images, [s["__url__"] for s in samples]

    url = f"{folder}/{{00000..{shards - 1:05d}}}.tar"
    stream = webdataset.WebDataset(url, shardshuffle=shards, seed=0).shuffle(BUFFER).decode("rgb8")
    return iter(webdataset.WebLoader(stream.batched(BATCH, collation_fn=collate), batch_size=None, num_workers=workers))


def measure_ours(folder: Path, name: str, workers: int) -> dict[str, float]:
    """Whole windows from a cold start; then, from a fresh start, the first batch in the middle of the fourth epoch."""
    evict(folder)
    begun, before, count = time.perf_counter(), opens.value, SAMPLES[name]
    seen = sum(len(b.images) for b in our_batches(folder, WINDOWS[name], 0, count, workers))
    rate, opened = seen / (time.perf_counter() - begun), 1000 * (opens.value - before) / seen
    evict(folder)
    data = training_set(folder, WINDOWS[name])
    middle = 3 * len(data.shards) + len(data.shards) // 2
    begun = time.perf_counter()
    next(our_batches(folder, WINDOWS[name], middle, BATCH, workers))
    return {"images/s": rate, "opens": opened, "resume_s": time.perf_counter() - begun}


def measure_theirs(folder: Path, shards: int, workers: int) -> dict[str, float]:
    """Once the buffer is full. To resume it has to read again all that came before."""
    evict(folder)
    stream = their_batches(folder, shards, workers)
    next(stream)
    begun, before, batch = time.perf_counter(), opens.value, []
    for images, urls in islice(stream, SAMPLES["wds"] // BATCH):
        batch.append((len(images), len(set(urls))))
    seen = sum(size for size, _ in batch)
    rate = seen / (time.perf_counter() - begun)
    opened, distinct = 1000 * (opens.value - before) / seen, statistics.mean(d for _, d in batch)
    return {"images/s": rate, "opens": opened, "distinct": distinct, "resume_s": shards * PER_SHARD / 2 / rate}


def order_figures(shards: int, window: int) -> dict[str, float]:
    """Distinct shards in a batch, and what a lookup and an epoch's first one take."""
    order = Order([PER_SHARD] * shards, 0, window)
    begun = time.perf_counter()
    order.index(0)
    first_s = time.perf_counter() - begun
    positions = np.random.default_rng(0).integers(0, order.samples, 20_000).tolist()
    begun = time.perf_counter()
    for position in positions:
        order.index(position)
    lookup_s = (time.perf_counter() - begun) / len(positions)
    starts = np.linspace(0, order.samples - BATCH, 200).astype(int).tolist()
    distinct = [len({order.index(start + i) // PER_SHARD for i in range(BATCH)}) for start in starts]
    return {"distinct": statistics.mean(distinct), "lookup_us": lookup_s * 1e6, "first_ms": first_s * 1e3}


def spread(values: list[float], digits: int = 0) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # workers that wait need no core
    with tempfile.TemporaryDirectory() as name:
        folder, begun = Path(name), time.perf_counter()
        make_shards(folder, arguments.shards)
        os.sync()
        print(f"{arguments.shards} shards made in {time.perf_counter() - begun:.0f} s", flush=True)
        figures = {order: order_figures(arguments.shards, window) for order, window in WINDOWS.items()}
        inject_latency(folder)
        begun = time.perf_counter()
        assert Shards(folder).check() == []
        check_s = time.perf_counter() - begun
        rows: dict[tuple[str, int], list[dict[str, float]]] = {}
        for turn in range(arguments.rounds):
            for workers in (0, 4):
                for order in (*WINDOWS, "wds"):
                    ours = order in WINDOWS
                    row = (
                        measure_ours(folder, order, workers)
                        if ours
                        else measure_theirs(folder, arguments.shards, workers)
                    )
                    rows.setdefault((order, workers), []).append({**figures.get(order, {}), **row})
                    print(turn, order, workers, {k: round(v, 2) for k, v in row.items()}, flush=True)
    write_page(arguments, rows, figures, check_s)


def write_page(
    arguments: argparse.Namespace,
    rows: dict[tuple[str, int], list[dict[str, float]]],
    figures: dict[str, dict[str, float]],
    check_s: float,
) -> None:
    cpu = next((x.split(": ")[1] for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    today = datetime.date.today().isoformat()
    lines = [
        f"# Orders of training on slow storage, {today}",
        "",
        f"- hardware: {cpu}, {os.cpu_count()} cores, {memory:.0f} GB, no GPU; other work on the same cores",
        f"- software: Python {platform.python_version()}, torch {torch.__version__}, "
        f"webdataset {webdataset.__version__}",
        f"- commit: {commit}",
        f"- command: `python benchmarks/data_order.py --shards {arguments.shards} --rounds {arguments.rounds}`",
        f"- data: {arguments.shards:,} shards of {PER_SHARD} pictures of {PX} px, "
        f"{arguments.shards * PER_SHARD:,} samples",
        f"- storage: {OPEN_S * 1e3:.0f} ms per open and per stat, {READ_S * 1e3:.0f} ms per read (a stream: per "
        f"{READ_AHEAD_BYTES // 1024} KiB), page cache evicted before each measurement",
        f"- open files per process: 64, for windows of 128 shards 256; `wds`: shuffled shards, buffer of {BUFFER:,}",
        "",
        f"Median of {arguments.rounds} rounds (smallest–largest); all rows take turns. Batches of {BATCH}. "
        "An open is of a tar or an index; ours are counted from a cold start on, over whole windows, and every worker "
        "opens a window's shards. `wds` is timed once its buffer is full; its time to resume is computed: it reads "
        "half an epoch again. Ratios are to the full order with as many workers. Each of our samples is a read, "
        "a stream reads ahead: with pictures as tiny as these that favours `wds` (40 of them in a read).",
        "",
        "| order | workers | images/s | ratio | opens per 1000 samples | distinct shards in a batch | to resume, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for (order, workers), found in rows.items():
        base = statistics.median(row["images/s"] for row in rows["full", workers])
        rate = [row["images/s"] for row in found]
        lines.append(
            f"| {order} | {workers} | {spread(rate)} | {statistics.median(rate) / base:.1f} | "
            f"{statistics.median(row['opens'] for row in found):,.0f} | "
            f"{statistics.median(row['distinct'] for row in found):.1f} | {spread([r['resume_s'] for r in found], 1)} |"
        )
    lines += [
        "",
        "| order | a lookup, µs | the first lookup of an epoch, ms |",
        "|---|---|---|",
        *(f"| {order} | {f['lookup_us']:.1f} | {f['first_ms']:.1f} |" for order, f in figures.items()),
        "",
        f"`Shards.check()` looked at all {arguments.shards:,} shards in {check_s:.1f} s.",
    ]
    page = Path(__file__).parent / "results" / f"{today}-data-order.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text("\n".join(lines) + "\n")
    print(page.read_text())


if __name__ == "__main__":
    main()
