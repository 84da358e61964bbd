"""Sets of a few drawings, made without a download and without processes, which take seconds each."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mdm.data.pixels import centre_crop, read_rgb
from preprocessing.items import Item, Place
from preprocessing.manifest import make_folder
from preprocessing.pack.images import encode_png, rasterise_svg
from preprocessing.pack.lists import SPLITS, write_lists
from preprocessing.pack.making import finish_set, is_whole, make_shards
from preprocessing.pack.shards import Pixels, Recipe, Tier
from preprocessing.pack.tally import Progress
from preprocessing.remove import Removed, finish
from preprocessing.sources.openmoji import OpenMoji

PIXELS = Pixels(read_rgb, centre_crop)


@dataclass
class Drawn:
    """The drawings as PNG files in a folder, drawn when they are listed."""

    source: OpenMoji
    folder: Path
    px: int

    def fingerprint(self) -> dict[str, Any]:
        return self.source.fingerprint()

    def items(self) -> Iterator[Item]:
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = {drawing.key: drawing.path for drawing in self.source.drawings}
        for item in self.source.items():
            file = self.folder / f"{item.key}.png"
            if not file.exists():
                file.write_bytes(encode_png(rasterise_svg(paths[item.key], self.px)))
            yield replace(item, url="", place=Place(file))

    def root(self) -> Path:
        return self.folder

    def notes(self) -> list[str]:
        return []


class Inline:
    """Stands for a pool of processes: does everything at once."""

    def __init__(self, workers: int, **_: Any) -> None: ...

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, **_: Any) -> None: ...


def recipe(source: Any, px: int = 16, per_shard: int = 4, name: str = "dozen", **changes: Any) -> Recipe:
    settings = {"tiers": (Tier(px, "png"),), **changes}
    return Recipe(name=name, source=source.fingerprint(), per_shard=per_shard, **settings)


def write_drawings(
    folder: Path,
    source: OpenMoji,
    px: int = 16,
    per_shard: int = 4,
    name: str = "dozen",
    removed: Removed | None = None,
    progress: Progress = lambda *_: None,
    **changes: Any,
) -> list[dict[str, Any]]:
    """A set's folder -> the manifests of its splits."""
    wanted = recipe(source, px, per_shard, name, **changes)
    lists = folder / "lists"
    if all((folder / split / "manifest.json").exists() for split in SPLITS) and is_whole(folder, wanted):
        return [finish(folder / split) for split in SPLITS]
    make_folder(lists)
    plan = write_lists(Drawn(source, folder / "drawn", px), lists, per_shard, least_val=0)
    make_shards(folder, lists, folder / "drawn", plan, wanted, PIXELS, 1, progress)
    return finish_set(folder, plan, wanted, {"licence": "CC-BY-SA-4.0", "credit": "OpenMoji"}, removed or {})
