"""Many URLs -> raw shards: img2dataset downloads, and what it fetches with is the shield.

A shard is a numbered list of (key, URL). Each lies in a folder of its own, put in place whole and only when verified:

    RAW/00007/shard.tar, shard.parquet, stats.json    as img2dataset writes them
              answers.jsonl, rules.json               key, URL and what became of it, row by row; what was allowed
    RAW/answered.json      URLs that answered lately: whether they still do tells dead links from a network that is away
    RAW/img2dataset.log    what the last run printed
    RAW/work-…/            what is under way; an interrupted run's is taken over by the next

img2dataset runs in a child process (preprocessing.fetch.shielded), in a group that ends when this process does,
however it ends.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from preprocessing.fetch.shield import NETWORK, Policy, fetch

UNASKED = frozenset({"refused: scheme", "refused: url", "refused: address"})  # outcomes that need no network
Rows = Sequence[tuple[str, str]]  # (key, URL)

SHARDS_PER_PROCESS = 8  # handed to img2dataset at a time: what may lie in RAW before it is packed
SILENT_SHARDS = 3  # with no answer at all, before any other had one: then it is not the links
POLL_S = 0.1


@dataclass(frozen=True)
class Fetched:
    """What became of one URL: shield.Answer's fields, and when (Unix time)."""

    outcome: str
    detail: str
    final_url: str
    status: int
    fetched_s: float
    data: bytes = field(repr=False)  # empty unless ok


