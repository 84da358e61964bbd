"""Data sets are made once for each recipe, never changed but by a removal, and known by who uses them."""

import json
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drawn import Drawn, Inline
from flows.cli import main
from flows.data import fitted, pinned_set, wanted_set
from flows.datasets import parts, removal
from flows.datasets.making import Opened, list_set, make_set, newest_made, open_source
from flows.datasets.removal import between_removals, kept_elsewhere, remove_samples
from flows.datasets.sets import list_sets, set_of_samples, sets_of_run
from flows.home import Trouble, datasets
from flows.starting.preflight import _data
from made import make_pictures
from mdm.data import leases
from mdm.data.leases import REMOVAL, Lease, live
from mdm.files import write_json
from mdm.presets import Preset, resolve
from mdm.structure import to_dict
from mdm.training.train import main as train
from preprocessing.cards.card import write_card
from preprocessing.catalogue import Options, find
from preprocessing.fetch.download import Policy
from preprocessing.manifest import read_json, read_manifest, samples_left
from preprocessing.pack import making
from preprocessing.pack.shards import Shard, Tier
from preprocessing.remove import read_keys, removed_keys
from preprocessing.sets import emptied, is_cleared, is_finished, newest_set, removals
from preprocessing.sources.openmoji import OpenMoji
from preprocessing.verify import verify_set
from small import small_job, write_dataset

DOZEN, FEW = OpenMoji(limit=13, val_fraction=0.2), OpenMoji(limit=9, val_fraction=0.2)


def preset(name: str) -> Preset:
    return resolve("tiny", {"data": {"name": name}})


def opened(source: OpenMoji = DOZEN) -> Opened:
    """Drawings that need no download."""
    row = replace(find("openmoji"), name="dozen", tiers=(Tier(16, "png"),), least_val=0)
    drawn = Drawn(source, datasets().parent / f"drawn-{source.limit}", 16)
    return Opened(row, drawn, row.recipe(drawn, Options()), Options(limit=source.limit))


