"""The data sets: a row for each that the paper names (App. F), for the embedded one, and for anyone's own.

A row says where a set comes from and by which rules it is made. One more of a known kind is one more row.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from preprocessing.cards.card import ABOUT
from preprocessing.items import Source
from preprocessing.pack.shards import Recipe, Tier
from preprocessing.sets import current_name
from preprocessing.sources import cc12m, coco, imagenet
from preprocessing.sources.cc12m import Cc12m, Cc12mMirror
from preprocessing.sources.coco import Coco
from preprocessing.sources.folders import Pictures, caption_table
from preprocessing.sources.foreign import ForeignTars
from preprocessing.sources.imagenet import ImageNet
from preprocessing.sources.listing import PICTURES, files_below, is_picture, must_be_file, shown
from preprocessing.sources.motion import COUNT, Motion
from preprocessing.sources.openmoji import OpenMoji
from preprocessing.sources.tables import TABLES
from preprocessing.sources.videos import VIDEOS, Videos, WebVid

CROPS, ORIGINALS = Tier(256, "jpg"), Tier(0)


@dataclass(frozen=True)
class Options:
    """What a user may set for any data set."""

    limit: int = 0  # of listed items; 0 = all
    held_out: float = 0.0  # 0: as the row has it
    drop_duplicates: bool = False
    work: Path | None = None  # where a source that makes its own files keeps them


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A row: a name, its source, and the rules by which shards are made of it."""

    name: str
    summary: str
    wants: str = ""  # what --source must be; "": it comes with the installed packages
    open: Callable[[Path | None, Options], Source]  # the source, whose path is given where ``wants`` says something
    tiers: tuple[Tier, ...] = (CROPS,)  # the smallest first
    per_shard: int = 1000
    min_px: int = 1
    least_val: int = 8
    clips: bool = False
    own_split: str = ""  # how it holds out, where no other share may be asked for
    licence: str
    credit: str
    terms: str  # what the licence covers, and what it does not
    published: int = 0  # items, where its authors say how many
    sheet: bool = True  # whether the data card's page shows samples; not where they are strangers' pictures

    def recipe(self, source: Source, options: Options) -> Recipe:
        """Raises ValueError for a share that the set does not take."""
        if options.held_out and self.own_split:
            raise ValueError(f"{self.name} holds out {self.own_split}: leave out --held-out (data.val_fraction)")
        return Recipe(
            name=self.name,
            source=source.fingerprint(),
            tiers=self.tiers,
            per_shard=self.per_shard,
            min_px=self.min_px,
            least_val=self.least_val,
            clips=self.clips,
            drop_duplicates=options.drop_duplicates,
        )

    @property
    def manifest_terms(self) -> dict[str, str]:
        return {"licence": self.licence, "credit": self.credit}

    @property
    def about(self) -> dict[str, Any]:
        """What its data card says of it."""
        return {field: getattr(self, field) for field in ABOUT}


def _needs(path: Path | None) -> Path:
    assert path is not None, "find() and the flows ask for a source first"
    return path


def tars_in(path: Path) -> bool:
    """Whether a source is webdataset tars: one, those of a folder, or a pattern for them.

    Raises ValueError for a folder of both tars and loose pictures: which of them is meant cannot be known.
    """
    if not path.is_dir():
        return path.name.endswith(".tar")
    files = [file for file in files_below(path)[0] if shown(file)]
    tar = next((file for file in files if file.suffix == ".tar"), None)
    loose = next((file for file in files if is_picture(file.name)), None)
    if tar is not None and loose is not None:
        raise ValueError(f"{path} holds tars ({tar.name}) and loose pictures ({loose.name}): give one of the two")
    return tar is not None


def _cc12m(path: Path | None, options: Options) -> Source:
    given = _needs(path)
    if tars_in(given):
        return Cc12mMirror(given, options.limit)
    lists = sorted(given.glob("*.tsv")) if given.is_dir() else [given]
    if len(lists) != 1:
        raise ValueError(f"{given}: one list (cc12m.tsv) or webdataset tars are wanted, there are {len(lists)} lists")
    must_be_file(lists[0])
    return Cc12m(lists[0], options.limit)


def _own(path: Path | None, options: Options) -> Source:
    given, held_out = _needs(path), options.held_out or 0.05
    if tars_in(given):
        return ForeignTars(given, limit=options.limit, held_out=held_out)
    if given.suffix.lower() not in TABLES and not given.is_dir():
        raise ValueError(
            f"{given} is no folder of pictures, no table ({', '.join('*' + kind for kind in TABLES)}) and no *.tar: "
            "give the folder, of an archive what was unpacked"
        )
    return Pictures(given, limit=options.limit, held_out=held_out)


def _videos(path: Path | None, options: Options) -> Source:
    return Videos(*_folder_and_table(path), options.held_out or 0.05, options.limit)


def _webvid(path: Path | None, options: Options) -> Source:
    return WebVid(*_folder_and_table(path), options.held_out or 0.001, options.limit)


def _folder_and_table(path: Path | None) -> tuple[Path, Path]:
    given = _needs(path)
    folder, table = (given.parent, given) if given.is_file() else (given, caption_table(given))
    if table is None:
        raise ValueError(
            f"{folder} has no table of captions: put one there (CSV, TSV, JSONL or parquet), with the columns file and "
            "caption"
        )
    return folder, table


def _motion(path: Path | None, options: Options) -> Source:
    return Motion(_needs(options.work), options.limit or COUNT, options.held_out or 0.05)


