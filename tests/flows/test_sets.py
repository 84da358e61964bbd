"""Data sets are made once for each recipe, never changed but by a removal, and known by their names."""

import json
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dozen import DOZEN, FEW, contents, make, opened, preset, write_json_in
from flows.data import fitted, pinned_set, wanted_set
from flows.datasets.making import Opened, list_set, make_set, newest_made, open_source
from flows.datasets.sets import list_sets, set_of_samples, sets_of_run
from flows.starting.preflight import _data
from made import make_pictures
from mdm.files import write_json
from mdm.structure import to_dict
from mdm.training.train import main as train
from preprocessing.catalogue import Options, find
from preprocessing.fetch.download import Policy
from preprocessing.manifest import read_json, read_manifest, samples_left
from preprocessing.pack import making
from preprocessing.pack.shards import Shard
from preprocessing.remove import read_keys
from preprocessing.sets import is_finished, newest_set
from small import small_job

pytestmark = pytest.mark.usefixtures("root")


def test_every_recipe_has_its_folder_and_none_replaces_another(root: Path) -> None:
    large = make()
    before = contents(large)
    small = make(FEW)
    assert large != small and {large.name[:6], small.name[:6]} == {"dozen-"} and len(large.name) == 6 + 12
    assert contents(large) == before and make() == large and contents(large) == before
    assert [read_manifest(f / "train")["samples"] for f in (large, small)] == [
        len(source.split("train")) for source in (DOZEN, FEW)
    ]
    assert newest_set(root, "dozen") == small
    assert read_json(small / "recipe.json")["options"] == {"limit": 9, "held_out": 0.0}  # type: ignore[index]


def test_a_set_that_an_earlier_version_made_is_taken_as_it_lies(root: Path) -> None:
    old = make().rename(root / "openmoji-people-64")
    for name in ("recipe.json", "card.json"):
        (old / name).unlink()
    shutil.rmtree(old / "lists")
    for split, inputs in zip(("train", "val"), DOZEN.first_inputs("openmoji-people-64", 64, 250), strict=True):
        manifest = read_manifest(old / split)
        write_json(old / split / "manifest.json", {**manifest, "name": "openmoji-people-64", "inputs": inputs})
    before = contents(old)
    row, said = find("openmoji"), list[str]()
    same = Opened(row, DOZEN, row.recipe(DOZEN, Options()), Options())
    assert same.made() == old == make_set(same, lambda *_: None, said.append) and contents(old) == before
    other = Opened(row, FEW, row.recipe(FEW, Options()), Options())
    assert other.made() is None and newest_set(root, "openmoji") == old
    (old / "train" / "00000.tar").unlink()
    with pytest.raises(ValueError, match="lacks shards, and the lists that they could be made from"):
        make_set(same, lambda *_: None, said.append)


