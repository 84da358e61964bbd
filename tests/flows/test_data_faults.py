"""What people and machines get wrong around `mdm data`: one line that says what to do, and nothing lost."""

import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from drawn import Inline
from flows.cli import main
from flows.datasets.parts import hold_in_turn
from flows.home import Trouble
from hostile_list import encoded, photograph
from preprocessing.catalogue import CATALOGUE
from preprocessing.fetch.download import Fetched
from preprocessing.items import Item
from preprocessing.manifest import unwritable


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("preprocessing.pack.making.ProcessPoolExecutor", Inline)  # starting processes takes seconds
    monkeypatch.setenv("MDM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"p{number:03d}.png").write_bytes(encoded(photograph(number), "PNG"))
    return folder


def run(*words: object) -> int:
    return main(["data", *map(str, words)])


def told(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that a command ends with."""
    capsys.readouterr()
    assert run(*words) == 1
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").split("\n") if line.startswith("mdm: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mine", "--source", "none"], "none: there is no such file or folder"),
        (["mine"], "mine needs a source: --source PATH, or "),
        (["mine", "--source", "empty"], "empty: no pictures: looked for *.png"),
        (
            ["cc12m", "--source", "empty"],
            "empty: one list (cc12m.tsv) or webdataset tars are wanted, there are 0 lists",
        ),
        (["videos", "--source", "empty"], "empty has no table of captions: put one there (CSV, TSV"),
        (["imagenet", "--source", "empty"], "empty: no pictures: looked for folders of synsets"),
        (["coco2014-val", "--source", "empty"], "empty: no val2014.zip"),
        (["mine", "--source", "eight"], "eight has 8 pictures with captions: 8 are held out, so at least 9 are needed"),
        (["mine", "--source", "table"], "table/t.csv, line 3 names 'x.png', which is no file in "),
        (["cc12m", "--source", "few.tsv"], "add at least 8 more; not usable: no tab: line 2"),
        (["cc12m", "--source", "few.tsv", "--allow", "there"], "allow: 'there' is not HOST:PORT"),
        (["cc12m", "--source", "commas.tsv"], "none of 1 listed items can be used: no tab: line 1"),
        (["mine", "--source", "eight.zip"], "eight.zip is no folder of pictures, no table (*.csv, "),
        (["mine", "--source", "eight/*.png"], "eight/*.png is no folder of pictures, no table (*.csv, "),
        (["mine", "--source", "ten", "--held-out", "0.999", "--dry-run"], "ten: all 10 listed items are held out"),
        (["../mine", "--source", "eight"], "'../mine' cannot name a data set"),
        (["mine.part", "--source", "eight"], "'mine.part' cannot name a data set"),
        (["mine.locks", "--source", "eight"], "'mine.locks' cannot name a data set"),
        (["mine", "--remove", "few.tsv"], "there is no finished data set mine"),
        (["opnmoji"], "or webdataset tars; did you mean openmoji?"),
        (["CC12M"], "or webdataset tars; did you mean cc12m?"),
        (["tinny"], "or webdataset tars; did you mean tiny?"),
        (["imagenett", "--prune"], "datasets; did you mean imagenet?"),
        (["coco2014-vall", "--verify"], "datasets; did you mean coco2014-val?"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    pictures(tmp_path / "eight", 8)
    pictures(tmp_path / "ten", 10)
    (tmp_path / "eight.zip").touch()
    (tmp_path / "commas.tsv").write_text("http://example.org/1.jpg,one\n")
    pictures(tmp_path / "table", 2)
    (tmp_path / "table" / "t.csv").write_text("file,caption\np000.png,a\nx.png,b\n")
    (tmp_path / "few.tsv").write_text("http://example.org/1.jpg\tone\nhttp://example.org/2.jpg\n")
    assert said in told(capsys, *words)
    assert not list((tmp_path / "home").glob("datasets/*-????????????"))


@pytest.mark.parametrize("option", [["--limit", "0"], ["--limit", "-3"], ["--part", "0/2"], ["--part", "3/2"]])
def test_numbers_that_mean_nothing_are_refused(option: list[str]) -> None:
    with pytest.raises(SystemExit):
        run("mine", *option)


@pytest.mark.parametrize("share", ["0", "-0.5", "1", "2", "nan", "inf", "5%"])
def test_a_share_that_would_leave_nothing_to_train_on_is_refused(
    share: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run("mine", f"--held-out={share}")
    assert f"'{share}' is no share between 0 and 1" in capsys.readouterr().err.replace("%%", "%")


def test_of_two_errands_none_is_chosen_unsaid(capsys: pytest.CaptureFixture[str]) -> None:
    for other in (["--verify"], ["--remove", "keys.txt"]):
        with pytest.raises(SystemExit):
            run("mine", "--prune", *other)
        assert "not allowed with argument" in capsys.readouterr().err


def test_a_home_that_cannot_be_written_is_said_before_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MDM_HOME", str(tmp_path / "file" / "home"))
    assert run("mine", "--source", pictures(tmp_path / "mine", 9)) == 1
    shown = capsys.readouterr()
    assert "cannot be written" in shown.err and "set MDM_HOME" in shown.err and "plan:" not in shown.out


def test_names_of_files_cannot_command_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = pictures(tmp_path / "mine", 60)
    (mine / "x.\x1b[2Jpart").touch()  # what is said of other files, in the plan
    assert run("mine", "--source", mine, "--dry-run") == 0
    assert "passed over: 1 .\ufffd[2jpart" in capsys.readouterr().out
    (mine / "\x1b[2Jx.png").symlink_to("gone")
    line = told(capsys, "mine", "--source", mine)
    assert line == f"mdm: {mine}/\ufffd[2Jx.png is no file, but a pipe, or a link to one that is gone: take it away"


def test_a_batch_systems_sigterm_ends_as_ctrl_c_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unheard(*_: object) -> None:
        raise AssertionError("nobody took the signal over")

    before = signal.signal(signal.SIGTERM, unheard)
    monkeypatch.setattr("preprocessing.pack.making.pack_shard", lambda *_: signal.raise_signal(signal.SIGTERM))
    try:
        assert run("mine", "--source", pictures(tmp_path / "mine", 60)) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err.endswith("mdm: interrupted; the same command goes on from here\n")


def test_a_lock_of_another_user_is_one_line_and_nobody_waits_for_it(tmp_path: Path) -> None:
    (tmp_path / "x.lock").mkdir()  # what root cannot write either
    said = r"x\.lock cannot be written .*: dataset x may be another user's; ask them"
    with pytest.raises(Trouble, match=said), hold_in_turn(tmp_path / "x", print):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_on_a_full_disk_nothing_half_stays_and_the_same_command_goes_on(
    tmp_path: Path, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mine = ["mine", "--source", pictures(tmp_path / "mine", 20)]
    assert run(*mine, "--part", "2/2") == 0  # lists it, and has no shard of its own
    (target,) = (home / "datasets").glob("*.part")
    (target / "train").mkdir(exist_ok=True)
    (target / "train" / "00000.tar.tmp").symlink_to("/dev/full")
    capfd.readouterr()
    assert run(*mine) == 1
    shown = capfd.readouterr().err
    assert "00000.tar cannot be written: No space left on device. Free some space" in shown
    assert "Traceback" not in shown and "Exception" not in shown
    assert not list(target.rglob("*.tmp")) and len(list((target / "val").glob("*.done.json"))) == 1
    assert run(*mine) == 0 and run("mine", "--verify", "--decode") == 0


def dead(answers: Callable[[str], bool], outcome: str = "http 404", status: int = 404) -> Callable[..., object]:
    """Stands for the downloader: every answer is a picture or a refusal, by its key."""

    def fetch(raw: Path, number: int) -> dict[str, Fetched]:
        return {
            key: Fetched("ok", "", url, 200, 0.0, encoded(photograph(int(key))))
            if answers(key)
            else Fetched(outcome, "", url, status, 0.0, b"")
            for key, url in asked[number]
        }

    return fetch


asked: dict[int, list[tuple[str, str]]] = {}


def test_held_out_links_that_are_all_dead_are_said_first_and_the_advice_works(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[int] = []

    def download(numbers: list[int], rows: Callable[[int], list[tuple[str, str]]], *_: object) -> object:
        for number in numbers:
            order.append(number)
            asked[number] = rows(number)
            yield number

    (tmp_path / "list.tsv").write_text("".join(f"http://example.org/{i}.jpg\tcaption {i}\n" for i in range(40)))
    words = ["cc12m", "--source", tmp_path / "list.tsv"]
    monkeypatch.setattr("preprocessing.pack.making.download", download)
    monkeypatch.setattr("preprocessing.pack.making.read_raw", dead(lambda key: False))
    for _ in range(2):  # again, it is said before anything is asked
        said = told(capsys, *words)
        assert "val: none of 8 listed items became a sample (http 404: 8)" in said and order == [1_000_000]
    (target,) = (home / "datasets").glob("*.part")
    assert f"delete {target / 'val'} and run the same command" in said
    shutil.rmtree(target / "val")
    monkeypatch.setattr("preprocessing.pack.making.read_raw", dead(lambda key: True))
    assert run(*words) == 0 and order == [1_000_000, 1_000_000, 0]
    assert run("cc12m", "--verify", "--decode") == 0


def test_a_list_of_private_addresses_is_told_to_allow_them_and_the_advice_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(numbers: list[int], rows: Callable[[int], list[tuple[str, str]]], *_: object) -> Iterator[int]:
        asked.update({number: rows(number) for number in numbers})
        yield from numbers

    (tmp_path / "list.tsv").write_text("".join(f"http://intern/{i}.jpg\tcaption {i}\n" for i in range(18)))
    words = ["cc12m", "--source", tmp_path / "list.tsv"]
    monkeypatch.setattr("preprocessing.pack.making.download", fetch)
    monkeypatch.setattr("preprocessing.pack.making.read_raw", dead(lambda key: False, "refused: address", 0))
    assert "none of 8 listed URLs has a public address: the same command with --allow" in told(capsys, *words)
    monkeypatch.setattr("preprocessing.pack.making.read_raw", dead(lambda key: True))
    assert run(*words, "--allow", "intern:80") == 0


def test_a_shard_of_unusable_lines_is_packed_without_a_download(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(numbers: list[int], rows: Callable[[int], list[tuple[str, str]]], *_: object) -> Iterator[int]:
        asked.update({number: listed for number in numbers if (listed := rows(number))})
        yield from numbers

    asked.clear()
    monkeypatch.setitem(CATALOGUE, "cc12m", replace(CATALOGUE["cc12m"], per_shard=10))
    lines = [f"http://example.org/{i}.jpg\tcaption {i}\n" for i in range(18)]
    (tmp_path / "list.tsv").write_text("".join([*lines, "http://example.org/18.jpg\n"]))
    monkeypatch.setattr("preprocessing.pack.making.download", fetch)
    monkeypatch.setattr("preprocessing.pack.making.read_raw", dead(lambda key: True))
    assert run("cc12m", "--source", tmp_path / "list.tsv") == 0 and sorted(asked) == [0, 1_000_000]
    shown = capsys.readouterr().out
    assert "10 to train on, 8 held out" in shown and "1 no tab" in shown and run("cc12m", "--verify") == 0


class Unusable:
    """A source whose held-out items all have a problem."""

    def root(self) -> Path:
        return Path()

    def fingerprint(self) -> dict[str, object]:
        return {"kind": "unusable"}

    def items(self) -> Iterator[Item]:
        yield Item("0", "a caption", url="http://example.org/0.jpg")
        yield from (Item(str(i), "", "val", url=f"http://example.org/{i}.jpg", problem="caption empty") for i in "1234")

    def notes(self) -> list[str]:
        return []


def test_held_out_lines_that_are_all_unusable_are_said(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = replace(CATALOGUE["cc12m"], open=lambda path, options: Unusable(), least_val=0)
    monkeypatch.setitem(CATALOGUE, "cc12m", row)
    said = told(capsys, "cc12m", "--source", tmp_path)
    assert "none of 4 listed items became a sample (caption empty: 4)" in said


def test_parts_download_into_folders_of_their_own(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that starts takes over what an interrupted one left: not what another part has under way."""
    raws: list[Path] = []

    def download(numbers: list[int], rows: object, raw: Path, *_: object) -> Iterator[int]:
        raws.append(raw)
        raise ValueError("no network")
        yield

    monkeypatch.setattr("preprocessing.pack.making.download", download)
    (tmp_path / "list.tsv").write_text("".join(f"http://example.org/{i}.jpg\tcaption {i}\n" for i in range(2500)))
    for part in ("1/2", "2/2", "1/1"):
        assert "no network" in told(capsys, "cc12m", "--source", tmp_path / "list.tsv", "--part", part)
    assert [raw.name for raw in raws] == ["1-of-2", "2-of-2", "1-of-1"] and len({raw.parent for raw in raws}) == 1
    assert run() == 0 and ".locks" not in capsys.readouterr().out  # the list of sets


def test_what_cannot_be_written_for_another_reason_than_space_is_not_told_to_free_some() -> None:
    full, denied = (str(unwritable(Path("x"), OSError(n, os.strerror(n)))) for n in (errno.ENOSPC, errno.EACCES))
    assert "Free some space or use another folder" in full
    assert "Free" not in denied and "Let this user write there, or use another folder" in denied
