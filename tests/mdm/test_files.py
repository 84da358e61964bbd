"""A file that cannot be read is named, with what is wrong with it."""

import json
from pathlib import Path

import pytest

from mdm.config import Sampling
from mdm.files import load_as, load_json, whole_file, whole_folder, write_json
from mdm.structure import to_dict
from mdm.training.train import main as train
from small import small_job


def test_what_is_torn_missing_or_of_another_shape_is_named(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    with pytest.raises(ValueError, match=r"settings\.json is missing"):
        load_json(path)
    for torn in (b"", b"{", b"\xff\xfe", b"[" * 200_000):
        path.write_bytes(torn)
        with pytest.raises(ValueError, match=r"settings\.json is torn or no JSON"):
            load_json(path)
    write_json(path, {"steps": 0})
    with pytest.raises(ValueError, match=r"settings\.json: sampling\.steps must lie in 1\.\.1000, got 0"):
        load_as(Sampling, path)
    write_json(path, {"stesp": 1})
    with pytest.raises(ValueError, match=r"settings\.json: unknown field stesp"):
        load_as(Sampling, path)


def test_a_training_does_without_its_own_torn_notes_and_names_what_it_cannot(squares: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "job.json", to_dict(small_job(squares, num_levels=1, nimg=8, eval_every_nimg=1000)))
    (tmp_path / "config.json").write_text("{")
    assert train([str(tmp_path)]) == 0
    assert json.loads((tmp_path / "config.json").read_text())["flop_per_image"] > 0
    write_json(tmp_path / "returns.json", [{"to": 1}])
    assert train([str(tmp_path)]) == 1
    assert "returns.json does not say" in json.loads((tmp_path / "outcome.json").read_text())["reason"]


def test_a_file_or_folder_that_breaks_off_leaves_the_former_one_and_nothing_beside_it(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a.txt") as file:
        file.write(b"first")
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "a.txt") as file:
        file.write(b"seco")
        file.flush()
        assert (tmp_path / "a.txt").read_bytes() == b"first"  # a reader in between
        raise KeyboardInterrupt
    with pytest.raises(OSError), whole_folder(tmp_path / "b") as folder:
        (folder / "c").write_bytes(b"half")
        raise OSError("disk full")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    with whole_folder(tmp_path / "b") as folder:
        (folder / "c").write_bytes(b"whole")
    assert (tmp_path / "a.txt").read_bytes() == b"first" and (tmp_path / "b" / "c").read_bytes() == b"whole"


def test_writers_with_names_of_their_own_do_not_take_each_others_half_file(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a", ".1") as mine:
        mine.write(b"mine")
        with whole_file(tmp_path / "a", ".2") as other:
            other.write(b"other")
        assert (tmp_path / "a").read_bytes() == b"other"
    assert (tmp_path / "a").read_bytes() == b"mine"
