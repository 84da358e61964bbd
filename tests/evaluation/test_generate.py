"""Drawing and reading real captions where no embeddings are stored."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation import generate as generate_module
from evaluation.generate import ImageJob, ImageSet, generate_images, prepare
from evaluation.images.captions import Prompt, held_out_prompts, image_seed, is_whole, read_lines
from evaluation.measuring.reading import load_real
from mdm.config import ENCODERS, Labels, Sampling, Text
from mdm.data import leases
from mdm.data.embeddings import TextSource
from mdm.data.leases import REMOVAL, Lease, removal_asked
from mdm.data.shards import Shards
from mdm.data.text import load_encoder, online_encoder
from mdm.files import write_json
from mdm.network.nested import NestedUNet
from mdm.network.weights import save_weights
from mdm.run.checkpoint import newest_checkpoint
from mdm.structure import to_dict
from mdm.training.train import main as train
from preprocessing.embed import embed_captions
from small import FAKE, attentive, small_job, small_model


def test_online_draws_and_pools_what_stored_embeddings_do(squares: Path, tmp_path: Path) -> None:
    val = shutil.copytree(squares / "val", tmp_path / "val")
    encoder = load_encoder("minilm", Path("/nowhere"))
    embed_captions(val, "minilm", encoder.digest(), encoder.encode, ENCODERS["minilm"].max_tokens)
    cached = TextSource(encoder="minilm", encoder_digest=encoder.digest())
    online = replace(cached, way="online", folder=encoder.folder)

    job = small_job(squares, num_levels=1)
    model = replace(job.model, text=Text(dim=384, proj_dim=16, num_layers=1))
    save_weights(tmp_path / "weights", model, attentive(model).state_dict())
    images = ImageSet(name="set", weights=str(tmp_path / "weights"), sampling=replace(job.sampling, steps=4))
    drawn = {}
    for source in (cached, online):
        folder = tmp_path / source.way
        job = ImageJob(sets=(images,), data=str(val), text=source, device="cpu", loose=True)
        prepare(folder, job, held_out_prompts(Shards(val), 5, labelled=False))
        for rank in range(2):
            generate_images(folder, job, rank, 2)
        files = sorted((folder / "set").glob("*.png"))
        drawn[source.way] = np.stack([np.asarray(Image.open(file), dtype=np.int16) for file in files])
    assert drawn["online"].shape == (5, 8, 8, 3)
    assert np.abs(drawn["online"] - drawn["cached"]).max() <= 2  # of 255: the states differ by half precision
    assert np.abs(drawn["online"][0] - drawn["online"][1]).max() > 20

    stored = load_real(Shards(val, cached), None, range(9))
    made = load_real(Shards(val, online), online_encoder(online, torch.device("cpu"), tmp_path), range(9))
    assert stored.text.shape == (9, 384)
    assert made.text == pytest.approx(stored.text, rel=2**-10, abs=1e-4)


def test_a_class_conditional_stage_trains_and_draws_through_the_same_code(squares: Path, tmp_path: Path) -> None:
    job = small_job(squares, num_levels=2, nimg=32, checkpoint_every_nimg=32, label_dropout=0.2)
    model = replace(job.model, text=None, labels=Labels(num_classes=4, null=True))
    run = tmp_path / "run"
    run.mkdir()
    write_json(run / "job.json", to_dict(replace(job, model=model, text=None)))
    assert train([str(run)]) == 0
    assert json.loads((run / "outcome.json").read_text())["outcome"] == "done"
    checkpoint, _ = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    drawn = ImageSet(name="samples", weights=str(checkpoint / "ema"), sampling=replace(job.sampling, steps=2))
    job = ImageJob(sets=(drawn,), data=str(squares / "val"), text=None, device="cpu", loose=True)
    prompts = held_out_prompts(Shards(squares / "val"), 3, labelled=True)
    assert [prompt.label for prompt in prompts] == [0, 1, 2]
    prepare(tmp_path / "drawn", job, prompts)
    generate_images(tmp_path / "drawn", job, 0, 1)
    assert len(list((tmp_path / "drawn" / "samples" / "levels" / "8").glob("*.png"))) == 3
    assert len(list((tmp_path / "drawn" / "samples").glob("*.png"))) == 3


def test_other_data_is_refused_and_a_removal_of_samples_is_given_way_to(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.02)
    data = shutil.copytree(squares, tmp_path / "squares")
    network = NestedUNet(small_model(1))
    save_weights(tmp_path / "weights", network.config, network.state_dict())
    images = ImageSet(name="set", weights=str(tmp_path / "weights"), sampling=Sampling(steps=2))
    job = ImageJob(sets=(images,), data=str(data / "val"), text=FAKE, device="cpu", loose=True)
    prepare(tmp_path, job, held_out_prompts(Shards(data / "val"), 2, labelled=False))
    with pytest.raises(ValueError, match=r"val holds other data \(digest .* was made for \(ffffffffffff\)"):
        generate_images(tmp_path, replace(job, data_digest="f" * 64), 0, 1)
    with Lease(data, "samples"), Lease(data, "mdm data --remove", "removal"):
        while not removal_asked():
            time.sleep(0.01)
        with pytest.raises(ValueError, match=f"{REMOVAL} from .*goes on with the images that are missing"):
            generate_images(tmp_path, job, 0, 1)
    assert not list(tmp_path.rglob("*.png"))
    generate_images(tmp_path, replace(job, data_digest=Shards(data / "val").manifest["digest"]), 0, 1)
    assert len(list((tmp_path / "set").glob("*.png"))) == 2


def test_only_what_is_missing_or_asked_for_anew_is_drawn(squares: Path, tmp_path: Path) -> None:
    job = small_job(squares, num_levels=2)
    save_weights(tmp_path / "weights", job.model, NestedUNet(job.model).state_dict())
    drawn = ImageSet(name="samples", weights=str(tmp_path / "weights"), sampling=replace(job.sampling, steps=1))
    wanted = ImageJob(sets=(drawn,), data=str(squares / "val"), text=FAKE, device="cpu", loose=True)
    prompts, folder = held_out_prompts(Shards(squares / "val"), 6, labelled=False), tmp_path / "drawn"
    pictures, px = folder / "samples", job.model.resolutions

    def draw(asked: list[Prompt]) -> set[str]:
        """Draw -> the files that were not there before, or are new."""
        before = {path.name: path.stat().st_mtime_ns for path in pictures.glob("0*.png")}
        prepare(folder, wanted, asked)
        generate_images(folder, wanted, 0, 1)
        assert is_whole(pictures, asked, px)
        after = {path.name: path.stat().st_mtime_ns for path in pictures.glob("0*.png")}
        assert {path.name for path in (pictures / "levels" / "8").glob("*.png")} == set(after)
        return {name for name, time_ns in after.items() if before.get(name) != time_ns}

    assert draw(prompts) == {f"{i:05d}.png" for i in range(6)}
    lines, picture = read_lines(pictures), (pictures / "00002.png").read_bytes()
    (pictures / "stray.png").write_text("not ours")
    assert draw(prompts) == set()
    (pictures / "00002.png").unlink()
    assert not is_whole(pictures, prompts, px)
    assert draw(prompts) == {"00002.png"} and (pictures / "00002.png").read_bytes() == picture
    (pictures / "levels" / "8" / "00003.png").unlink()  # the page shows it
    assert not is_whole(pictures, prompts, px)
    assert draw(prompts) == {"00003.png"}
    assert is_whole(pictures, prompts[1:], px)  # what nobody asks for any more stands in no one's way
    other = [*prompts[:1], replace(prompts[1], caption="green square, again"), *prompts[2:]]
    assert not is_whole(pictures, other, px)
    assert draw(other) == {"00001.png"}
    assert draw(other[::-1]) == set()  # the order of a list means nothing
    assert draw(other[:1] + other[2:]) == set() and not (pictures / "00001.png").exists()
    assert draw(prompts) == {"00001.png"} and read_lines(pictures) == lines
    (pictures / "captions.jsonl").unlink()  # nothing says any more whose they are
    assert draw(prompts) == {f"{i:05d}.png" for i in range(6)}
    assert (pictures / "stray.png").read_text() == "not ours"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_drawing_stops_at_once_and_goes_on_where_it_was(name: str, squares: Path, tmp_path: Path) -> None:
    model = small_job(squares, num_levels=1).model
    torch.manual_seed(0)
    save_weights(tmp_path / "weights", model, NestedUNet(model).state_dict())
    sampling = Sampling(steps=20, batch_size=1)
    images = ImageSet(name="set", weights=str(tmp_path / "weights"), sampling=sampling)
    job = ImageJob(sets=(images,), data=str(squares / "train"), text=FAKE, device="cpu", threads=1, loose=True)
    folder, whole = tmp_path / "drawn", tmp_path / "whole"
    prompts = held_out_prompts(Shards(squares / "train"), 40, labelled=False)
    for target in (folder, whole):
        prepare(target, job, prompts)
    command = [sys.executable, "-m", "evaluation.generate", str(folder)]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not list(folder.glob("set/*.png")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, getattr(signal, name))
        _, told = process.communicate(timeout=30)
    assert process.returncode == 1 and "generate: stopped" in told and "Traceback" not in told
    assert 0 < len(list(folder.glob("set/*.png"))) < 40
    if name == "SIGTERM":
        return
    for target in (folder, whole):
        generate_images(target, job, 0, 1)
    drawn, expected = ({p.name: p.read_bytes() for p in (f / "set").glob("*.png")} for f in (folder, whole))
    assert drawn == expected and len(drawn) == 40


def test_batches_are_of_fixed_numbers_for_any_number_of_ranks_and_after_any_kill(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an image is drawn beside never changes, so neither does its rounding."""
    model = small_job(squares, num_levels=1).model
    save_weights(tmp_path / "weights", model, NestedUNet(model).state_dict())
    images = ImageSet(name="set", weights=str(tmp_path / "weights"), sampling=Sampling(steps=1, batch_size=3))
    job = ImageJob(sets=(images,), data=str(squares / "train"), text=FAKE, device="cpu", threads=1, loose=True)
    prompts = held_out_prompts(Shards(squares / "train"), 8, labelled=False)
    asked: list[list[int]] = []
    draw = generate_module.generate

    def watched(network: object, conditions: object, null: object, seeds: list[int], *rest: object) -> object:
        asked.append(seeds)
        return draw(network, conditions, null, seeds, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(generate_module, "generate", watched)
    pictures = {}
    for name, world in (("one", 1), ("two", 2), ("again", 1)):
        prepare(tmp_path / name, job, prompts)
        asked.clear()
        for rank in range(world):
            generate_images(tmp_path / name, job, rank, world)
        if name == "again":
            batches_before = sorted(asked)
            for number in (1, 7):
                (tmp_path / name / "set" / f"{number:05d}.png").unlink()
            asked.clear()
            generate_images(tmp_path / name, job, 0, 1)
            assert sorted(asked) == [batch for batch in batches_before if batch_numbers(batch, job) & {1, 7}]
        pictures[name] = {path.name: path.read_bytes() for path in (tmp_path / name / "set").glob("*.png")}
    assert pictures["one"] == pictures["two"] == pictures["again"] and len(pictures["one"]) == 8


def batch_numbers(seeds: list[int], job: ImageJob) -> set[int]:
    return {number for number in range(8) if image_seed(job.seed, number) in seeds}
