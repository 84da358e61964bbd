"""A set made from a folder of pictures, in this process: the flows' way starts others, which takes seconds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mdm.data.pixels import centre_crop, read_rgb
from preprocessing.catalogue import Options, find
from preprocessing.manifest import digest, make_folder, write_json
from preprocessing.pack.images import encode_png
from preprocessing.pack.lists import SPLITS, shard_numbers, write_lists
from preprocessing.pack.making import finish_set
from preprocessing.pack.shards import Pixels, Shard, TarFile, pack_shard
from preprocessing.sets import RECIPE, recipe_folder


def make_pictures(folder: Path, captions: Mapping[str, str], size: tuple[int, int] = (40, 30)) -> Path:
    """NAME.png and NAME.txt for each; their colours differ."""
    make_folder(folder)
    for number, (name, caption) in enumerate(captions.items()):
        Image.new("RGB", size, (number * 7 % 256, number, 255 - number)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption)
    return folder


def write_originals(folder: Path, count: int, name: str, classes: Sequence[str] = ()) -> Path:
    """A split of pictures of other sizes as they came, real000 …, labelled in turn where there are ``classes``."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    with TarFile(folder / "00000.tar") as tar:
        for i in range(count):
            small = random.integers(0, 256, (4, 5, 3), np.uint8)
            picture = np.asarray(Image.fromarray(small).resize((300 + i % 7, 270), Image.Resampling.NEAREST))
            meta = {"key": f"real{i:03d}"} | ({"label": i % len(classes)} if classes else {})
            text = classes[i % len(classes)] if classes else "a picture"
            files = {"png": encode_png(picture), "txt": text.encode(), "json": json.dumps(meta).encode()}
            tar.add(f"real{i:03d}", files)
        shard = tar.finish()
    manifest = {"format": 1, "name": name, "split": folder.name, "resolution_px": 0, "image_ext": "png"}
    manifest |= {"samples": count, "shards": [shard] * bool(count), "source": {}, "licence": "CC0-1.0"}
    manifest |= {"credit": "", "inputs": "tests"}
    write_json(folder / "manifest.json", {**manifest, "digest": digest(manifest)})
    return folder


def make_own_set(root: Path, pictures: Path, name: str = "mine") -> Path:
    """A finished set without its card."""
    row = find(name, pictures)
    source = row.open(pictures, Options())
    recipe = row.recipe(source, Options())
    folder = recipe_folder(root, recipe)
    for split in SPLITS:
        for tier in recipe.tiers:
            make_folder(recipe.tier_folder(folder / split, tier))
    make_folder(folder / "lists")
    plan = write_lists(source, folder / "lists", recipe.per_shard, row.least_val)
    for split, number in shard_numbers(plan):
        pack_shard(Shard(folder, recipe, split, number), folder / "lists", source.root(), Pixels(read_rgb, centre_crop))
    finish_set(folder, plan, recipe, row.manifest_terms)
    write_json(folder / RECIPE, {"name": name, "options": {"limit": 0, "held_out": 0.0}, "finished_s": 1.0})
    return folder