def _openmoji(path: Path | None, options: Options) -> Source:
    return OpenMoji(people=True, skin_tones=True, val_fraction=options.held_out or 0.075, limit=options.limit)


_OPENMOJI = "All emojis designed by OpenMoji – the open-source emoji and icon project. License: CC BY-SA 4.0"
_SHARED_ALIKE = "samples, pages and weights made from it carry the same credit and licence"
_WEB = (
    "the licence covers the list, not the pictures: each has its owner's terms; faces, and pictures whose owners opted "
    "out of text and data mining elsewhere than in headers and robots.txt, remain"
)

CATALOGUE = {
    row.name: row
    for row in (
        DataSet(
            name="openmoji",
            # Half of the set, drawn alike: a network of minutes learns people and faces, or a little of everything.
            summary="OpenMoji's faces, people, hands and hearts with their CLDR names, 64 px: the embedded default",
            open=_openmoji,
            tiers=(Tier(64, "png"),),
            per_shard=250,
            licence="CC-BY-SA-4.0",
            credit=_OPENMOJI,
            terms=_SHARED_ALIKE,
        ),
        DataSet(
            name="cc12m",
            summary="Conceptual 12M: 12,423,374 pictures of the web with their alt texts (App. F)",
            wants="cc12m.tsv (the list of URLs), or a folder or glob of webdataset tars that hold it",
            open=_cc12m,
            tiers=(CROPS, ORIGINALS),
            own_split="one in a thousand, by the hash of the URL",
            licence="the list: free use with attribution to Google; the pictures: their owners'",
            credit="Conceptual 12M (Changpinyo et al. 2021), Google",
            terms=_WEB,
            published=cc12m.LINES,
            sheet=False,
        ),
        DataSet(
            name="webvid",
            summary="WebVid-10M from a local copy: 16 frames of every video (App. F)",
            wants="a folder of its videos with its CSV in it (the set was withdrawn: it is never downloaded)",
            open=_webvid,
            per_shard=250,
            clips=True,
            licence="withdrawn by its authors; the videos are Shutterstock's",
            credit="WebVid (Bain et al. 2021)",
            terms="whoever has a copy has to know what they may do with it",
            sheet=False,
        ),
        DataSet(
            name="videos",
            summary="any folder of videos with a table of captions",
            wants="a folder of videos with a table in it (columns file and caption), or that table",
            open=_videos,
            per_shard=250,
            clips=True,
            licence="yours to say",
            credit="",
            terms="whoever made the videos has rights in them",
        ),
        DataSet(
            name="openmoji-motion",
            summary="OpenMoji's drawings in motion, which the captions name: clips to try things on",
            open=_motion,
            tiers=(Tier(64, "jpg"),),
            per_shard=50,
            clips=True,
            licence="CC-BY-SA-4.0",
            credit=_OPENMOJI,
            terms=_SHARED_ALIKE,
        ),
        DataSet(
            name="imagenet",
            summary="ImageNet-1k: all training images with their labels (App. F)",
            wants="a folder of synset folders, or of ILSVRC2012_img_train.tar",
            open=lambda path, options: ImageNet(_needs(path), limit=options.limit),
            tiers=(CROPS, ORIGINALS),  # the crops to train on; of the originals FID's reference is prepared
            own_split="its val/, or one in a thousand of the training pictures",
            licence="for non-commercial research, by registration at image-net.org",
            credit="ImageNet (Deng et al. 2009)",
            terms="the pictures are their owners'",
            published=imagenet.TRAINING_PICTURES,
            sheet=False,
        ),
        DataSet(
            name="coco2014-val",
            summary="MS-COCO 2014, validation: 40,504 pictures, a caption each, for FID-30K and CLIP",
            wants="a folder with val2014.zip and annotations_trainval2014.zip",
            open=lambda path, options: Coco(_needs(path), limit=options.limit),
            tiers=(CROPS, ORIGINALS),
            own_split="all of it",
            least_val=0,
            licence="annotations: CC BY 4.0; pictures: Flickr's terms of use",
            credit="MS-COCO (Lin et al. 2014)",
            terms="the pictures are their owners'",
            published=coco.PICTURES,
            sheet=False,
        ),
    )
}


def find(name: str, path: Path | None = None) -> DataSet:
    """The row of a name; any other name is a user's own set, of pictures or videos, as its source has them.

    Raises ValueError for what cannot name one.
    """
    name = current_name(name)
    if name in CATALOGUE:
        return CATALOGUE[name]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name) or name.endswith((".part", ".deleted", ".locks")):
        raise ValueError(
            f"{name!r} cannot name a data set: take letters, digits, - and _; there are {', '.join(CATALOGUE)}"
        )
    if path is not None and _only_videos(path):
        return replace(CATALOGUE["videos"], name=name, summary="your own videos")
    return DataSet(
        name=name,
        summary="your own",
        wants="a folder of pictures (captions: .txt beside them, a table, or their names), a table, or webdataset tars",
        open=_own,
        min_px=16,
        licence="yours to say",
        credit="",
        terms="whoever made the pictures has rights in them",
    )


def _only_videos(path: Path) -> bool:
    folder = path.parent if path.is_file() else path
    kinds = {file.suffix.lower() for file in files_below(folder)[0] if shown(file)} if folder.is_dir() else set()
    return bool(kinds & set(VIDEOS)) and not kinds & {f".{extension}" for extension in PICTURES}
