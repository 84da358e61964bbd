"""Images that are measured while they are drawn: the same pixels as those of the files."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.extract import ExtractJob, extract_job
from evaluation.generate import ImageJob, ImageSet, generate_images, prepare
from evaluation.images import preparation
from evaluation.images.captions import Prompt, held_out_prompts
from evaluation.images.preparation import Drawn
from evaluation.measuring.fresh import Fresh
from mdm.config import Sampling
from mdm.data.shards import Shards
from mdm.files import load_as, write_json
from mdm.network.weights import save_weights
from mdm.structure import to_dict
from preprocessing.remove import find, take_out
from small import FAKE, attentive, small_model

COUNT = 11


@pytest.fixture
def made(squares: Path, tmp_path: Path) -> tuple[Path, ImageJob, list[Prompt]]:
    """Batches of 3, two levels of 8 and 16 px; the data is this test's own."""
    data = shutil.copytree(squares, tmp_path / "squares")
    model = small_model(2)
    save_weights(tmp_path / "weights", model, attentive(model).state_dict())
    images = ImageSet(name="set", weights=str(tmp_path / "weights"), sampling=Sampling(steps=2, batch_size=3))
    job = ImageJob(sets=(images,), data=str(data / "train"), text=FAKE, device="cpu", threads=1)
    prompts = held_out_prompts(Shards(data / "train"), COUNT, labelled=False)
    prepare(tmp_path / "drawn", job, prompts)
    return tmp_path / "drawn", job, prompts


def test_any_part_of_them_is_what_the_files_hold(made: tuple[Path, ImageJob, list[Prompt]], tmp_path: Path) -> None:
    folder, job, prompts = made
    asked = [*prompts[:4], *prompts[6:]]  # of two batches a part
    fresh = Fresh.open(folder, "as drawn", asked)
    write_json(tmp_path / "extract.json", to_dict(extract_job(fresh, ["one"], tmp_path, "cpu", 0)))
    opened = load_as(ExtractJob, tmp_path / "extract.json").pictures
    parts = [np.concatenate(list(opened.batches(start, min(start + 4, len(asked))))) for start in (0, 4, 8)]
    assert list(opened.data_folders) == [tmp_path / "squares"]
    assert not list(folder.rglob("*.tar"))
    generate_images(folder, job, 0, 1)
    drawn = Drawn.open(folder / "set", "as drawn", asked)
    np.testing.assert_array_equal(np.concatenate(parts), np.concatenate(list(drawn.batches(0, len(asked)))))
    assert (fresh.px, fresh.numbers, fresh.lines) == (drawn.px, drawn.numbers, drawn.lines)
    assert len({image.tobytes() for part in parts for image in part}) == len(asked)


def test_what_decides_the_images_is_its_identity(
    made: tuple[Path, ImageJob, list[Prompt]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, job, prompts = made
    before = Fresh.open(folder, "as drawn", prompts).identity
    (images,) = job.sets
    for other in (
        replace(job, negative_prompt="low quality"),
        replace(job, sets=(replace(images, sampling=replace(images.sampling, steps=3)),)),
    ):
        prepare(folder, other, prompts)
        assert Fresh.open(folder, "as drawn", prompts).identity != before
    prepare(folder, job, prompts)
    assert Fresh.open(folder, "as drawn", prompts).identity == before
    assert Fresh.open(folder, "as drawn", prompts[1:]).identity != before
    with pytest.raises(ValueError, match=r"images of 256 px are measured, the model has \[8, 16\]"):
        Fresh.open(folder, "adm centre crop 256", prompts)
    monkeypatch.setattr(preparation, "ADM_PX", 8)
    (image, *_) = Fresh.open(folder, "adm centre crop 256", prompts).batches(0, 2)
    assert image.shape == (1, 3, 8, 8)


def test_a_sample_that_was_removed_meanwhile_is_said(made: tuple[Path, ImageJob, list[Prompt]], tmp_path: Path) -> None:
    folder, _, prompts = made
    fresh = Fresh.open(folder, "as drawn", prompts)
    train = tmp_path / "squares" / "train"
    take_out(train, find(train, {prompts[4].key}))
    assert len(list(fresh.batches(0, 3))) == 3
    with pytest.raises(
        ValueError, match="train: the sample of image 4 was removed meanwhile: the same command begins anew"
    ):
        list(fresh.batches(3, 6))
