"""Samples are taken out of every set of a name, later ones included, while those who use them wait."""

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dozen import DOZEN, FEW, contents, make, opened, preset, write_json_in
from flows.cli import main
from flows.data import fitted
from flows.datasets import removal
from flows.datasets.making import make_set, open_source
from flows.datasets.removal import between_removals, kept_elsewhere, remove_samples
from flows.datasets.sets import list_sets
from flows.home import Trouble
from flows.starting.preflight import _data
from made import make_pictures
from mdm.data.leases import REMOVAL, live
from mdm.files import write_json
from mdm.structure import to_dict
from mdm.training.train import main as train
from preprocessing.catalogue import Options
from preprocessing.manifest import read_json, read_manifest
from preprocessing.remove import read_keys, removed_keys
from preprocessing.sets import emptied, is_cleared, removals
from small import small_job

pytestmark = pytest.mark.usefixtures("root")


def test_what_was_removed_under_a_former_name_stays_removed(root: Path) -> None:
    write_json(root / "openmoji-people-64.removed.json", {"format": 1, "removed": {"1F600": {}}})
    assert removals(root, "openmoji") == {"1F600": {}}


def verb(tmp_path: Path, *keys: str) -> list[str]:
    (tmp_path / "keys.txt").write_text("\n\n".join(keys) + "\n")
    return ["data", "squares", "--remove", str(tmp_path / "keys.txt")]


