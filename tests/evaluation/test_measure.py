"""Images, captions and real images are paired by key: what is removed changes nothing about the others."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.frechet import frechet_distance
from evaluation.generate import ImageJob, ImageSet, prepare
from evaluation.images.captions import held_out_prompts, unique
from evaluation.images.image_folder import ImageFolder
from evaluation.kid import kid
from evaluation.measuring import extraction, measure
from evaluation.results import FRECHET, HEADLINE, KID, NOISE, REAL, SAMPLES, UNTRAINED
from mdm.config import Sampling
from mdm.data.shards import Shards
from mdm.presets import Evaluation
from preprocessing.remove import find, take_out
from small import FAKE

SETTINGS = Evaluation(num_samples=8, feature_px=32, num_real=20)
Fit = dict[str, Any]


@pytest.fixture
def data(squares: Path, tmp_path: Path) -> Path:
    """The squares, and images of all but one of their held-out captions: noise, each another."""
    data = shutil.copytree(squares, tmp_path / "data")
    sets = tuple(ImageSet(name=name, weights="untrained", sampling=Sampling()) for name in ("samples", "untrained"))
    job = ImageJob(sets=sets, data=str(data / "val"), text=FAKE)
    prepare(tmp_path / "images", job, held_out_prompts(Shards(data / "val"), 8, labelled=False))
    for i, images in enumerate(sets):
        folder, noise = tmp_path / "images" / images.name, torch.Generator().manual_seed(i)
        pictures = torch.randn(8, 3, 32, 32, generator=noise)
        ImageFolder(folder).save([pictures[..., :8, :8], pictures], range(8), range(8), loose=True)
    return data


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Fit]:
    """What the text-image score is asked for, each time."""
    asked: list[Fit] = []

    def note(sets: Any, text: Any, train: Any, seed: int, out: Path) -> Any:
        asked.append({"sets": sets, "text": text, "train": train})
        return [], np.arange(len(text), dtype=np.float32)

    monkeypatch.setattr(measure, "caption_fit", note)
    return asked


def measured(data: Path, settings: Evaluation = SETTINGS) -> dict[str, Any]:
    root = data.parent
    return measure.measure(
        root / "images", data, FAKE, root / "out", root / "features", settings, 0, lambda what, done, total: None
    )


def remove(folder: Path, *keys: str) -> None:
    take_out(folder, find(folder, set(keys)))


def test_a_removal_leaves_the_other_pairs_and_their_features(
    data: Path, fits: list[Fit], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = measured(data)
    assert HEADLINE.name in [metric["name"] for metric in before["metrics"]]
    assert [sample["key"] for sample in before["samples"]] == [f"val{i:03d}" for i in range(8)]
    remove(data / "val", "val000")
    remove(data / "train", "train002")  # one of the twenty
    monkeypatch.setattr(extraction, "EfficientNetLite0", Known)
    after = measured(data)
    assert after["samples"] == before["samples"][1:]
    first, second = fits
    for part in (SAMPLES, UNTRAINED, NOISE, REAL):
        np.testing.assert_array_equal(second["sets"][part], first["sets"][part][1:])
    np.testing.assert_array_equal(second["text"], first["text"][1:])
    assert (before["real_images"], after["real_images"]) == (20, 19)
    assert after["metrics"] != before["metrics"]


def test_real_images_of_the_same_captions_stand_beside_the_samples_against_one_reference(
    data: Path, fits: list[Fit]
) -> None:
    found = measured(data)
    (fit,) = fits
    train, val = Shards(data / "train"), Shards(data / "val")
    network = extraction.EfficientNetLite0(input_px=32)
    real = np.stack([val[i].image.numpy() for i in range(8)])
    reference = network.extract(np.stack([train[i].image.numpy() for i in train.spread(20)]))
    np.testing.assert_allclose(fit["sets"][REAL], network.extract(real), rtol=1e-4, atol=1e-5)
    by_name = {metric["name"]: metric for metric in found["metrics"]}
    for metric, of in ((FRECHET, frechet_distance), (KID, lambda a, b: kid(a, b).value)):
        row = by_name[metric.name]
        assert list(row["values"]) == list(row["interval"]) == [SAMPLES, UNTRAINED, NOISE, REAL]
        for what in (SAMPLES, REAL):
            assert row["values"][what] == pytest.approx(of(fit["sets"][what], reference), rel=1e-4)
        about = "Against 20 of the 40 training images, at 32 px; held-out images: those of the 8 captions"
        assert row["n"] == 8 and about in row["note"]
    assert found["real_images"] == 20


def test_all_training_images_are_searched_for_the_nearest(
    data: Path, fits: list[Fit], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the forty, twenty are the reference; the samples are made copies of others."""
    train, drawn = Shards(data / "train"), ImageFolder(data.parent / "images" / "samples")
    copied = [i for i in range(40) if i not in train.spread(20)][:8]
    pictures = torch.stack([train[i].image for i in copied]).float() / 127.5 - 1
    drawn.forget(set(range(8)))
    drawn.save([pictures[..., ::4, ::4], pictures], range(8), range(8), loose=True)
    found = measured(data)
    assert [sample["nearest_index"] for sample in found["samples"]] == copied
    assert [sample["nearest_key"] for sample in found["samples"]] == [train.key(i) for i in copied]
    assert max(sample["nearest_distance"] for sample in found["samples"]) < 1
    assert found["nearest_among"] == {"images": 40, "of": 40}
    monkeypatch.setattr(measure, "SEARCHED", 10)
    assert measured(data)["nearest_among"] == {"images": 10, "of": 40}


