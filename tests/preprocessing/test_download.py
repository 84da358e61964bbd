"""img2dataset behind the shield: one list, downloaded without a network, then killed, then to its end."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import preprocessing.fetch.download
from hostile_server import HostileServer, free_port, picture
from preprocessing.fetch import shielded
from preprocessing.fetch.download import Rows, discard_raw, download, read_raw, verify
from preprocessing.fetch.shield import Policy

KILLED = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from preprocessing.fetch import shielded
from preprocessing.fetch.download import download
from preprocessing.fetch.shield import Policy

listed, raw, allow = json.load(sys.stdin)
for number in download([4, 0, 1, 2, 3], lambda n: listed[n], Path(raw), Policy(allow=tuple(allow), deadline_s=2.0)):
    print(number, flush=True)
"""


def rows_of(port: int, closed: int) -> list[Rows]:
    """Shards: of everything, of pictures alone, with one that drips, with nobody at home, that needs no network."""
    paths = ["good/1.jpg", "status/404", "flaky/1", "truncated/1", "chain/2", "noai", "private/1", "page.jpg"]
    paths += ["good/ä ö.jpg"]
    mixed = [(path.replace("/", "-"), f"http://127.0.0.1:{port}/{path}") for path in paths]
    odd = [("passwd", "file:///etc/passwd"), ("torn", "http://\ud800/"), ("inside", f"http://127.0.0.1:{closed + 1}/x")]
    pictures = [(f"{i:04d}", f"http://127.0.0.1:{port}/good/{i}.jpg") for i in range(12)]
    drips = [("drips", f"http://127.0.0.1:{port}/drip"), ("good", f"http://127.0.0.1:{port}/good/a.jpg")]
    return [mixed + odd, pictures, drips, [("dead", f"http://127.0.0.1:{closed}/x"), odd[0]], odd]


@dataclass
class Story:
    rows: list[Rows]
    raw: Path
    policy: Policy
    away: str  # what was said without a network
    done: list[list[int]]  # numbers, run by run
    hits: list[Counter[str]]  # the server's, after each run with it
    asked: int  # what progress told in the last run, and of what was there before it
    alive: int
    orphans: list[str]
    printed: str = ""  # by the killed run, beside its numbers


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterable[Story]:
    port, closed = free_port(), free_port()
    raw = tmp_path_factory.mktemp("story") / "raw"
    policy = Policy(allow=(f"127.0.0.1:{port}", f"127.0.0.1:{closed}"), deadline_s=2.0)
    story = Story(rows_of(port, closed), raw, policy, "", [[], [], []], [], 0, 0, [])

    def run(into: list[int]) -> None:
        def progress(asked: int, alive: int) -> None:
            story.asked += asked
            story.alive += alive

        into.extend(download([4, 0, 1, 2, 3], story.rows.__getitem__, raw, policy, 2, 8, progress))

    with pytest.raises(ValueError) as error:
        run(story.done[0])
    story.away, story.asked, story.alive = str(error.value), 0, 0

    with HostileServer(port) as server:
        told = json.dumps([story.rows, str(raw), policy.allow])
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen([sys.executable, "-c", KILLED], **pipes, text=True) as main:  # type: ignore[call-overload]
            main.stdin.write(told)
            main.stdin.close()
            while 1 not in story.done[1]:  # the next one takes two seconds
                story.done[1].append(int(main.stdout.readline()))
            under_it = psutil.Process(main.pid).children(recursive=True)
            main.kill()
            story.printed = main.stdout.read() + main.stderr.read()
        story.orphans = [f"{process}" for process in under_it if not _ends(process)]
        assert len(under_it) >= 3  # img2dataset, its forkserver, a worker
        story.hits.append(server.hits.copy())

        run(story.done[2])
        story.hits.append(server.hits.copy())
        yield story


def _ends(process: psutil.Process) -> bool:
    until = time.monotonic() + 5
    while time.monotonic() < until:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_without_a_network_nothing_counts_as_done_and_one_line_says_so(story: Story) -> None:
    """But for the shard whose URLs are refused unasked."""
    said = r"none of (\d+) URLs answered \(connection: \d+, refused: .*\): is the network there\? "
    advice = "They are not counted as done; once it is, the same command goes on"
    assert (match := re.fullmatch(said + advice, story.away)), story.away
    assert int(match[1]) >= sum(map(len, story.rows[:4])) - max(map(len, story.rows))  # three shards are enough to know
    assert story.done[0] == [4]