def test_the_verb_looks_in_every_split_of_every_set_of_the_name(
    squares_here: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(squares_here, root / "squares-other")
    before = contents(root)
    remove = verb(tmp_path, "train001", "val008")
    assert main([*remove, "--dry-run"]) == 0
    assert "squares/val: 1 samples in 1 shards would be removed, 0 are already" in capsys.readouterr().out
    assert contents(root) == before
    assert main(remove) == 0 and main(remove) == 0
    out = capsys.readouterr().out
    assert "squares-other/train: 1 of 2 keys removed; revision 1" in out and "" not in out.splitlines()
    for folder in (squares_here, other):
        assert removed_keys(folder / "train") == {"train001"} and read_keys(folder / "val" / "00002.tar") == [None]
    listed = removals(root, "squares")
    assert set(listed) == {"train001", "val008"} and listed["val008"] == {"sha256": [], "url": []}
    before = contents(root)
    assert main(verb(tmp_path, "train002", "nobody")) == 1
    assert "has no sample 'nobody' (1 unknown): nothing was removed" in capsys.readouterr().err
    assert main(verb(tmp_path, "train002\r", " train003\u2028x ")) == 1  # a key is a line as it stands
    assert r"has no sample ' train003\u2028x ' (1 unknown): nothing was removed" in capsys.readouterr().err
    assert contents(root) == before


def test_later_sets_of_the_name_are_made_without_what_was_removed(root: Path) -> None:
    keys = {DOZEN.split("train")[1].key, DOZEN.split("val")[0].key}
    first = make(FEW)
    remove_samples("dozen", keys, False, lambda line: None)
    later = make()
    for folder in (first, later):
        assert set().union(*(removed_keys(folder / split) for split in ("train", "val"))) == keys
    shutil.rmtree(first)  # what was removed is remembered without the set that it was removed from
    shutil.rmtree(later)
    assert removed_keys(make() / "train") == keys - {DOZEN.split("val")[0].key}
    (root / "dozen.removed.json").write_text("{")
    with pytest.raises(ValueError, match="what was removed would come back"):
        make(FEW)


def test_a_picture_stays_removed_under_another_key_and_its_old_key_takes_no_other(root: Path, tmp_path: Path) -> None:
    names = [f"p{i}" for i in range(10)]

    def made_of(folder: str, named: list[str], held_out: float = 0.05) -> Path:
        pictures = make_pictures(tmp_path / folder, dict.fromkeys(named, "a picture"))
        source = open_source("mine", Options(held_out=held_out), pictures)
        assert source is not None
        made = make_set(source, lambda *_: None, lambda line: None)
        assert made is not None
        return made

    def gone_from(folder: Path) -> set[str]:
        return set().union(*(removed_keys(folder / split) for split in ("train", "val")))

    first, said = made_of("pictures", names), list[str]()
    remove_samples("mine", {"p0"}, False, said.append)
    later = made_of("numbered_anew", [*names[1:], "p0"])  # p1 is what p0 was
    third = made_of("pictures", names, held_out=0.9)
    assert (gone_from(first), gone_from(later), gone_from(third)) == ({"p0"}, {"p1"}, {"p0"})
    listed = removals(root, "mine")
    assert set(listed) == {"p0"} and all(is_cleared(folder, listed) for folder in (first, later, third))
    remove_samples("mine", {"p5"}, True, said.append)
    assert sum(int(line.split(": ")[1].split()[0]) for line in said if "would be removed" in line) == 6
    remove_samples("mine", {"p5"}, False, said.append)
    # In sets that are there a key is taken at its word; what it names in any of them is p5 or p4 of the first.
    assert gone_from(first) == gone_from(third) == {"p0", "p4", "p5"} and gone_from(later) == {"p1", "p5", "p6"}


def test_a_sets_folder_means_its_name_so_what_is_removed_stays_away_from_later_sets(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, key = make(), FEW.split("train")[1].key
    (tmp_path / "keys.txt").write_text(key)
    assert main(["data", first.name, "--remove", str(tmp_path / "keys.txt")]) == 0
    assert "train: 1 of 1 keys removed" in capsys.readouterr().out
    shutil.rmtree(first)
    assert removed_keys(make(FEW) / "train") == {key} and set(removals(root, "dozen")) == {key}


def test_sha256_of_an_earlier_format_were_of_the_stored_pictures(root: Path) -> None:
    key = DOZEN.split("train")[1].key
    about = {key: {"sha256": ["0" * 64], "url": []}}
    write_json(root / "dozen.removed.json", {"format": 1, "removed": about})
    assert removed_keys(make() / "train") == {key}
    write_json(root / "dozen.removed.json", {"format": 2, "removed": about})
    assert removed_keys(make(FEW) / "train") == set()


def test_a_removal_that_was_cut_off_is_finished_before_a_set_is_used(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, key, held_out = make(), DOZEN.split("train")[1].key, DOZEN.split("val")[0].key
    listed = root / "dozen.removed.json"
    write_json(listed, {"format": 1, "removed": {key: {}}})  # a kill came after this
    assert make() == folder and removed_keys(folder / "train") == {key}

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    for where in ("finish", "take_out", "forget", "mark_cleared"):
        write_json(listed, {"format": 1, "removed": {key: {}, held_out: {}}})
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(removal, where, dies)
            make()
        assert live(folder, "removal") == []
    assert make() == folder and removed_keys(folder / "val") == {held_out}


def test_a_training_stops_for_a_removal_and_goes_on_after_it(squares_here: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "r"
    said: list[str] = []
    left: list[dict[str, Any]] = []
    job = small_job(squares_here, num_levels=1, nimg=4_000, log_every_nimg=400, eval_every_nimg=4_000)
    write_json_in(run / "job.json", to_dict(job))

    def remove() -> None:
        while not list(run.glob("checkpoints/nimg-*")) or not live(squares_here, "use"):
            threading.Event().wait(0.01)
        remove_samples("squares", {"train001"}, False, said.append)
        left.append(json.loads((run / "outcome.json").read_text()))

    remover = threading.Thread(target=remove)
    remover.start()
    assert train([str(run)]) == 1
    remover.join(20)
    (outcome,) = left
    assert outcome["outcome"] == "stopped" and REMOVAL in outcome["reason"] and 0 < outcome["nimg"] < 4_000
    assert said[0].startswith(f"squares: waiting for training {run} (process")
    write_json(run / "job.json", to_dict(small_job(squares_here, num_levels=1, nimg=outcome["nimg"] + 8)))
    assert train([str(run)]) == 0
    assert list((squares_here / "leases").iterdir()) == []


def test_a_flow_starts_its_job_again_after_a_removal(squares_here: Path) -> None:
    begun: list[int] = []
    said: list[str] = []

    def work() -> str:
        begun.append(len(begun))
        if len(begun) == 1:
            manifest = squares_here / "train" / "manifest.json"
            write_json(manifest, {**read_manifest(manifest.parent), "revision": 1})
            raise Trouble("training stopped")
        return "done"

    assert between_removals(squares_here, work, said.append) == "done" and begun == [0, 1]
    with pytest.raises(Trouble, match="another reason"):
        between_removals(squares_here, lambda: (_ for _ in ()).throw(Trouble("another reason")), said.append)


def test_what_still_shows_removed_samples_is_listed(
    squares_here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "r"
    write_json_in(run / "16" / "job.json", to_dict(small_job(squares_here)))
    for part in ("samples", "samples.old-1"):
        (run / part / "samples").mkdir(parents=True)
        (run / part / "samples" / "captions.jsonl").write_text('{"index": 0, "key": "val000", "caption": "x"}\n')
    near = {"index": 0, "key": "val003", "nearest_index": 5}
    write_json_in(run / "evaluation" / "results.json", {"samples": [near]})
    write_json_in(run / "mlflow.json", {"uri": "sqlite:///x", "runs": {"": "a1", "16": "b2", "evaluation": "c3"}})
    for path in ("report/index.html", "16/samples/000000000008.png"):
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (run / path).touch()
    assert main(verb(tmp_path, "train006")) == 0
    assert "still show" not in capsys.readouterr().out
    assert main(verb(tmp_path, "train005")) == 0  # nearest to a sample: its picture is on the page
    out = capsys.readouterr().out
    assert f"{run}: evaluation, report still show them" in out
    assert "run a1 (r )" in out and "run c3 (r evaluation)" in out and "b2" not in out
    assert main(verb(tmp_path, "val000")) == 0
    out = capsys.readouterr().out
    parts = f"{run}: 16, evaluation, report, samples, samples.old-1 still show them"
    assert parts in out and "run b2 (r 16)" in out
    for text, tag in (('{"id": "a1b2"}', "mdm.folder` = 'a1b2'"), ("{", "mdm.run` = 'r'"), ("[]", "mdm.run` = 'r'")):
        (run / "mlflow.json").write_text(text)
        assert main(verb(tmp_path, "val000")) == 0
        out = capsys.readouterr().out
        assert parts in out and f"search its runs for tags.`{tag}, and delete" in out
    (run / "mlflow.json").unlink()
    (run / "mlflow.json").mkdir()
    assert main(verb(tmp_path, "val000")) == 0
    out = capsys.readouterr().out
    assert parts in out and f"{run / 'mlflow.json'} cannot be read (IsADirectoryError" in out


def test_evaluations_and_common_pages_that_show_removed_samples_are_listed(squares_here: Path, tmp_path: Path) -> None:
    runs = [tmp_path / "runs" / "r", tmp_path / "released" / "flickr-1"]
    split = {"data": str(squares_here / "val"), "data_digest": read_manifest(squares_here / "val")["digest"]}
    points = [run / "evaluations" / protocol / "nimg-8" for run in runs for protocol in ("embedded", "coco")]
    for point in points:
        write_json_in(point / "samples" / "generate.json", split)
        (point / "samples.old-1" / "samples").mkdir(parents=True)
        (point / "evaluation").mkdir()
    caption = '{"index": 0, "key": "val000", "caption": "x"}\n'
    (points[0] / "samples.old-1" / "samples" / "captions.jsonl").write_text(caption)
    (points[3] / "evaluation" / "cosines.jsonl").write_text(caption)  # of --fast, which keeps no image
    write_json(points[0].parent / "results.json", [{"point": "nimg-8"}])
    write_json(points[1] / "evaluation" / "results.json", {"displays": {}, "metrics": []})
    write_json(points[2] / "evaluation" / "results.json", {"samples": [{"key": "val003", "nearest_key": "train005"}]})
    write_json(points[0].parent / "mlflow.json", {"id": "a1b2"})
    for named in ("r+s", "s+t"):
        write_json_in(tmp_path / "reports" / named / "index.json", {"runs": [{"run": run} for run in named.split("+")]})
    assert [entry.users for entry in list_sets()] == ["released flickr-1, run r"]
    of_released, of_run, mlflow, page = kept_elsewhere("squares", {"val000"})
    assert of_run.startswith(f"{runs[0]}: evaluations/embedded/nimg-8 still show them: delete these, `mdm run` and")
    assert ", or where r was tracked)" in mlflow and "search its runs for tags.`mdm.folder` = 'a1b2'" in mlflow
    assert of_released.startswith(f"{runs[1]}: evaluations/coco/nimg-8 still show them")
    assert page.startswith(f"{tmp_path / 'reports' / 'r+s'}: the page may still show them: delete it, `mdm report`")
    (points[0].parent / "mlflow.json").write_text("{")  # its runs' names begin with the run's
    _, _, mlflow, _ = kept_elsewhere("squares", {"val000"})
    assert ", or where r was tracked)" in mlflow and "search its runs for tags.`mdm.run` LIKE 'r %'" in mlflow
    (line,) = kept_elsewhere("squares", {"train005"})
    assert line.startswith(f"{runs[1]}: evaluations/embedded/nimg-8 still show them")


def test_an_unfinished_set_that_may_hold_removed_samples_is_named(root: Path) -> None:
    keys = {DOZEN.split("train")[1].key, DOZEN.split("val")[0].key}
    made = make(FEW)
    part = made.rename(made.with_name(f"{made.name}.part"))
    (line,) = kept_elsewhere("dozen", keys)
    assert line == f"{part}: an unfinished set that lists 2 of them: it holds them until it is finished or deleted"
    assert not list(kept_elsewhere("dozen", {"another"})) and not list(kept_elsewhere("doz", keys))
    (part / "lists" / "val.list.parquet").write_bytes(b"torn")
    (line,) = kept_elsewhere("dozen", keys)
    assert line.startswith(f"{part} cannot be read (ArrowInvalid: ")


def test_what_cannot_be_read_may_show_removed_samples_and_ends_no_list(
    squares_here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, later = tmp_path / "runs" / "r", tmp_path / "runs" / "s"
    write_json_in(run / "16" / "job.json", to_dict(small_job(squares_here)))
    shutil.copytree(run, later)
    torn = [run / "samples" / "samples" / "captions.jsonl", run / "a" / "b" / "captions.jsonl"]
    torn += [run / name / "results.json" for name in ("evaluation", "evaluation-again", "evaluation.old-1", "e")]
    for path, text in zip(torn, ('{"key": "va', "[]", "{", "{}", '{"samples": [3]}', '{"samples": [[]]}'), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    near = {"index": 0, "key": "val003", "nearest_index": 5}
    write_json_in(later / "evaluation" / "results.json", {"samples": [near]})
    assert main(verb(tmp_path, "train005")) == 0
    out = capsys.readouterr().out
    assert all(f"{path} cannot be read (" in out for path in torn)
    assert f"{later}: evaluation still show them" in out and "MLflow" not in out


def test_duplicates_are_dropped_where_asked_and_are_no_removals(root: Path) -> None:
    plain = opened()
    twins = [item.key for item in plain.source.items()][:2]
    files = {item.key: item.place.file for item in plain.source.items() if item.place is not None}
    files[twins[1]].write_bytes(files[twins[0]].read_bytes())
    whole = make()
    asked = replace(plain, recipe=replace(plain.recipe, drop_duplicates=True))
    fewer = make_set(asked, lambda *_: None, lambda line: None)
    assert fewer is not None and fewer != whole
    gone = set().union(*(removed_keys(fewer / split) for split in ("train", "val")))
    assert len(gone) == 1 and gone < set(twins) and read_json(fewer / "dropped.json") == {"keys": sorted(gone)}
    assert removals(root, "dozen") == {} and removed_keys(whole / "train") == set()


def test_a_set_that_a_removal_emptied_is_refused_and_the_removed_are_not_counted(squares_here: Path) -> None:
    wanted = preset("squares")
    keys = [key for key in read_keys(squares_here / "val" / "00000.tar") if key]
    remove_samples("squares", set(keys[:1]), False, print)
    assert fitted(wanted, squares_here, print).evaluation.num_samples == 8 and not emptied(squares_here)
    every = {key for tar in squares_here.glob("val/*.tar") for key in read_keys(tar) if key}
    remove_samples("squares", every, False, print)
    with pytest.raises(ValueError, match="val has no sample that was not removed: list others for `mdm data squares`"):
        fitted(wanted, squares_here, print)
    assert any("val has no sample that was not removed" in line for line in _data(wanted))