def test_an_unfinished_set_is_none_and_is_gone_on_with(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(shard: Shard, *rest: Any) -> None:
        if shard.split == "val":
            raise KeyboardInterrupt
        pack(shard, *rest)

    pack = making.pack_shard
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(making, "pack_shard", dies)
        make()
    (part,) = root.glob("*.part")
    with pytest.raises(ValueError, match="no such finished data set dozen"):
        newest_set(root, "dozen")
    assert [entry.samples for entry in list_sets()] == ["unfinished"]
    before = {name: file for name, file in contents(part).items() if name != "recipe.json"}
    folder = make()
    assert not part.exists() and before.items() <= contents(folder).items()


def test_an_unfinished_set_goes_on_after_its_source_and_its_home_were_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other pictures lie where the first command, run in another folder, named its own."""
    captions = {f"p{i}": f"picture {i}" for i in range(10)}
    make_pictures(tmp_path / "a" / "pics", captions)
    make_pictures(tmp_path / "b" / "pics", dict(reversed(captions.items())))

    def set_of(home: str, folder: str) -> Opened:
        monkeypatch.setenv("MDM_HOME", str(tmp_path / home))
        monkeypatch.chdir(tmp_path / folder)
        found = open_source("mine", path=Path("pics"))
        assert found is not None
        return found

    def finished(source: Opened) -> list[str]:
        made = make_set(source, lambda *_: None, lambda line: None)
        assert made is not None
        return [read_manifest(made / split)["digest"] for split in ("train", "val")]

    whole = finished(set_of("whole", "a"))
    listed = set_of("home", "a")
    list_set(listed, lambda line: None)
    monkeypatch.chdir(tmp_path / "b")
    shutil.copytree(tmp_path / "home", tmp_path / "again")
    with monkeypatch.context() as patch:
        patch.setenv("MDM_HOME", str(tmp_path / "again"))
        assert finished(listed) == whole  # of one that stays open
    (tmp_path / "home").rename(tmp_path / "moved")
    (tmp_path / "a").rename(tmp_path / "c")
    assert finished(set_of("moved", "c")) == whole


def test_of_two_makers_one_makes_and_the_other_takes_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[str] = []
    said: list[str] = []
    found: list[Path] = []
    pack = making.pack_shard
    inside = threading.Barrier(2)

    def slow(shard: Shard, *rest: Any) -> None:
        if not packed:
            inside.wait(20)
            while not said:
                threading.Event().wait(0.01)
        packed.append(shard.split)
        pack(shard, *rest)

    monkeypatch.setattr(making, "pack_shard", slow)
    first = threading.Thread(target=lambda: found.append(make()))
    first.start()
    inside.wait(20)
    folder = make(say=said.append)
    first.join()
    assert found == [folder] and sorted(packed) == ["train", "val"]  # a shard of each split, once
    assert f"{folder.name} is in use by process" in said[0]


def test_a_name_means_the_newest_finished_set_and_a_run_keeps_to_its_own(
    squares_here: Path, root: Path, tmp_path: Path
) -> None:
    assert newest_set(root, "squares") == squares_here
    newer = shutil.copytree(squares_here, root / "squares-2027")
    stranger = shutil.copytree(squares_here, root / "squares-of-others")
    manifest = read_manifest(stranger / "train")
    write_json(stranger / "train" / "manifest.json", {**manifest, "name": "squares-of"})
    (newer / "val" / "manifest.json").touch()
    assert newest_set(root, "squares") == newer == wanted_set(preset("squares"))
    assert newest_set(root, "squares-of-others") == stranger == newest_set(root, "squares-of")
    run = tmp_path / "runs" / "r"
    said: list[str] = []
    assert pinned_set(run, "squares", said.append) is None
    write_json_in(run / "16" / "job.json", to_dict(small_job(squares_here)))
    assert pinned_set(run, "squares", said.append) == squares_here
    assert said == ["r goes on with squares, which it began with; squares-2027 is newer"]


def test_a_run_in_a_moved_home_keeps_to_its_set_and_takes_no_other(
    squares_here: Path, root: Path, tmp_path: Path
) -> None:
    newer = shutil.copytree(squares_here, root / "squares-2027")
    for split in ("train", "val"):
        manifest = read_manifest(newer / split)
        write_json(newer / split / "manifest.json", {**manifest, "digest": "e" * 64})
    run, digest = tmp_path / "runs" / "r", read_manifest(squares_here / "train")["digest"]
    job = {"train_data": "/another/home/datasets/squares/train", "train_digest": digest}
    path = write_json_in(run / "16" / "job.json", job)
    said: list[str] = []
    assert pinned_set(run, "squares", said.append) == squares_here
    assert said == ["r goes on with squares, which it began with; squares-2027 is newer"]
    assert sets_of_run(run) == {"squares"}
    renamed = squares_here.rename(root / "squares-2026")
    shutil.copytree(newer, squares_here)  # of its name, but other data
    assert pinned_set(run, "squares", said.append) == renamed and sets_of_run(run) == {"squares-2026"}
    write_json(path, {**job, "train_digest": ""})  # of a version that pinned none
    assert pinned_set(run, "squares", said.append) == squares_here
    assert pinned_set(run, "others", said.append) is None
    write_json(path, job)
    shutil.rmtree(renamed)
    told = rf"^r began with the data set squares \(digest {digest[:12]}\), which is not in {root}: put it back there"
    with pytest.raises(ValueError, match=rf"{told}, or, to train it anew: mv {run} {run}\.old$"):
        pinned_set(run, "squares", said.append)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"job\.json does not say which data set r began with"):
        pinned_set(run, "squares", said.append)
    path.parent.rename(run / "16.old-1")
    assert pinned_set(run, "squares", said.append) is None


def test_other_data_than_the_job_was_made_for_is_refused(squares_here: Path, tmp_path: Path) -> None:
    digest, other = read_manifest(squares_here / "val")["digest"], "f" * 64
    told = f"{squares_here / 'val'} holds other data (digest {digest[:12]}) than this job was made for (ffffffffffff)"
    run = tmp_path / "runs" / "r"
    write_json_in(run / "job.json", to_dict(small_job(squares_here, val_digest=other)))
    assert train([str(run)]) == 1
    assert told in json.loads((run / "outcome.json").read_text())["reason"]
    with pytest.raises(ValueError, match="holds other data"):
        set_of_samples(str(squares_here / "val"), other)
    assert set_of_samples(str(squares_here / "val"), digest) == squares_here
    moved = set_of_samples("/another/home/datasets/squares/val", digest)
    assert moved == squares_here


def test_an_exchanged_split_of_a_copied_home_is_not_read_in_the_other_home(squares_here: Path, tmp_path: Path) -> None:
    digest, other = read_manifest(squares_here / "val")["digest"], tmp_path / "other" / "datasets" / "squares"
    shutil.copytree(squares_here, other)
    manifest = squares_here / "val" / "manifest.json"
    write_json(manifest, {**read_manifest(manifest.parent), "digest": "f" * 64})
    with pytest.raises(ValueError, match=rf"{squares_here / 'val'} holds other data \(digest ffffffffffff\)"):
        set_of_samples(str(other / "val"), digest)
    shutil.rmtree(squares_here)
    assert set_of_samples(str(other / "val"), digest) == other


def test_a_split_of_which_nothing_is_left_is_named_and_the_set_is_not(root: Path) -> None:
    plain = opened()
    files = [item.place.file for item in plain.source.items() if item.place is not None]
    for file in files:
        file.write_bytes(files[0].read_bytes())
    asked = replace(plain, recipe=replace(plain.recipe, drop_duplicates=True))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"val: none of 3 samples is left \(3 had .* 0 were removed\): leave out"):
            make_set(asked, lambda *_: None, lambda line: None)
    removed: dict[str, Any] = {drawing.key: {} for drawing in DOZEN.split("val")}
    write_json(root / "dozen.removed.json", {"format": 1, "removed": removed})
    with pytest.raises(ValueError, match=r"val: none of 3 samples is left \(0 had .* 3 were removed\)"):
        make()
    assert not any(map(is_finished, root.iterdir()))


def test_too_few_held_out_ends_with_advice_that_works(root: Path, tmp_path: Path) -> None:
    """One of eight was no picture: eight are measured at least, and no field of the configuration can mend it."""
    source = make_pictures(tmp_path / "pictures", {f"p{i:02d}": "a picture" for i in range(12)})

    def made(held_out: float) -> Path:
        opened = open_source("mine", Options(held_out=held_out), source)
        assert opened is not None
        folder = make_set(opened, lambda *_: None, print)
        assert folder is not None
        return folder

    held_out = [key for key in read_keys(made(0.0) / "val" / "00000.tar") if key]
    (source / f"{held_out[0]}.png").write_text("no picture")
    short = made(0.0)
    with pytest.raises(ValueError, match=r"holds out 7 samples, at least 8 are measured: hold out more") as error:
        fitted(preset("mine"), short, print)
    assert any("holds out 7 samples" in line for line in _data(preset("mine")))
    share = re.search(r"`mdm data mine --source … --held-out ([0-9.]+)`$", str(error.value))
    assert share is not None
    assert fitted(preset("mine"), made(float(share[1])), print).evaluation.num_samples >= 8
    trained = sorted({f"p{i:02d}" for i in range(12)} - set(held_out))
    for key in (*held_out[:3], *trained[:3]):
        (source / f"{key}.png").write_text("no picture")
    few = made(0.0)
    left = sum(samples_left(read_manifest(few / split)) for split in ("train", "val"))
    with pytest.raises(ValueError, match=rf"add at least {9 - left} more pictures that can be read, and run `mdm data"):
        fitted(preset("mine"), few, print)


def test_a_name_with_options_means_the_set_that_was_made_with_them(root: Path) -> None:
    plain = opened()
    without = Options(limit=13, drop_duplicates=True)
    fewer = make_set(replace(plain, recipe=replace(plain.recipe, drop_duplicates=True)), lambda *_: None, print)
    whole = make()
    assert newest_made("dozen", without) == fewer and newest_made("dozen", Options(limit=13)) == whole
    (whole / "recipe.json").rename(whole / "away")
    with pytest.raises(ValueError, match="`mdm data dozen --source … --limit 9 --drop-duplicates` makes it"):
        newest_made("dozen", replace(without, limit=9))


@pytest.mark.parametrize(
    ("url", "led_to", "allow"),
    [
        ("http://127.0.0.1:1/x.jpg", "", "127.0.0.1:1"),
        ("http://user@Intern/x.jpg", "", "intern:80"),
        ("http://example.org/x.jpg", "http://127.0.0.1:1/x.jpg", "127.0.0.1:1"),
        ("https://[fd00::1]/x.jpg", "", "[fd00::1]:443"),
    ],
)
def test_what_was_refused_and_may_be_asked_now_is_said_of_a_finished_set(
    root: Path, url: str, led_to: str, allow: str
) -> None:
    folder, said = make(), list[str]()
    path = folder / "train" / "00000.rows.parquet"
    rows = pq.read_table(path)
    asked, last = (pa.array([address, *[""] * (len(rows) - 1)]) for address in (url, led_to))
    outcomes = pa.array(["refused: address", *rows["outcome"].to_pylist()[1:]])
    for name, column in (("url", asked), ("final_url", last), ("outcome", outcomes)):
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    pq.write_table(rows, path)
    make_set(opened(), lambda *_: None, said.append)
    assert said == []
    make_set(opened(), lambda *_: None, said.append, policy=Policy(allow=(allow,)))
    assert said == [f"--allow names 1 that were refused when {folder.name} was made: to ask them, move it away"]
