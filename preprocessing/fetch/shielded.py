"""The child process of preprocessing.fetch.download: img2dataset with three of its parts replaced.

The fetch function is the shield. The logger, a process that would outlive us, is none. The pool is an executor, because
multiprocessing.Pool waits for ever for a worker that was killed; its workers are forked from a server that has imported
everything, because img2dataset's import takes seconds, and its own pool repeats it every fifth shard.
"""

import io
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from itertools import count
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from preprocessing.fetch.download import Rows, rules, verify
from preprocessing.fetch.shield import Policy, fetch

TOLD = 16  # URLs asked before progress is written


def main() -> None:
    """Reads what to do from the first line of standard input, as preprocessing.fetch.download writes it."""
    settings = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    multiprocessing.set_forkserver_preload(["img2dataset", __name__])
    forkserver.ensure_running()  # imports for seconds, and so do we
    theirs: Any = import_module("img2dataset.main")  # whose package has a function of that name
    theirs.LoggerProcess = _NoLogger
    work = Path(settings["work"])
    policy = settings["policy"]
    theirs.Downloader = partial(
        _Shielded, work, settings["numbers"], Policy(**policy | {"allow": tuple(policy["allow"])})
    )
    theirs.multiprocessing_distributor = _distribute
    theirs.download(
        str(work / "list"),
        input_format="parquet",
        save_additional_columns=["name"],
        output_folder=str(work / "out"),
        output_format="webdataset",
        number_sample_per_shard=settings["most_rows"],
        processes_count=settings["processes"],
        thread_count=settings["threads"],
        disable_all_reencoding=True,
        extract_exif=False,
        compute_hash="sha256",
        enable_wandb=False,
    )


def _end_with_parent() -> None:
    """The parent holds the other end of standard input: it closes when the parent is gone, even killed."""
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


class _NoLogger:
    def __init__(self, *_: object) -> None:
        self.done_shards: set[int] = set()

    def start(self) -> None: ...

    def join(self) -> None: ...

    def terminate(self) -> None: ...


def _distribute(processes: int, downloader: "_Shielded", reader: Iterable[tuple[int, str]], *_: object) -> None:
    with ProcessPoolExecutor(processes, multiprocessing.get_context("forkserver")) as pool:
        for _ in pool.map(downloader, reader):
            pass


class _Shielded:
    """img2dataset's Downloader in a worker process: (index, arrow file) -> a shard, fetched by the shield, verified."""

    def __init__(self, work: Path, numbers: list[int], policy: Policy, **settings: Any) -> None:
        self.work, self.numbers, self.policy, self.settings = work, numbers, policy, settings

    def __call__(self, shard: tuple[int, str]) -> tuple[bool, tuple[int, str]]:
        import pyarrow

        theirs: Any = import_module("img2dataset.downloader")
        index, file = shard
        with open(file, "rb") as stream:
            listed = pyarrow.ipc.open_file(stream).read_all().to_pydict()
        rows = [(key, json.loads(url)) for key, url in zip(listed["name"], listed["url"], strict=True)]
        answers: dict[int, dict[str, Any]] = {}
        asked = os.open(self.work / "asked", os.O_WRONLY | os.O_APPEND)

        counter, untold = count(1), list[bool]()  # of each answer: whether it is ok

        def fetch_row(row: tuple[int, str], **_: object) -> tuple[int, io.BytesIO | None, str | None]:
            key, url = rows[row[0]]
            answer = fetch(url, self.policy)
            ok = answer.outcome == "ok"
            untold.append(ok)
            if next(counter) % TOLD == 0:  # one of the threads, when so many have told
                os.write(asked, bytes(untold.pop() for _ in range(TOLD)))
            answers[row[0]] = {
                "key": key,
                "url": url,
                "outcome": answer.outcome,
                "detail": answer.detail,
                "final_url": answer.final_url,
                "status": answer.status,
                "fetched_s": time.time(),
                "bytes": len(answer.data),
            }
            return row[0], io.BytesIO(answer.data) if ok else None, None if ok else answer.outcome

        theirs.download_image_with_retry = fetch_row
        try:
            done, _ = theirs.Downloader(**self.settings)(shard)
            os.write(asked, bytes(untold))
        finally:
            os.close(asked)
        if done:
            self._put_together(index, rows, [answers[i] for i in sorted(answers)])
        return done, shard

    def _put_together(self, index: int, rows: Rows, answers: list[dict[str, Any]]) -> None:
        """The files of a shard into a folder of its own, which appears among the verified ones if it is whole."""
        folder = self.work / "out" / f"_{index:05d}"
        folder.mkdir()
        for suffix, name in {".tar": "shard.tar", ".parquet": "shard.parquet", "_stats.json": "stats.json"}.items():
            (self.work / "out" / f"{index:05d}{suffix}").rename(folder / name)
        (folder / "rules.json").write_text(json.dumps(rules(self.policy)))
        (folder / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers), "ascii")
        try:
            verify(folder, rows, self.policy)
        except (OSError, ValueError) as error:
            print(f"ValueError: shard {self.numbers[index]}: {error}")
            return
        folder.rename(self.work / "verified" / f"{self.numbers[index]:05d}")
