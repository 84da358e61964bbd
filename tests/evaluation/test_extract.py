"""Features made by several processes: the same as by one, whatever is killed; and why they could not be made."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.extract import ExtractJob, extract_job
from evaluation.images.captions import Prompt, assign
from evaluation.images.image_folder import ImageFolder
from evaluation.images.preparation import Drawn, Noise, Pictures, Reference
from evaluation.measuring.fresh import Fresh
from evaluation.measuring.kept import kept_pictures
from evaluation.measuring.streaming import BLOCK, images_done
from flows import launch
from flows.launch import JobDied
from flows.measuring import extracting
from flows.measuring.extracting import extract_in_processes
from mdm.data.shards import Shards
from mdm.files import load_as, write_json
from mdm.presets import Hardware
from mdm.structure import to_dict
from mdm.training.compute import pick_device
from tests.evaluation.extract_random import load

ROLES = ("one", "other")
TWO = Hardware(device="cpu", processes=2, threads=1)
N = 3 * BLOCK + 5


@pytest.fixture
def drawn(tmp_path: Path) -> Drawn:
    """16 px, loose, of random pixels."""
    images = tmp_path / "images"
    assign(images, [Prompt(key=f"{i}", caption=f"caption {i}") for i in range(N)], 0)
    noise = torch.randn(N, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ImageFolder(images).save([noise], range(N), range(N), loose=True)
    return Drawn.open(images, "as drawn")


@pytest.fixture(autouse=True)
def random_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extracting, "MODULE", "tests.evaluation.extract_random")


def made(folder: Path, pictures: Pictures, processes: Hardware | None = None, **told: Any) -> list[bytes]:
    """The files of features, by this process or others."""
    say = told.get("say", lambda done: None)
    networks = load(ROLES, Path(), torch.device("cpu"))
    given = {} if processes is None else {"extract": lambda *asked: extract_in_processes(processes, *asked)}
    kept_pictures(folder, "samples", pictures, networks, say, **given)
    return [file.read_bytes() for file in sorted(folder.glob("*.npy"))]


def test_every_source_of_pictures_is_opened_again_from_a_file(drawn: Drawn, squares: Path, tmp_path: Path) -> None:
    splits = [Shards(squares / split) for split in ("val", "train")]
    some = Reference.open([splits[1]], "as drawn", 16, [splits[1].key(i) for i in (5, 2)])
    for pictures in (drawn, Reference.open(splits, "as drawn", 8), some, Noise(3, 16, 7)):
        write_json(tmp_path / "extract.json", to_dict(extract_job(pictures, ROLES, tmp_path, "cpu", 0)))
        found = load_as(ExtractJob, tmp_path / "extract.json").pictures
        assert found.identity == pictures.identity and len(found) == len(pictures)
        for a, b in zip(found.batches(1, 3), pictures.batches(1, 3), strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="one source of pictures is needed"):
        ExtractJob(roles=ROLES, weights="", device="cpu", drawn=drawn, noise=Noise(1, 2, 3))


def test_files_of_a_gpu_are_read_by_several_processes(
    drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    monkeypatch.setattr("torch.cuda.current_device", lambda: taken[-1])
    started: list[int] = []
    monkeypatch.setattr(extracting, "run_job", lambda module, work, processes, threads, poll: started.append(processes))
    extract_in_processes(Hardware(device="cuda", processes=2), tmp_path, drawn, ROLES, lambda done: None)
    job = load_as(ExtractJob, tmp_path / "extract.json")
    assert started == [2 * job.per_gpu] and job.per_gpu > 1
    devices = []
    for rank in range(started[0]):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        devices.append(pick_device(job.device, job.per_gpu).index)
    assert devices == [0] * job.per_gpu + [1] * job.per_gpu

    fresh = Fresh(str(tmp_path), 16, (0,), "inputs")  # draws: one process fills the GPU
    extract_in_processes(Hardware(device="cuda", processes=2), tmp_path, fresh, ROLES, lambda done: None)
    assert started[1] == 2


def test_a_split_that_lost_samples_meanwhile_is_not_read(squares: Path) -> None:
    real = Reference.open([Shards(squares / "val")], "as drawn", 8)
    before = Reference(real.splits, "as drawn", 8, ({**real.data[0], "revision": 1},))
    with pytest.raises(ValueError, match="val: samples were removed meanwhile: the same command begins anew"):
        len(before)


def test_two_processes_say_what_is_wrong_and_go_on_when_it_is_mended(drawn: Drawn, tmp_path: Path) -> None:
    """A picture that is damaged after it was looked at: in the third block, which is the first process's."""
    expected = made(tmp_path / "one", drawn)
    file = drawn._folder.places[2 * BLOCK + 1, 16][0]
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=f"^{file}: it is cut off. Delete it: the command that drew .* again$"):
        made(tmp_path / "two", drawn, TWO)
    (work,) = (tmp_path / "two").glob("*.part")
    assert BLOCK <= images_done(work) < N and not list((tmp_path / "two").glob("*.npy"))
    file.write_bytes(whole)
    told: list[int] = []
    assert made(tmp_path / "two", drawn, TWO, say=told.append) == expected
    assert told[0] >= BLOCK and told[-1] == N and not work.exists()


@pytest.mark.kills
@pytest.mark.slow
def test_killed_processes_lose_no_block_and_one_goes_on(
    drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, killed = made(tmp_path / "one", drawn), list[int]()
    monkeypatch.setenv("SECONDS_PER_BATCH", "0.05")

    def kill(done: int) -> None:
        if done >= BLOCK and not killed:
            (work,) = (tmp_path / "two").glob("*.part")
            for process in launch.job_processes("tests.evaluation.extract_random", work):
                killed.append(process.pid)
                os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(JobDied):
        made(tmp_path / "two", drawn, TWO, say=kill)
    assert len(killed) >= 2  # torchrun and its processes; one may have had its last block
    (work,) = (tmp_path / "two").glob("*.part")
    assert BLOCK <= images_done(work) < N
    monkeypatch.setenv("SECONDS_PER_BATCH", "0")
    told: list[int] = []
    assert made(tmp_path / "two", drawn, Hardware(device="cpu", processes=1, threads=1), say=told.append) == expected
    assert told[0] >= BLOCK
