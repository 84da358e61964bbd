from pathlib import Path

import pytest

from inputs import png, write_tar
from made import make_own_set
from mdm.data.shards import choose_tier
from preprocessing.items import Item
from preprocessing.manifest import read_manifest
from preprocessing.members import samples_in
from preprocessing.sources.imagenet import ImageNet

SYNSETS = ["n02119789", "n01440764", "n03000134"]
ORDER = sorted(SYNSETS)


def fill(root: Path, per_synset: int = 4, val: bool = False) -> Path:
    for synset in SYNSETS:
        (root / synset).mkdir(parents=True)
        for i in range(per_synset):
            name = f"ILSVRC2012_val_{synset}{i:08d}.JPEG" if val else f"{synset}_{i}.JPEG"
            (root / synset / name).write_bytes(png(i))
    return root


def labels(items: list[Item]) -> dict[str, int]:
    return {item.meta["synset"]: item.meta["label"] for item in items}


def training(source: ImageNet) -> list[Item]:
    return [item for item in source.items() if item.split == "train"]


def write_official(folder: Path, per_synset: int = 4) -> Path:
    """ILSVRC2012_img_train.tar, a tar of the synsets' tars."""
    parts = []
    for synset in SYNSETS:
        part = write_tar(folder / "part.tar", [(f"{synset}_{i}.JPEG", png(i)) for i in range(per_synset)])
        parts.append((f"{synset}.tar", part.read_bytes()))
        part.unlink()
    return write_tar(folder / "ILSVRC2012_img_train.tar", parts)


@pytest.mark.parametrize("form", ["folder", "train/", "tar", "folder of the tar"])
def test_every_form_gives_the_same_items(tmp_path: Path, form: str) -> None:
    if "tar" in form:
        path = write_official(tmp_path)
    else:
        fill(tmp_path / "train" if form == "train/" else tmp_path)
    source = ImageNet(path if form == "tar" else tmp_path)
    items = training(source)
    assert sorted(item.key for item in items) == sorted(f"{s}_{i}" for s in SYNSETS for i in range(4))
    for item in items:
        assert item.place is not None and item.place.read() == png(int(item.key[-1]))
        assert item.caption == item.key[:9] == item.meta["synset"]
    assert labels(items) == {synset: label for label, synset in enumerate(ORDER)}
    assert source.notes() == [
        "no synsets.txt, LOC_synset_mapping.txt, map_clsloc.txt: labels are places among the 3 synsets found",
        "no val/ with folders of synsets: the 8 held-out pictures are trained on, too",
    ]
    held_out = [item for item in source.items() if item.split == "val"]
    assert len(held_out) == 8 and {item.key.removeprefix("val_") for item in held_out} < {item.key for item in items}


@pytest.mark.parametrize(
    ("name", "lines", "words"),
    [
        ("synsets.txt", ["n03000134", "n01440764", "n02119789", "n00000001"], "n02119789"),
        (
            "LOC_synset_mapping.txt",
            ["n00000001 x", "n01440764 tench, Tinca tinca", "n02119789 kit fox", "n03000134 fence"],
            "kit fox",
        ),
        (
            "map_clsloc.txt",
            ["n02119789 1 kit_fox", "n01440764 4 tench", "n03000134 7 fence", "n00000001 9 x"],
            "kit fox",
        ),
    ],
)
def test_labels_are_places_in_the_sorted_map_and_captions_its_words(
    tmp_path: Path, name: str, lines: list[str], words: str
) -> None:
    fill(tmp_path / "train")
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    for source in (ImageNet(tmp_path), ImageNet(tmp_path / "train")):
        items = training(source)
        assert labels(items) == {synset: label for label, synset in enumerate(ORDER, 1)}
        assert {item.caption for item in items if item.meta["synset"] == "n02119789"} == {words}
        assert "labels are places" not in str(source.notes())
    (tmp_path / "train" / "n99999999").mkdir()
    (tmp_path / "train" / "n99999999" / "x.JPEG").write_bytes(png())
    with pytest.raises(ValueError, match=rf"'n99999999' is not in the label map .*{name}"):
        ImageNet(tmp_path).fingerprint()


@pytest.mark.parametrize("line", ["tench", "n01440764 again"])
def test_a_map_that_is_none_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    fill(tmp_path)
    (tmp_path / "synsets.txt").write_text(f"n01440764\n{line}\n")
    with pytest.raises(ValueError, match=r"synsets\.txt, line 2: "):
        ImageNet(tmp_path).fingerprint()


def test_val_is_used_where_it_has_folders_of_synsets(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    fill(tmp_path / "val", 2, val=True)
    source = ImageNet(tmp_path)
    items = list(source.items())
    held_out = [item for item in items if item.split == "val"]
    assert len(items) == 18 and len({item.key for item in items}) == 18
    assert [item.key for item in held_out[:1]] == ["val_n01440764_ILSVRC2012_val_n0144076400000000"]
    assert labels(held_out) == labels([item for item in items if item.split == "train"])
    assert len(source.notes()) == 1


def test_a_limit_takes_from_every_synset(tmp_path: Path) -> None:
    items = training(ImageNet(fill(tmp_path, 10), limit=12))
    assert len(items) == 12 and {item.meta["synset"] for item in items} == set(SYNSETS)


def test_two_pictures_that_would_have_one_key_are_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / ORDER[0] / f"{ORDER[0]}_1.png").write_bytes(png())
    with pytest.raises(ValueError, match=r"n01440764_1\.JPEG and n01440764/n01440764_1\.png would have one key"):
        ImageNet(tmp_path).fingerprint()


def test_a_truncated_tar_is_named_with_the_part_that_is_cut(tmp_path: Path) -> None:
    path = write_official(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ValueError, match=r"img_train\.tar is truncated or damaged"):
        ImageNet(path).fingerprint()
    write_tar(path, [("n01440764.tar", b"x" * 2048)])
    with pytest.raises(ValueError, match=r"img_train\.tar: n01440764\.tar is truncated or damaged"):
        ImageNet(path).fingerprint()


def test_a_set_is_known_by_its_pictures(tmp_path: Path) -> None:
    root = fill(tmp_path / "a")
    before = ImageNet(root).fingerprint()
    root = root.rename(tmp_path / "b")
    assert ImageNet(root).fingerprint() == before != ImageNet(root, limit=10).fingerprint()
    (root / ORDER[0] / f"{ORDER[0]}_1.JPEG").write_bytes(png() + b"more")
    assert ImageNet(root).fingerprint() != before


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match=r"no pictures: looked for folders of synsets"):
            list(ImageNet(folder).items())


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_a_set_holds_crops_to_train_on_and_the_originals_to_measure_against(tmp_path: Path, form: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    if form == "tar":
        write_official(source)
    else:
        fill(source)
    split = make_own_set(tmp_path / "sets", source, "imagenet") / "train"
    manifest = read_manifest(split)
    assert [choose_tier(split, manifest, px) for px in (64, 256)] == [split, split]
    assert [choose_tier(split, manifest, px) for px in (0, 512)] == [split / "originals"] * 2
    crops, originals = (list(samples_in(folder / "00000.tar")) for folder in (split, split / "originals"))
    assert [sample.key for sample in crops] == [sample.key for sample in originals] and len(crops) == 12
    with (split / "originals" / "00000.tar").open("rb") as tar:
        for sample in originals:
            offset, length = sample.members["png"]
            tar.seek(offset)
            assert tar.read(length) == png(int(sample.key[-1]))
