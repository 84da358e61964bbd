"""Cards that follow their sets, in terminals, Prefect and MLflow; and who was trained on what was removed."""

import html
import re
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from drawn import Inline
from flows.cli import main
from flows.datasets import cards
from flows.datasets.cards import keep_card
from flows.datasets.removal import remove_samples
from flows.datasets.sets import WIDTH, overview
from flows.datasets.takedown import trained_on_removed
from flows.records import artifacts
from made import make_own_set, make_pictures
from mdm.files import write_json
from mdm.run.checkpoint import list_folders
from mdm.structure import to_dict
from mdm.training.train import main as train
from preprocessing.cards.card import card_facts
from preprocessing.catalogue import find
from preprocessing.manifest import read_json, read_manifest
from preprocessing.pack import making
from preprocessing.remove import removed_since
from preprocessing.sets import CARD, PAGE
from small import small_job, write_dataset

ABOUT = find("mine").about


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MDM_HOME", str(tmp_path))
    (tmp_path / "datasets").mkdir()
    return tmp_path / "datasets"


@pytest.fixture
def mine(root: Path) -> Path:
    captions = {f"p{i}": f"picture {i} of [a](http://x) <b>" for i in range(12)}
    return make_own_set(root, make_pictures(root.parent / "pictures", captions))


def test_no_set_fails_for_its_card_and_the_next_command_makes_it(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def full(*_: Any) -> None:
        raise ValueError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(cards, "write_page", full)
        keep_card(mine, ABOUT, said.append)
    assert re.fullmatch(r".*its data card could not be made \(ValueError: no space left\); the set .* whole", said[0])
    keep_card(mine, ABOUT, said.append)
    written = (mine / PAGE).stat().st_mtime_ns
    keep_card(mine, ABOUT, said.append)
    assert (mine / PAGE).stat().st_mtime_ns == written and len(said) == 1  # nothing changed: it stays as it is


def test_a_name_alone_shows_its_newest_set(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "mine"]) == 0
    out = capsys.readouterr().out
    assert "4 to train on, 8 held out: 100.0% of 12 listed" in out and str(mine / PAGE) in out
    assert "<img" in (mine / PAGE).read_text()
    assert main(["data", "mine", "--no-sheet"]) == 0 and "<img" not in (mine / PAGE).read_text()
    assert main(["data", "mine"]) == 0 and "<img" not in (mine / PAGE).read_text()  # as it was asked for
    assert main(["data", "others"]) != 0
    assert "others needs a source" in capsys.readouterr().err


def test_a_removal_takes_samples_off_the_page(mine: Path, tmp_path: Path) -> None:
    keep_card(mine, ABOUT, print)
    shown = re.findall(r'alt="picture (\d+) ', (mine / PAGE).read_text())
    (tmp_path / "keys.txt").write_text(f"p{shown[0]}\n")
    assert main(["data", "mine", "--remove", str(tmp_path / "keys.txt")]) == 0
    assert re.findall(r'alt="picture (\d+) ', (mine / PAGE).read_text()) == shown[1:]
    assert (read_json(mine / CARD) or {})["outcomes"]["removed since"]["items"] == 1


