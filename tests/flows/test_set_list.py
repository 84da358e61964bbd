"""Sets are listed with who uses them, and deleted where nobody does."""

import re
import shutil
from pathlib import Path

import pytest

from dozen import contents, write_json_in
from flows.cli import main
from flows.datasets.sets import list_sets
from mdm.data.leases import Lease
from mdm.files import write_json
from mdm.structure import to_dict
from preprocessing.sets import is_finished
from small import small_job

pytestmark = pytest.mark.usefixtures("root")


def test_sets_are_listed_with_their_users_and_unused_ones_pruned(
    squares_here: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_hand = shutil.copytree(squares_here, root / "squares-by-hand")
    for split in ("train", "val"):
        write_json_in(root / "damaged" / split / "manifest.json", {"name": "squares"})
    (root / "downloads").mkdir()
    write_json(squares_here / "recipe.json", {"name": "squares"})
    held, of_run = (shutil.copytree(squares_here, root / f"squares-{name}") for name in ("held", "of-run"))
    shutil.copytree(squares_here, root / "squares-half.part")
    write_json_in(tmp_path / "runs" / "r" / "16.old-1" / "job.json", to_dict(small_job(of_run)))
    for foreign in ("[]", "{", '{"data": 3}'):
        (tmp_path / "runs" / "r" / "config.json").write_text(foreign)
        with Lease(held, "training x"):
            assert main(["data"]) == 0
    out = re.sub(r"\n {4,}", " ", capsys.readouterr().out)  # lines that were wrapped
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "9 + 9" in lines["squares"] and lines["squares"].endswith("revision 0  unused")
    assert lines[by_hand.name].endswith("unused, put here by hand")
    assert lines["damaged"].split()[1] == "damaged" and lines["downloads"].split()[1] == "unfinished"
    assert "training x (process" in lines[held.name] and lines[of_run.name].endswith("run r")
    before = contents(root)
    with Lease(held, "training x"):
        assert main(["data", "--prune"]) == 0 and "`mdm data squares --prune` deletes it" in capsys.readouterr().out
        assert is_finished(squares_here)  # what took a source is not deleted unnamed
        assert main(["data", "squares", "--prune", "--dry-run"]) == 0
        assert (
            "2 unused sets would be deleted, 224." in capsys.readouterr().out and contents(root).keys() > before.keys()
        )
        assert main(["data", "squares", "--prune"]) == 0
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == [
        "damaged",
        "downloads",
        by_hand.name,
        held.name,
        of_run.name,
    ]
    assert all(map(is_finished, (held, of_run, by_hand)))
    assert main(["data", "--set", "seed=1"]) == 1


def test_a_link_to_another_disk_stays_and_nothing_ends_a_prune(
    squares_here: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(squares_here / "recipe.json", {"name": "squares"})
    disk = shutil.copytree(squares_here, tmp_path / "disk")
    shutil.copytree(squares_here, root / "squares-2")
    for name in ("half.part", "left.deleted", "linked"):
        (root / name).symlink_to(disk)
    remove = shutil.rmtree

    def refuses(folder: Path, ignore_errors: bool = False) -> None:
        if folder.name == "squares.deleted":
            raise OSError(16, "Device or resource busy", str(folder))
        remove(folder, ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", refuses)
    for settings in (["--dry-run"], []):
        assert main(["data", "squares", "--prune", *settings]) == 0
        out = capsys.readouterr().out
        for name in ("half.part", "left.deleted", "linked"):
            assert f"{name} stays: it is a link to {disk}; where unused, remove both by hand" in out
            assert (root / name).is_symlink() and is_finished(disk)
    assert "squares stays: [Errno 16] Device or resource busy" in out and "1 unused set deleted, 112." in out
    assert not (root / "squares-2").exists()


def test_a_lease_renewed_meanwhile_ends_no_list(squares_here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = squares_here / "leases" / "owner.json.tmp"
    listed = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: [*listed(self, pattern), gone])
    (entry,) = list_sets()
    assert entry.size_bytes == sum(len(content) for _, content in contents(squares_here).values())


def test_another_users_set_that_may_not_be_read_ends_nothing(
    squares_here: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, read = shutil.copytree(squares_here, root / "private-1"), Path.read_text

    def denied(path: Path, *arguments: str, **settings: str) -> str:
        if path.is_relative_to(theirs):  # by hand: root may read everything
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **settings)

    monkeypatch.setattr(Path, "read_text", denied)
    assert main(["data"]) == 0 and re.search(r"private-1 +unreadable .* another user's", capsys.readouterr().out)
    assert main(["data", "squares", "--verify"]) == 0 and main(["data", "squarez"]) == 1
    assert "did you mean squares?" in capsys.readouterr().err
    assert main(["data", "private-1", "--verify"]) == 1
    assert re.search(r"^mdm: .*Permission denied: '.*private-1.*json'\n", capsys.readouterr().err)
