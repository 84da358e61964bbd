"""docs/dataset-format.md names every field and every file of a data set, and its block reads a shard."""

import re
import shutil
from pathlib import Path

import pytest

from drawn import Inline, write_drawings
from flows.datasets.cards import keep_card
from flows.datasets.removal import remove_samples
from flows.datasets.text import Captions
from mdm.data.leases import Lease
from mdm.presets import resolve
from preprocessing.catalogue import find
from preprocessing.manifest import FIELDS, SHARD_FIELDS, write_json
from preprocessing.pack import making
from preprocessing.pack.shards import Tier
from preprocessing.sources.openmoji import OpenMoji
from small import write_dataset

SOURCE = OpenMoji(limit=13, val_fraction=0.08)
PAGE = (Path(__file__).parents[2] / "docs" / "dataset-format.md").read_text()


def test_every_field_is_named() -> None:
    manifest = PAGE.partition("\n`manifest.json` (")[2].partition("\n\n")[0]
    assert {*FIELDS, *SHARD_FIELDS} <= set(re.findall(r"`(\w+)`", manifest))


def row_fits(row: str, file: str) -> bool:
    pattern = re.escape(row)
    for word, what in {"00000": r"\d{5}", "ENCODER": r"\w+", "NAME": r"\w+"}.items():
        pattern = pattern.replace(word, what)
    pattern = pattern.replace(re.escape("<12 hex digits>"), "[0-9a-f]{12}")
    return re.fullmatch(pattern + ".*" * row.endswith("/"), file) is not None


def test_every_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDM_HOME", str(tmp_path))
    folder = tmp_path / "datasets" / "squares-0123456789ab"
    monkeypatch.setattr(making, "ProcessPoolExecutor", Inline)
    write_drawings(folder, SOURCE, name="squares", tiers=(Tier(16, "png"), Tier(256, "jpg"), Tier(0)))
    shutil.rmtree(folder / "drawn")
    write_json(folder / "dropped.json", {"keys": []})
    write_json(folder / "recipe.json", {})
    data = {"name": "squares"}
    captions = Captions(resolve("tiny", {"data": data, "embeddings": "auto"}), folder)
    captions.embed(captions.source(print).way, lambda start: lambda done, total: None)
    remove_samples("squares", {SOURCE.split("train")[1].key}, dry_run=False, say=print)
    keep_card(folder, find("openmoji").about, print)
    rows = [name for cell in re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE) for name in re.findall("`(.+?)`", cell)]
    with Lease(folder, "test"):
        there = [path for path in (tmp_path / "datasets").rglob("*") if path.is_file()]
    files = {
        path.relative_to(folder).as_posix().replace("val/", "train/") if folder in path.parents else f"../{path.name}"
        for path in there
    }
    wanted = [row for row in rows if row not in ("train/", "val/")]  # the splits, not a file's row
    unnamed = {file for file in files if not any(row_fits(row, file) for row in wanted)}
    unmade = {row for row in wanted if not any(row_fits(row, file) for file in files)}
    assert (unnamed, unmade) == (set(), set())


def test_the_block_reads_a_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    write_dataset(tmp_path / "var" / "datasets" / "my-set", "train", 2, 8)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "block", "exec"), {})
    assert capsys.readouterr().out == "train000 (8, 8) red square\ntrain001 (8, 8) green square\n"