def test_prefect_shows_it_without_anyones_markdown(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(artifacts, "create_table_artifact", lambda rows, **more: shown.append((rows, more["key"])))
    monkeypatch.setattr(artifacts, "create_link_artifact", lambda link, **more: shown.append((link, more["key"])))
    artifacts.show_card(mine)
    assert shown == []  # it has none
    keep_card(mine, {**ABOUT, "credit": "[a](http://x) <b>"}, print)
    artifacts.show_card(mine)
    (rows, key), (link, _) = shown
    assert key == "data-mine" and link == (mine / PAGE).as_uri()
    facts = {row["what"]: row["it is"] for row in rows}
    assert "4 to train on" in facts["Samples"] and not set("<>[]") & set(facts["Credit"])


def test_it_says_when_from_what_and_by_what_a_set_was_made(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "ProcessPoolExecutor", Inline)
    pictures = make_pictures(root.parent / "pictures", {f"p{i}": "a picture" for i in range(12)})
    assert main(["data", "mine", "--source", str(pictures)]) == 0
    (folder,) = root.glob("mine-*[0-9a-f]")
    facts = card_facts(read_json(folder / CARD) or {})
    assert re.fullmatch(rf"{datetime.now(UTC):%Y-%m-%d} \d\d:\d\d UTC", facts["Made"])
    assert facts["Made from"] == f"folder of pictures, {pictures}" and facts["Tiers"] == "squares of 256 px (jpg)"
    assert facts["Resized by"] == "Pillow's bicubic filter, antialiased"
    assert f"Pillow {version('Pillow')}, webdataset " in facts["Made with"] and "img2dataset" not in facts["Made with"]
    assert all(
        html.escape(text, quote=False).replace("'", "&#39;") in (folder / PAGE).read_text() for text in facts.values()
    )


def train_on(data: Path, run: Path, nimg: int) -> list[str]:
    job = small_job(data, num_levels=1, nimg=nimg, eval_every_nimg=4_000, checkpoint_every_nimg=16, keep_checkpoints=9)
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / "job.json", to_dict(job))
    assert train([str(run)]) == 0
    return [folder.name for folder in list_folders(run / "checkpoints")]


def test_checkpoints_of_removed_samples_are_named_and_no_others(root: Path) -> None:
    for split in ("train", "val"):
        write_dataset(root / "squares", split, 9, 8, per_shard=4)
    runs = root.parent / "runs"
    before = train_on(root / "squares", runs / "a" / "8", 32)
    assert list(trained_on_removed("squares")) == []
    remove_samples("squares", {"train001", "train002", "val000"}, False, print)
    after = train_on(root / "squares", runs / "a" / "8", 48)  # it goes on: what it has learned is still in it
    assert before and after[-1] not in before
    train_on(root / "squares", runs / "b" / "8", 16)
    # c's second stage was trained after the removal, but grown from a stage of before it
    (runs / "c").mkdir()
    (runs / "a" / "8").rename(runs / "c" / "8")
    (runs / "b" / "8").rename(runs / "c" / "16")
    lines = list(trained_on_removed("squares"))
    assert lines == [
        f"runs/c/8/checkpoints/{name}: trained on 2 samples that were removed since" for name in after if int(name[5:])
    ]
    write_json(runs / "c" / "config.json", {"stages": {"8": {"start": None}, "16": {"start": {"stage": "8"}}}})
    assert len(list(trained_on_removed("squares"))) > len(lines)
    remove_samples("squares", {"train003"}, False, print)
    train_split = root / "squares" / "train"
    assert [removed_since(train_split, revision) for revision in (0, 1, 2)] == [3, 1, 0]
    assert read_manifest(train_split)["revision"] == 2


def test_the_overview_fits_a_terminal(mine: Path, root: Path) -> None:
    keep_card(mine, {**ABOUT, "summary": "photographs \x1b[31m"}, print)
    unfinished = root / "webvid-0123456789ab.part"
    write_json_in(unfinished / "lists" / "plan.json", {"items": {"train": 900, "val": 100}, "per_shard": 250})
    write_json_in(unfinished / "recipe.json", {"name": "webvid"})
    write_json_in(unfinished / "train" / "00000.done.json", {})
    write_json_in(root / "half.part" / "other.json", {})
    for number in range(9):
        run = root.parent / "runs" / f"photographs-of-a-long-name-{number}"
        write_json_in(run / "16" / "job.json", {"train_data": str(mine / "train"), "train_digest": ""})
    lines = list(overview())
    assert max(map(len, lines)) <= WIDTH
    text = "\n".join(lines)
    assert "photographs \ufffd[31m" in text and f"{mine.name} " in text and "photographs-of-a-long-name-8" in text
    assert re.search(r"webvid-0123456789ab\.part +unfinished +20% ", text)
    assert len([line for line in lines if line.startswith("webvid:")]) == 1


def write_json_in(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)