def make(source: OpenMoji = DOZEN, say: Callable[[str], None] = lambda line: None) -> Path:
    made = make_set(opened(source), lambda *_: None, say)
    assert made is not None
    return made


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def made_of(files: dict[str, tuple[int, bytes]]) -> dict[str, bytes]:
    """What a set holds, without what tells of its times."""
    timed = (".rows.parquet", "card.json", "card.html")
    return {name: data for name, (_, data) in files.items() if not name.endswith(timed)}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty MDM_HOME's datasets/. Shards are packed here: processes take seconds to start."""
    vars(FEW)["drawings"] = DOZEN.drawings[:9]  # looking at all drawings takes seconds, too
    monkeypatch.setenv("MDM_HOME", str(tmp_path))
    monkeypatch.setattr(making, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(leases, "BEAT_S", 0.02)
    for module in (leases, parts):
        monkeypatch.setattr(module, "LOOK_S", 0.02)
    (tmp_path / "datasets").mkdir()
    return tmp_path / "datasets"


@pytest.fixture
def squares_here(root: Path) -> Path:
    for split in ("train", "val"):
        write_dataset(root / "squares", split, 9, 16, per_shard=4)
    return root / "squares"


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


def test_what_was_removed_under_a_former_name_stays_removed(root: Path) -> None:
    write_json(root / "openmoji-people-64.removed.json", {"format": 1, "removed": {"1F600": {}}})
    assert removals(root, "openmoji") == {"1F600": {}}


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


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_lost_manifest_of_a_finished_set_is_made_again_from_its_markers(
    root: Path, monkeypatch: pytest.MonkeyPatch, split: str, torn: bool
) -> None:
    folder = make()
    remove_samples("dozen", {DOZEN.split("train")[0].key}, False, print)
    before, recipe = contents(folder), read_json(folder / "recipe.json")
    path = folder / split / "manifest.json"
    path.unlink()
    if torn:
        path.write_text('{"format": 1, "na')
    monkeypatch.setattr(making, "pack_shard", None)  # nothing is packed
    assert make() == folder and not list(root.glob("*.part"))
    assert made_of(contents(folder)) == made_of(before)
    assert read_json(folder / "recipe.json") == recipe  # as old as it was


@pytest.mark.parametrize("lost", ["recipe.json", "lists/plan.json"])
def test_a_manifest_that_cannot_be_made_again_is_one_line_before_any_work(root: Path, lost: str) -> None:
    folder = make()
    (folder / "val" / "manifest.json").unlink()
    (folder / lost).unlink()
    before = contents(folder)
    with pytest.raises(ValueError, match=rf"{folder} has lost a manifest, and .*restore them, or move it away"):
        make()
    assert contents(folder) == before and not list(root.glob("*.part"))


@pytest.mark.parametrize("lost", ["originals", "originals/manifest.json"])
def test_a_lost_tier_of_a_finished_set_is_made_again(root: Path, lost: str) -> None:
    plain = opened()
    two = replace(plain, recipe=replace(plain.recipe, tiers=(Tier(16, "png"), Tier(0))))
    folder = make_set(two, lambda *_: None, print)
    assert folder is not None
    before, path = contents(folder), folder / "train" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert make_set(two, lambda *_: None, print) == folder
    assert made_of(contents(folder)) == made_of(before)


def test_another_sets_tier_is_found_and_made_again(root: Path) -> None:
    tiers = (Tier(16, "png"), Tier(0))
    mine, others = (replace(one, recipe=replace(one.recipe, tiers=tiers)) for one in (opened(), opened(FEW)))
    folder, other = (make_set(one, lambda *_: None, print) for one in (mine, others))
    assert folder is not None and other is not None
    verify_set(folder)
    before = contents(folder)
    shutil.rmtree(folder / "train" / "originals")
    shutil.copytree(other / "train" / "originals", folder / "train" / "originals")
    with pytest.raises(ValueError, match=r"train/originals is not the one that .* delete it and make the shards again"):
        verify_set(folder)
    shutil.rmtree(folder / "train" / "originals")
    assert make_set(mine, lambda *_: None, print) == folder and made_of(contents(folder)) == made_of(before)


@pytest.mark.parametrize("damage", ["gone", "torn", "another's"])
def test_rows_that_are_lost_under_a_finished_set_are_named(root: Path, damage: str) -> None:
    folder = make()
    verify_set(folder)
    path, other = (folder / split / "00000.rows.parquet" for split in ("train", "val"))
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[:-20] if damage == "torn" else other.read_bytes())
    said = rf"{folder}/train/.*rows.*what became of its items is lost. Restore it, or move {folder} away"
    with pytest.raises(ValueError, match=said):
        verify_set(folder)
    with pytest.raises(ValueError, match=said):
        write_card(folder, opened().row.about)
    assert Shard(folder, opened().recipe, "train", 0).entries() is None or damage == "another's"


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


def write_json_in(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)
    return path


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
    assert sum(int(line.split(": ")[1].split()[0]) for line in said[-6:]) == 6
    remove_samples("mine", {"p5"}, False, said.append)
    # In sets that are there a key is taken at its word; what it names in any of them is p5 or p4 of the first.
    assert gone_from(first) == gone_from(third) == {"p0", "p4", "p5"} and gone_from(later) == {"p1", "p5", "p6"}


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


def test_a_lost_plan_is_one_line(root: Path) -> None:
    folder = make()
    (folder / "lists" / "plan.json").unlink()
    (folder / "train" / "00000.tar").unlink()
    with pytest.raises(ValueError, match=r"plan\.json is missing or torn, and the set lacks shards: restore it"):
        make()


def test_a_lease_renewed_meanwhile_ends_no_list(squares_here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = squares_here / "leases" / "owner.json.tmp"
    listed = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: [*listed(self, pattern), gone])
    (entry,) = list_sets()
    assert entry.size_bytes == sum(len(content) for _, content in contents(squares_here).values())


def test_what_was_refused_and_may_be_asked_now_is_said_of_a_finished_set(root: Path) -> None:
    folder, said = make(), list[str]()
    path = folder / "train" / "00000.rows.parquet"
    rows = pq.read_table(path)
    asked = pa.array(["http://127.0.0.1:1/x.jpg", *[""] * (len(rows) - 1)])
    outcomes = pa.array(["refused: address", *rows["outcome"].to_pylist()[1:]])
    for name, column in (("url", asked), ("outcome", outcomes)):
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    pq.write_table(rows, path)
    make_set(opened(), lambda *_: None, said.append)
    assert said == []
    make_set(opened(), lambda *_: None, said.append, policy=Policy(allow=("127.0.0.1:1",)))
    assert said == [f"--allow names 1 that were refused when {folder.name} was made: to ask them, move it away"]