def download(
    numbers: Iterable[int],
    rows: Callable[[int], Rows],
    raw: Path,
    policy: Policy,
    processes: int = 1,
    threads: int = 64,
    progress: Callable[[int, int], None] = lambda asked, alive: None,
) -> Iterator[int]:
    """Yields each of ``numbers`` once its raw shard lies verified in ``raw``, in the order in which they are finished;
    those of an earlier run, of the same rows under the same rules, are not fetched again, and one without rows has no
    raw shard. ``policy.per_host`` is for all ``processes`` together; ``progress`` gets the number of URLs whose answer
    is known since it was called last, and how many of these are ok.

    Raises ValueError if what answered before does no more (the network is away), a shard could not be written or
    verified, or another process is at work in ``raw``; OSError for ``raw`` itself. What was finished stays, and the
    same call goes on.
    """
    raw.mkdir(parents=True, exist_ok=True)
    with (raw / "lock").open("w") as lock:  # a second run would take over what the first has under way
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{raw}: another process downloads into it; wait until it has ended, or end it") from None
        policy = replace(policy, per_host=max(1, policy.per_host // processes))
        yield from _Run(raw, policy, processes, threads, progress).all(numbers, rows)


def read_raw(raw: Path, number: int) -> dict[str, Fetched]:
    """Every row of a finished shard by its key, failures included. Raises ValueError naming a damaged shard."""
    folder = raw / f"{number:05d}"
    try:
        answers = _read_answers(folder)
        table = _read_parquet(folder)
        keys = dict(zip(table["key"], table["name"], strict=True))
        sums = dict(zip(table["name"], table["sha256"], strict=True))
        data: dict[str, bytes] = {}
        with tarfile.open(folder / "shard.tar") as tar:
            for member in tar:
                stem, _, suffix = member.name.partition(".")
                if suffix == "jpg":  # img2dataset's name for bytes of any kind
                    data[keys[stem]] = tar.extractfile(member).read()  # type: ignore[union-attr]
        for answer in answers:
            key, ok = answer["key"], answer["outcome"] == "ok"
            if ok != (key in data) or (ok and hashlib.sha256(data[key]).hexdigest() != sums[key]):
                raise ValueError(f"the bytes of {key} are not those that were downloaded")
    except (OSError, ValueError, KeyError, tarfile.TarError) as error:
        raise ValueError(f"{folder} is damaged: {error}; delete it, and the same command downloads it again") from error
    fields = ("outcome", "detail", "final_url", "status", "fetched_s")
    return {a["key"]: Fetched(**{name: a[name] for name in fields}, data=data.get(a["key"], b"")) for a in answers}


def discard_raw(raw: Path, number: int) -> None:
    """Deletes a raw shard, once its contents lie elsewhere; none is no error."""
    with suppress(FileNotFoundError):
        shutil.rmtree(raw / f"{number:05d}")


def verify(folder: Path, rows: Rows, policy: Policy) -> list[dict[str, Any]]:
    """-> the answers of a raw shard whose files agree with these rows and with one another (a tar cut short, an empty
    statistics file, another list). Its bytes are not read. Raises ValueError or OSError otherwise.
    """
    try:
        if json.loads((folder / "rules.json").read_bytes()) != rules(policy):
            raise ValueError("it was downloaded under other rules")
        answers = _read_answers(folder)
        if [(a["key"], a["url"]) for a in answers] != [tuple(row) for row in rows]:
            raise ValueError("it holds other rows")
        sizes = {a["key"]: a["bytes"] for a in answers if a["outcome"] == "ok"}
        stats = json.loads((folder / "stats.json").read_bytes())
        counted = [stats[name] for name in ("count", "successes", "failed_to_download")]
        if counted != [len(rows), len(sizes), len(rows) - len(sizes)]:
            raise ValueError(f"stats.json counts {counted}")
        table = _read_parquet(folder)
        done = {name for name, status in zip(table["name"], table["status"], strict=True) if status == "success"}
        if len(table["name"]) != len(rows) or done != set(sizes):
            raise ValueError("shard.parquet has other rows")
        keys = dict(zip(table["key"], table["name"], strict=True))
        with tarfile.open(folder / "shard.tar") as tar:
            parts = [(member.name.partition("."), member.size) for member in tar]
        if {keys[stem]: size for (stem, _, suffix), size in parts if suffix == "jpg"} != sizes:
            raise ValueError("shard.tar has other members")
    except (KeyError, TypeError, tarfile.TarError) as error:
        raise ValueError(f"{folder}: {error!r}") from error
    return answers


def rules(policy: Policy) -> dict[str, Any]:
    """What of a policy decides whether a URL is taken."""
    return {
        "allow": sorted(policy.allow),
        "proxy": policy.proxy,
        "robots": policy.robots,
        "max_bytes": policy.max_bytes,
    }


def _read_answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text("ascii").splitlines()]


def _read_parquet(folder: Path) -> dict[str, list[Any]]:
    import pyarrow.parquet

    columns = ["key", "name", "status", "sha256"]
    return pyarrow.parquet.read_table(folder / "shard.parquet", columns=columns).to_pydict()


def _away(silent: Iterable[Counter[str]]) -> str:
    outcomes = sum(silent, Counter())
    said = ", ".join(f"{outcome}: {n:,}" for outcome, n in outcomes.most_common())
    if outcomes.keys() <= UNASKED:
        return (
            f"none of {outcomes.total():,} URLs may be asked ({said}): addresses that are not public need --allow "
            "HOST:PORT; http and https alone are fetched"
        )
    if outcomes.keys() <= NETWORK | UNASKED:
        nobody = f"none of {outcomes.total():,} URLs answered ({said})"
    else:
        lost = sum(outcomes[outcome] for outcome in NETWORK)
        nobody = f"{lost:,} of {outcomes.total():,} URLs had no answer ({said}), nor has one now that answered before"
    return f"{nobody}: is the network there? They are not counted as done; once it is, the same command goes on"


@dataclass
class _Run:
    raw: Path
    policy: Policy  # of one process
    processes: int
    threads: int
    progress: Callable[[int, int], None]
    answered: dict[str, str] = field(default_factory=dict)  # host -> its URL that answered last
    there_s: float = 0.0  # when one of these was asked last, and answered again

    def __post_init__(self) -> None:
        with suppress(OSError, ValueError):
            self.answered = dict(json.loads((self.raw / "answered.json").read_bytes()))

    def all(self, numbers: Iterable[int], rows: Callable[[int], Rows]) -> Iterator[int]:
        for left in self.raw.glob("work-*"):
            for finished in sorted(left.glob("verified/*")):
                with suppress(OSError, ValueError, KeyError):  # it is damaged, or there is one already
                    if self.believed(_read_answers(finished)):
                        finished.rename(self.raw / finished.name)
            shutil.rmtree(left, ignore_errors=True)
        listed = self.missing(numbers, rows)
        while batch := list(islice(listed, SHARDS_PER_PROCESS * self.processes)):
            yield from (entry for entry in batch if isinstance(entry, int))
            todo = dict(entry for entry in batch if isinstance(entry, tuple))
            while todo:
                silent = yield from self.batch(todo)
                if silent and not self.answered:
                    raise ValueError(_away(silent.values()))
                todo = {number: todo[number] for number in silent}  # again, now that something has answered

    def missing(self, numbers: Iterable[int], rows: Callable[[int], Rows]) -> Iterator[int | tuple[int, Rows]]:
        """Numbers that are finished; with their rows, those that are not."""
        for number in numbers:
            listed = list(rows(number))
            if len({key for key, _ in listed}) < len(listed):
                raise ValueError(f"shard {number} has a key twice")
            if not listed:
                yield number
                continue
            try:
                answers = verify(self.raw / f"{number:05d}", listed, self.policy)
                self.note(answers)
                self.progress(len(answers), sum(answer["outcome"] == "ok" for answer in answers))
                yield number
            except (OSError, ValueError):
                yield number, listed

    def note(self, answers: list[dict[str, Any]]) -> None:
        urls = [a["final_url"] for a in answers if a["status"]]
        for url in urls[-3:]:
            self.answered.pop(urlsplit(url).netloc, None)
            self.answered[urlsplit(url).netloc] = url
        for host in list(self.answered)[:-3]:
            del self.answered[host]

    def believed(self, answers: list[dict[str, Any]]) -> bool:
        """Whether it is the links where there was no answer: another URL, that had one, has one again since.

        A network may go away in mid-shard: what answered before that says nothing of the rest.
        """
        self.note(answers)
        failed_s = [a["fetched_s"] for a in answers if a["outcome"] in NETWORK]
        if not failed_s:
            return True
        if not self.answered:
            return not {a["outcome"] for a in answers} <= NETWORK | UNASKED
        if self.there_s <= max(failed_s):
            asked_s = time.time()
            if not self.network_is_there():
                return False
            self.there_s = asked_s
        return True

    def network_is_there(self) -> bool:
        ask = replace(self.policy, robots=False, deadline_s=min(10.0, self.policy.deadline_s))
        return any(fetch(url, ask).status for url in reversed(self.answered.values()))

    def batch(self, todo: dict[int, Rows]) -> Generator[int, None, dict[int, Counter[str]]]:
        """Yields numbers as they are put in place -> those that are not believed, with the outcomes of each, where it
        cannot be told yet whether that is the links or the network.
        """
        work = Path(tempfile.mkdtemp(prefix="work-", dir=self.raw))
        child = None
        try:
            child = self._start(work, todo)
            waiting = list(todo)
            silent: dict[int, Counter[str]] = {}
            read = 0
            while waiting:
                ended = child.poll() is not None
                for number in list(waiting):
                    done = work / "verified" / f"{number:05d}"
                    if not done.exists():
                        continue
                    waiting.remove(number)
                    answers = _read_answers(done)
                    if not self.believed(answers):
                        silent[number] = Counter(a["outcome"] for a in answers)
                        if self.answered or len(silent) >= SILENT_SHARDS:
                            raise ValueError(_away(silent.values()))
                        continue
                    discard_raw(self.raw, number)
                    done.rename(self.raw / f"{number:05d}")
                    _write(self.raw / "answered.json", json.dumps(list(self.answered.items())))
                    yield number
                if outcomes := _rest(work / "asked", read):
                    self.progress(len(outcomes), sum(outcomes))
                    read += len(outcomes)
                if ended and waiting:
                    raise ValueError(
                        f"{len(waiting)} of {len(todo)} shards could not be downloaded: {_reason(self.raw)}; "
                        f"{self.raw / 'img2dataset.log'} says more; the same command goes on"
                    )
                time.sleep(POLL_S if waiting else 0)
            return silent
        finally:
            if child:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)  # img2dataset's processes, which outlive their parent
                child.wait()
                assert child.stdin
                child.stdin.close()
            shutil.rmtree(work, ignore_errors=True)

    def _start(self, work: Path, todo: dict[int, Rows]) -> subprocess.Popen[bytes]:
        import pyarrow
        import pyarrow.parquet

        for name in ("list", "out", "verified"):
            (work / name).mkdir()
        (work / "asked").touch()
        for index, rows in enumerate(todo.values()):
            keys, urls = zip(*rows, strict=True)
            # As JSON, since no column of text takes every string that a list may hold
            table = pyarrow.table({"name": list(keys), "url": [json.dumps(url) for url in urls]})
            pyarrow.parquet.write_table(table, work / "list" / f"{index:05d}.parquet")
        settings = {
            "work": str(work),
            "numbers": list(todo),
            "policy": asdict(self.policy),
            "processes": min(self.processes, len(todo)),
            "threads": self.threads,
            "most_rows": max(map(len, todo.values())),
        }
        environment = os.environ | {
            "NO_ALBUMENTATIONS_UPDATE": "1",  # its import asks PyPI for a newer version
            "TQDM_DISABLE": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        }
        with (self.raw / "img2dataset.log").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-c", "from preprocessing.fetch.shielded import main; main()"],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        with suppress(BrokenPipeError):  # it ended at once: the log says why
            assert child.stdin
            child.stdin.write(json.dumps(settings).encode() + b"\n")
        return child


def _reason(raw: Path) -> str:
    """The last error that the log names, as one line."""
    if shutil.disk_usage(raw).free < 1 << 20:  # then the log may be empty too
        return f"the disk of {raw} is full"
    lines = (raw / "img2dataset.log").read_text("utf-8", "replace").splitlines() or ["no word"]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|BrokenProcessPool)\b", line)]
    return re.sub(r"[^ -~]", " ", (errors or lines)[-1])[:300]


def _rest(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read()


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