def test_a_kill_leaves_no_process_and_loses_no_shard(story: Story) -> None:
    assert story.orphans == []
    assert story.printed == ""
    finished = set(story.done[1])
    assert finished == {4, 0, 1}
    assert sorted(story.done[2]) == [0, 1, 2, 3, 4]
    before, after = story.hits
    again = [i for i in range(2, 12) if after[f"/good/{i}.jpg"] != before[f"/good/{i}.jpg"]]
    assert len(again) <= 1  # asked whether the network is there, when the shard of dead links had no answer
    answers = [answer for number in range(5) for answer in read_raw(story.raw, number).values()]
    assert story.asked == len(answers) == sum(map(len, story.rows))  # with those of the runs before
    assert story.alive == sum(answer.outcome == "ok" for answer in answers)
    assert not list(story.raw.glob("work-*"))


def test_every_row_is_there_with_what_became_of_it(story: Story) -> None:
    fetched = [read_raw(story.raw, number) for number in range(5)]
    assert [list(shard) for shard in fetched] == [[key for key, _ in rows] for rows in story.rows]
    assert {key: answer.outcome for key, answer in fetched[0].items()} == {
        "good-1.jpg": "ok",
        "status-404": "http 404",
        "flaky-1": "ok",
        "truncated-1": "truncated",
        "chain-2": "ok",
        "noai": "refused: noai",
        "private-1": "refused: robots",
        "page.jpg": "ok",
        "good-ä ö.jpg": "ok",
        "passwd": "refused: scheme",
        "torn": "refused: url",
        "inside": "refused: address",
    }
    chain = fetched[0]["chain-2"]
    assert (chain.status, chain.data, chain.final_url[-13:]) == (200, picture("/good/end.jpg"), "/good/end.jpg")
    assert time.time() - 300 < chain.fetched_s < time.time()
    assert [fetched[1][f"{i:04d}"].data for i in range(12)] == [picture(f"/good/{i}.jpg") for i in range(12)]
    assert [fetched[2][key].outcome for key in ("drips", "good")] == ["timeout", "ok"]
    assert fetched[3]["dead"].outcome == "connection"  # believed, because others answer
    assert not any(answer.data for shard in fetched for answer in shard.values() if answer.outcome != "ok")


def cut(name: str, keep: float) -> Callable[[Path], object]:
    return lambda shard: os.truncate(shard / name, int((shard / name).stat().st_size * keep))


