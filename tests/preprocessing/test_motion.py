import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocessing.pack.video import extract_clip
from preprocessing.sources import motion
from preprocessing.sources.motion import MOTIONS, Motion, make_motion_videos
from preprocessing.sources.openmoji import OpenMoji

PX = 48


class Twelve(OpenMoji):
    """Listing all drawings takes seconds."""

    drawings = OpenMoji(limit=12).drawings


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(motion, "OpenMoji", Twelve)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(motion, "OpenMoji", Twelve)
        return make_motion_videos(tmp_path_factory.mktemp("motion"), len(MOTIONS), PX).parent


def captions(folder: Path) -> dict[str, str]:
    with (folder / "captions.csv").open(encoding="utf-8", newline="") as file:
        return {row["file"]: row["caption"] for row in csv.DictReader(file)}


def ink(frame: bytes) -> tuple[float, float, float]:
    """Of what is not white: middle column and row, and how much there is."""
    dark = 255 - np.asarray(Image.open(io.BytesIO(frame)).convert("L")).astype(float)
    dark[dark < 40] = 0
    rows, columns = np.indices(dark.shape)
    return (columns * dark).sum() / dark.sum(), (rows * dark).sum() / dark.sum(), (dark > 0).sum()


def test_the_motion_is_the_one_that_the_caption_names(made: Path) -> None:
    named = captions(made)
    assert list(named) == [f"{number:05d}.mp4" for number in range(len(MOTIONS))]
    seen = set()
    for name, caption in named.items():
        drawing, _, moves = caption.rpartition(", ")
        assert drawing in {d.caption for d in Twelve.drawings}
        seen.add(moves)
        clip = extract_clip(made / name, PX, 0)
        assert clip.video_frames == 76 and clip.fps == pytest.approx(25) and (clip.width, clip.height) == (PX, PX)
        assert len(set(clip.frames)) == 16
        (x0, y0, much0), (x1, y1, much1) = ink(clip.frames[0]), ink(clip.frames[-1])
        right, down, grown = (x1 - x0) / PX, (y1 - y0) / PX, much1 / much0
        assert {
            "moving left": right < -0.3 and abs(down) < 0.05,
            "moving right": right > 0.3 and abs(down) < 0.05,
            "moving up": down < -0.3 and abs(right) < 0.05,
            "moving down": down > 0.3 and abs(right) < 0.05,
            "zooming in": grown > 1.8,
            "zooming out": grown < 0.6,
            "turning clockwise": 0.7 < grown < 1.4,
            "turning counterclockwise": 0.7 < grown < 1.4,
        }[moves], (caption, right, down, grown)
    assert seen == set(MOTIONS)


@pytest.mark.parametrize(("degrees", "quarter_turns"), [(90, -1), (-90, 1), (180, 2)])
def test_a_turn_is_clockwise(degrees: float, quarter_turns: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    turned = np.asarray(motion._frame(Image.fromarray(pixels), 0, 0, 1, degrees))
    wanted = np.rot90(pixels, quarter_turns)
    assert np.abs(turned[2:-2, 2:-2].astype(int) - wanted[2:-2, 2:-2]).max() <= 2


def test_what_is_made_is_kept_and_more_adds_to_it(made: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    make_motion_videos(tmp_path, 2, PX, lambda done, of: calls.append((done, of)))
    assert calls == [(0, 2), (1, 2), (2, 2)]
    kept = (tmp_path / "00000.mp4").stat().st_mtime_ns
    (tmp_path / "00001.mp4").unlink()  # as a kill would have it: no table, a video missing, one half written
    (tmp_path / "captions.csv").unlink()
    (tmp_path / "00001.mp4.tmp").write_bytes(b"half")
    calls.clear()
    make_motion_videos(tmp_path, 3, PX, lambda done, of: calls.append((done, of)))
    assert calls == [(1, 3), (2, 3), (3, 3)] and (tmp_path / "00000.mp4").stat().st_mtime_ns == kept
    for number in range(3):  # the same bytes as those of a larger set made at once
        name = f"{number:05d}.mp4"
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()
        assert captions(tmp_path)[name] == captions(made)[name]
    assert not list(tmp_path.glob("*.tmp"))


def test_settings_that_cannot_be_are_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="another size"):
        make_motion_videos(made, 1, PX + 2)
    with pytest.raises(ValueError, match="px must be even"):
        make_motion_videos(tmp_path, 1, 33)
    for count in (0, 12 * len(MOTIONS) + 1):
        with pytest.raises(ValueError, match="count must be from 1 to 96"):
            make_motion_videos(tmp_path, count, PX)


def test_the_list_is_that_of_the_videos_and_is_known_before_they_are_made(made: Path, tmp_path: Path) -> None:
    listed = list(Motion(tmp_path / "none", len(MOTIONS)).items())
    assert not (tmp_path / "none").exists()
    assert {f"{item.key}.mp4": item.caption for item in listed} == captions(made)
    assert all(item.place and item.place.file == tmp_path / "none" / f"{item.key}.mp4" for item in listed)
