"""Caption states made in parts, by processes that know nothing of one another; and states that cannot be stored."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from preprocessing.embed import embed_captions, embed_part, finished_set, set_folder
from preprocessing.remove import remove
from small import fake_encode

ENCODER = ("fake", "fake-2")


@pytest.fixture
def data(squares: Path, tmp_path: Path) -> Path:
    """40 samples in 5 shards."""
    return shutil.copytree(squares / "train", tmp_path / "train")


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_parts_in_any_order_make_what_one_process_makes(squares: Path, data: Path, order: tuple[int, ...]) -> None:
    whole = embed_captions(shutil.copytree(squares / "train", data.parent / "whole"), *ENCODER, fake_encode, 8)
    seen: list[tuple[int, int]] = []
    left = [embed_part(data, *ENCODER, fake_encode, 8, lambda *told: seen.append(told), part=(i, 3)) for i in order]
    shards = {1: 2, 2: 2, 3: 1}
    assert left == [5 - sum(shards[i] for i in order[: n + 1]) for n in range(3)]
    assert sorted({total for _, total in seen}) == [8, 16]  # captions of a part
    assert finished_set(data, *ENCODER, 8, "half") == whole
    target = set_folder(data, "fake", "half")
    before = {path: path.stat().st_mtime_ns for path in target.iterdir()}
    assert embed_part(data, *ENCODER, fake_encode, 8, part=(2, 3)) == 0
    assert {path: path.stat().st_mtime_ns for path in target.iterdir()} == before


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_a_state_that_cannot_be_stored_names_shard_and_sample_and_what_is_done_stays(data: Path, value: float) -> None:
    shutil.rmtree(set_folder(data, "fake", "half"))  # another encoder's
    calls: list[str] = []

    def encode(asked: list[str]) -> tuple[list[np.ndarray], int]:
        calls.extend(asked)
        states, cut = fake_encode(asked)
        if len(calls) > 1 + 2 * 8:  # the third shard's sixth caption, after the empty one's and two shards' of eight
            states[5] = states[5] * value
        return states, cut

    with pytest.raises(
        ValueError, match=r"train/00002\.tar: the caption of 'train021' has states that are not"
    ) as said:
        embed_captions(data, *ENCODER, encode, 8)
    assert "--remove" in str(said.value)
    target = set_folder(data, "fake", "half")
    made = {path.name: path.stat().st_mtime_ns for path in target.glob("0000*.safetensors")}
    assert sorted(made) == ["00000.safetensors", "00001.safetensors"]
    remove(data, ["train021"])  # as it says; then the caption is the empty one
    embed_captions(data, *ENCODER, fake_encode, 8)
    assert {name: (target / name).stat().st_mtime_ns for name in made} == made
