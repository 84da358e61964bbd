"""Sets of a dozen drawings below MDM_HOME, made in this process."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from drawn import Drawn
from flows.datasets.making import Opened, make_set
from flows.home import datasets
from mdm.files import write_json
from mdm.presets import Preset, resolve
from preprocessing.catalogue import Options, find
from preprocessing.pack.shards import Tier
from preprocessing.sources.openmoji import OpenMoji

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
    paths = (path for path in folder.rglob("*") if path.suffix != ".tmp")  # a lease's comes and goes
    files = sorted(path for path in paths if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def made_of(files: dict[str, tuple[int, bytes]]) -> dict[str, bytes]:
    """What a set holds, without what tells of its times."""
    timed = (".rows.parquet", "card.json", "card.html")
    return {name: data for name, (_, data) in files.items() if not name.endswith(timed)}


def write_json_in(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)
    return path