class Known:
    """Stands in for the extractor where every feature must be kept."""

    name = extraction.EfficientNetLite0.name

    def __init__(self, **_: object) -> None:
        raise AssertionError("features are extracted again")


def test_features_of_what_is_gone_are_forgotten_and_damage_is_named(data: Path, fits: list[Fit]) -> None:
    measured(data)
    (file,) = (data.parent / "features").iterdir()
    remove(data / "val", "val000")
    before = len(extraction.read_features(file))
    measured(data)
    assert len(extraction.read_features(file)) < before
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"px\.npz is damaged .* delete it"):
        measured(data)


def test_pictures_and_captions_that_do_not_belong_are_named(data: Path, fits: list[Fit]) -> None:
    samples = data.parent / "images" / "samples"
    before = measured(data)
    small = (samples / "levels" / "8" / "00000.png").read_bytes()
    for stray in ("0-mine.png", "levels/032/00000.png"):  # another's; and which of two levels of 32 px would be read?
        (samples / stray).parent.mkdir(exist_ok=True)
        (samples / stray).write_bytes(small)
        with pytest.raises(ValueError, match=r"is no image of .*captions\.jsonl: move it away"):
            measured(data)
        (samples / stray).unlink()
    (samples / "levels" / "032").rmdir()
    assert measured(data) == before
    (samples / "levels" / "32" / "00003.png").write_bytes(small)
    with pytest.raises(ValueError, match=r"levels/32/00003\.png: 8x8 px, not 32x32\. Delete it"):
        measured(data)
    (samples / "00003.png").unlink()
    with pytest.raises(ValueError, match=r"00003\.png is missing"):
        measured(data)
    lines = (samples / "captions.jsonl").read_text().splitlines()
    (samples / "captions.jsonl").write_text("\n".join([*lines[:3], *lines[4:]]) + "\n")
    with pytest.raises(ValueError, match=r"no image of val003 and 0 more"):
        measured(data)
    (samples / "captions.jsonl").write_text(json.dumps({"index": 0}) + "\n")
    with pytest.raises(ValueError, match=r"captions\.jsonl, line 1: missing field"):
        measured(data)


def test_two_samples_of_one_key_are_refused() -> None:
    assert unique(["a", "b"], "val") == {"a": 0, "b": 1}
    with pytest.raises(ValueError, match="val: two samples have the key 'a'"):
        unique(["a", "b", "a"], "val")
