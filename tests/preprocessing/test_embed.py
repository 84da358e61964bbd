from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from drawn import Inline, write_drawings
from preprocessing.embed import embed_captions, finished_set, read_captions, stored_states
from preprocessing.manifest import read_manifest
from preprocessing.pack import making
from preprocessing.sources.openmoji import OpenMoji

SOURCE = OpenMoji(limit=13, val_fraction=0.08)
DIM = 6


class Encoder:
    """A state per word, and one before them; captions of more than three words are cut. Keeps what it was asked."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.asked: list[str] = []
        self.fail_after = fail_after

    def __call__(self, captions: list[str]) -> tuple[list[np.ndarray], int]:
        if self.fail_after is not None and len(self.asked) > self.fail_after:
            raise KeyboardInterrupt
        self.asked += captions
        words = [["", *caption.split()] for caption in captions]
        states = [np.array([[len(w) + i] * DIM for i, w in enumerate(ws[:4])], np.float32) for ws in words]
        return states, sum(len(ws) > 4 for ws in words)


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "ProcessPoolExecutor", Inline)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_drawings(tmp_path, SOURCE)
    return tmp_path / "train"


def test_states_lie_end_to_end(data: Path) -> None:
    encoder, seen = Encoder(), []
    manifest = embed_captions(data, "words", "v1", encoder, 4, lambda done, total: seen.append((done, total)))
    assert encoder.asked == ["", *(drawing.caption for drawing in SOURCE.split("train"))]
    assert manifest["dim"] == DIM and manifest["data_digest"] == read_manifest(data)["digest"]
    assert manifest["truncated"] == sum(len(d.caption.split()) > 3 for d in SOURCE.split("train"))
    assert seen[-1] == (len(SOURCE.split("train")),) * 2
    for shard in read_manifest(data)["shards"]:
        captions = read_captions(data / shard["file"])
        file = load_file(data / "text-words" / Path(shard["file"]).with_suffix(".safetensors"))
        assert file["tokens"].dtype == np.float16 and file["offsets"].dtype == np.int64
        assert len(file["offsets"]) == len(captions) + 1 and file["offsets"][-1] == len(file["tokens"])
        for i, caption in enumerate(captions):
            mine = file["tokens"][file["offsets"][i] : file["offsets"][i + 1]]
            np.testing.assert_array_equal(mine, Encoder()([caption])[0][0])
    assert load_file(data / "text-words" / "null.safetensors")["tokens"].shape == (1, DIM)


def test_done_asks_for_nothing(data: Path) -> None:
    first = embed_captions(data, "words", "v1", Encoder(), 4)
    again = Encoder()
    assert embed_captions(data, "words", "v1", again, 4) == first
    assert again.asked == []


def test_interrupted_goes_on(data: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        embed_captions(data, "words", "v1", Encoder(fail_after=4), 4)
    assert not (data / "text-words" / "manifest.json").exists()
    rest = Encoder()
    manifest = embed_captions(data, "words", "v1", rest, 4)
    assert 1 < len(rest.asked) < 1 + len(SOURCE.split("train"))
    write_drawings(tmp_path / "whole", SOURCE)
    assert embed_captions(tmp_path / "whole" / "train", "words", "v1", Encoder(), 4) == manifest


def test_another_encoder_or_a_missing_file_is_made_again(data: Path) -> None:
    first = embed_captions(data, "words", "v1", Encoder(), 4)
    other = Encoder()
    assert embed_captions(data, "words", "v2", other, 4)["digest"] != first["digest"]
    assert len(other.asked) == 1 + len(SOURCE.split("train"))
    (data / "text-words" / "00001.safetensors").unlink()
    mended = Encoder()
    embed_captions(data, "words", "v2", mended, 4)
    assert len(mended.asked) == 1 + read_manifest(data)["shards"][1]["samples"]


def test_an_encoder_that_loses_a_caption_is_refused(data: Path) -> None:
    def loses(captions: list[str]) -> tuple[list[np.ndarray], int]:
        return Encoder()(captions)[0][: len(captions) - 1 or 1], 0

    with pytest.raises(ValueError, match=r"3 results for 4 captions of 00000\.tar"):
        embed_captions(data, "words", "v1", loses, 4)


def test_a_shard_without_its_index_is_named(data: Path) -> None:
    (data / "00001.idx.npy").unlink()
    with pytest.raises(ValueError, match=r"00001\.tar or its index"):
        embed_captions(data, "words", "v1", Encoder(), 4)


def test_8_bits_are_another_set_of_half_the_size(data: Path) -> None:
    half = embed_captions(data, "words", "v1", Encoder(), 4)
    eight = embed_captions(data, "words", "v1", Encoder(), 4, precision="8bit")
    assert half["digest"] != eight["digest"] and half["truncated"] == eight["truncated"]
    assert embed_captions(data, "words", "v1", Encoder(fail_after=-1), 4) == half  # neither has touched the other
    for shard in read_manifest(data)["shards"]:
        name = Path(shard["file"]).with_suffix(".safetensors")
        exact, small = (load_file(data / folder / name) for folder in ("text-words", "text-words-8bit"))
        assert small["tokens"].dtype == np.int8 and small["scales"].dtype == np.float32
        np.testing.assert_array_equal(small["offsets"], exact["offsets"])
        states = exact["tokens"].astype(np.float32)
        error = np.abs(small["tokens"] * small["scales"][:, None] - states)
        assert (error <= np.abs(states).max(axis=1, keepdims=True) / 254 * (1 + 1e-5)).all()
    other = Encoder()
    embed_captions(data, "words", "v2", other, 4, precision="8bit")  # a changed encoder: made again, all of it
    assert len(other.asked) == 1 + len(SOURCE.split("train"))


def test_a_finished_set_is_of_this_encoder_and_limit_and_precision_and_whole(data: Path) -> None:
    manifest = embed_captions(data, "words", "v1", Encoder(), 4)
    assert finished_set(data, "words", "v1", 4, "half") == manifest
    assert finished_set(data, "words", "v2", 4, "half") is None
    assert finished_set(data, "words", "v1", 5, "half") is None
    assert finished_set(data, "words", "v1", 4, "8bit") is None
    (data / "text-words" / "00000.safetensors").unlink()
    assert finished_set(data, "words", "v1", 4, "half") is None


def test_8_bits_keep_zeros_and_the_largest_entry() -> None:
    stored = stored_states([np.array([[0, 0], [-3, 1.5]], np.float32)], "8bit")
    assert stored["tokens"].tolist() == [[0, 0], [-127, 64]]
    assert (stored["tokens"] * stored["scales"][:, None])[1, 0] == pytest.approx(-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e5])
def test_states_beyond_half_precision_are_refused(bad: float) -> None:
    for precision in ("half", "8bit"):
        with pytest.raises(ValueError, match="not finite or too large for half precision"):
            stored_states([np.array([[1, bad]], np.float32)], precision)