@pytest.mark.parametrize(
    "damage",
    [
        cut("stats.json", 0),
        cut("shard.tar", 0),
        cut("shard.tar", 0.5),
        cut("shard.parquet", 0.9),
        cut("answers.jsonl", 0.5),
        cut("answers.jsonl", 0),
        cut("rules.json", 0),
        lambda shard: (shard / "stats.json").write_text('{"loss": 0.1}'),
        lambda shard: (shard / "stats.json").write_text("[]"),
        lambda shard: (shard / "stats.json").write_bytes((shard.parent / "00000" / "stats.json").read_bytes()),
        lambda shard: (shard / "shard.tar").write_bytes((shard.parent / "00000" / "shard.tar").read_bytes()),
        lambda shard: (shard / "shard.parquet").unlink(),
        lambda shard: shutil.rmtree(shard),
    ],
)
def test_a_damaged_shard_is_not_done(story: Story, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    shutil.copytree(story.raw, tmp_path, dirs_exist_ok=True)
    shard = tmp_path / "00001"
    verify(shard, story.rows[1], story.policy)
    damage(shard)
    with pytest.raises((ValueError, OSError)):
        verify(shard, story.rows[1], story.policy)


def test_another_list_is_not_taken_for_what_lies_there(story: Story) -> None:
    for other in (story.rows[1][:-1], story.rows[1][::-1], [("x", url) for _, url in story.rows[1]], story.rows[2]):
        with pytest.raises(ValueError, match="other rows"):
            verify(story.raw / "00001", other, story.policy)


def test_other_rules_ask_again_and_other_speeds_do_not(story: Story) -> None:
    """A list that was refused for want of an --allow is not done when the allowance is given."""
    for other in (replace(story.policy, allow=()), replace(story.policy, robots=False)):
        with pytest.raises(ValueError, match="other rules"):
            verify(story.raw / "00001", story.rows[1], other)
    verify(story.raw / "00001", story.rows[1], replace(story.policy, per_host=1, deadline_s=9.0, contact="x"))


def test_what_was_finished_when_the_run_was_killed_is_taken_over(story: Story, tmp_path: Path) -> None:
    """Unless it cannot be told whether its links are dead: then it is asked for again."""
    for raw, left, taken in ((tmp_path / "both", (1, 3), {"00001", "00003"}), (tmp_path / "dead", (3,), set[str]())):
        for number in left:
            shutil.copytree(story.raw / f"{number:05d}", raw / "work-x" / "verified" / f"{number:05d}")
        list(download([], story.rows.__getitem__, raw, story.policy))
        assert {path.name for path in raw.iterdir()} == taken | {"lock"}


def test_a_network_that_goes_away_in_mid_shard_makes_no_dead_links(tmp_path: Path) -> None:
    """What had answered in that shard says nothing of the rest."""
    port = free_port()
    policy = Policy(allow=(f"127.0.0.1:{port}",), deadline_s=2.0)
    rows = [(f"{i}", f"http://127.0.0.1:{port}/slow/{i}.jpg") for i in range(12)]
    again = partial(download, [0], lambda _: rows, tmp_path, policy, threads=4)
    said = r"\d+ of 12 URLs had no answer \(.*\), nor has one now that answered before: is the network there\? "
    with HostileServer(port) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(list, again())
        while server.hits.total() < 4:
            time.sleep(0.01)
        server.__exit__()
        with pytest.raises(ValueError, match=said + "They are not counted as done"):
            first.result()
    with HostileServer(port):
        assert list(again()) == [0]
    assert {answer.outcome for answer in read_raw(tmp_path, 0).values()} == {"ok"}


def test_bytes_that_rotted_are_named(story: Story, tmp_path: Path) -> None:
    shutil.copytree(story.raw, tmp_path, dirs_exist_ok=True)
    tar = tmp_path / "00001" / "shard.tar"
    data = tar.read_bytes()
    tar.write_bytes(data.replace(picture("/good/3.jpg"), picture("/bad!/3.jpg")))
    with pytest.raises(
        ValueError, match=r"00001 is damaged: the bytes of 0003 are not .*; delete it, and the same command"
    ):
        read_raw(tmp_path, 1)
    discard_raw(tmp_path, 1)
    discard_raw(tmp_path, 1)
    with pytest.raises(ValueError, match="00001 is damaged"):
        read_raw(tmp_path, 1)


def test_a_downloader_that_ends_is_told_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\necho 'OSError: [Errno 28] No space \x1b[2J left on device'\necho later words\nexit 1\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(preprocessing.fetch.download.sys, "executable", str(python))
    said = (
        r"1 of 1 shards could not be downloaded: OSError: .* No space  \[2J left on device; .*/raw/img2dataset.log says"
    )
    with pytest.raises(ValueError, match=said):
        list(download([3], lambda _: [("a", "http://x.example/")], tmp_path / "raw", Policy()))


def test_a_full_disk_is_named_although_the_log_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing.fetch.download.sys, "executable", "/bin/false")
    monkeypatch.setattr(preprocessing.fetch.download.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(ValueError, match=r"could not be downloaded: the disk of .* is full; .* goes on"):
        list(download([3], lambda _: [("a", "http://x.example/")], tmp_path, Policy()))


def test_two_do_not_download_into_one_folder(story: Story, tmp_path: Path) -> None:
    shutil.copytree(story.raw, tmp_path, dirs_exist_ok=True)
    first = download([1, 4], story.rows.__getitem__, tmp_path, story.policy)
    next(first)
    with pytest.raises(ValueError, match="another process downloads into it"):
        next(download([1], story.rows.__getitem__, tmp_path, story.policy))
    assert list(first) == [4]
    assert list(download([1], story.rows.__getitem__, tmp_path, story.policy)) == [1]


def die(shard: tuple[int, str]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_ends_the_run_rather_than_hang_it() -> None:
    with pytest.raises(BrokenProcessPool):
        shielded._distribute(1, die, [(0, "")])  # type: ignore[arg-type]


def test_a_list_that_cannot_be_told_apart_is_refused(tmp_path: Path) -> None:
    rows = [("a", "http://x.example/1"), ("a", "http://x.example/2")]
    with pytest.raises(ValueError, match="shard 0 has a key twice"):
        list(download([0], lambda _: rows, tmp_path, Policy()))


def test_a_shard_without_rows_asks_nothing(tmp_path: Path) -> None:
    assert list(download([3, 5], lambda _: [], tmp_path, Policy())) == [3, 5]
    assert not list(tmp_path.glob("0*")) and not (tmp_path / "img2dataset.log").exists()
