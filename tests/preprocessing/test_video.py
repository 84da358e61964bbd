"""Every frame of these videos shows its own number, so that a test can say which of them came out, and which way up."""

import io
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image, JpegImagePlugin

from preprocessing.pack import video as video_module
from preprocessing.pack.video import MAX_MEMORY_BYTES, REASONS, Clip, Refused, extract_clip

CELLS = 4  # the middle square has 4 x 4: a row of colours, which says what is up, and two rows of 8 bits
COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)], np.uint8)


def picture(number: int, width: int, height: int) -> np.ndarray:
    cells = np.zeros((CELLS, CELLS, 3), np.uint8)
    cells[0] = COLOURS
    cells[1:3] = np.array([number >> bit & 1 for bit in range(8)], np.uint8).reshape(2, 4, 1) * 255
    side = min(width, height) // CELLS
    middle = cells.repeat(side, 0).repeat(side, 1)
    canvas = np.full((height, width, 3), 128, np.uint8)
    top, left = (height - len(middle)) // 2, (width - len(middle)) // 2
    canvas[top : top + len(middle), left : left + len(middle)] = middle
    return canvas


def numbers(clip: Clip, quarter_turns: int = 0) -> list[int]:
    """The number that each frame shows. A frame that does not stand upright fails."""
    found = []
    for frame in clip.frames:
        pixels = np.rot90(np.asarray(Image.open(io.BytesIO(frame))), -quarter_turns)
        centres = (np.arange(CELLS) * 2 + 1) * len(pixels) // (2 * CELLS)
        cells = pixels[centres][:, centres].astype(int)
        assert np.abs(cells[0] - COLOURS).max() < 90, cells[0]
        found.append(sum(int(value > 128) << bit for bit, value in enumerate(cells[1:3].mean(-1).ravel())))
    return found


def expected(clip: Clip) -> list[int]:
    span = min(clip.video_frames, 61)
    return [clip.start + i * (span - 1) // 15 for i in range(16)]


def ffmpeg(*arguments: object, frames: bytes | None = None) -> None:
    command = [get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y", *map(str, arguments)]
    subprocess.run(command, input=frames, check=True, timeout=60)


def make(path: Path, count: int, *output: object, size: tuple[int, int] = (160, 96)) -> None:
    raw = b"".join(picture(number, *size).tobytes() for number in range(count))
    arguments = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "x".join(map(str, size)), "-r", 25, "-i", "pipe:0")
    ffmpeg(*arguments, "-pix_fmt", "yuv420p", *output, path, frames=raw)


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    make(folder / "plain.mp4", 100)
    for count in (15, 16, 30):
        make(folder / f"of{count}.mp4", count)
    make(folder / "odd.mkv", 75, "-c:v", "ffv1", size=(162, 98))
    make(folder / "vp8.webm", 75, "-c:v", "libvpx", "-deadline", "realtime")
    make(folder / "no_times.avi", 75, "-c:v", "mpeg4", "-bf", 2)
    make(folder / "stream.ts", 75, "-g", 20)
    make(folder / "keyframes.mp4", 100, "-g", 12)
    make(folder / "wide_pixels.mp4", 70, "-vf", "scale=80:96,setsar=2/1")
    late = "setpts='if(lt(N,20),N*6,120+N-20)/30/TB'"  # 5 a second, then 30
    make(folder / "vfr.mp4", 50, "-vf", late, "-fps_mode", "vfr", "-enc_time_base", "1:30")
    plain = folder / "plain.mp4"
    ffmpeg("-display_rotation", 90, "-i", plain, "-c", "copy", folder / "rotated.mp4")
    ffmpeg("-ss", 1.02, "-i", plain, "-c", "copy", folder / "edit_list.mp4")
    ffmpeg("-i", plain, "-c", "copy", "-movflags", "+faststart", folder / "index_first.mp4")
    sound = ("-f", "lavfi", "-i", "sine=duration=3")
    ffmpeg(*sound, "-i", plain, "-c:v", "copy", folder / "with_sound.mp4")
    ffmpeg(*sound, "-f", "mp4", folder / "audio_only.mp4")
    large = ("-f", "lavfi", "-i", "color=size=6000x4000:rate=25:duration=0.04")
    ffmpeg(*large, "-preset", "ultrafast", "-pix_fmt", "yuv420p", folder / "large.mp4")
    return folder


@pytest.fixture
def fake_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def install(script: str) -> None:
        path = tmp_path / "ffmpeg"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(video_module, "get_ffmpeg_exe", lambda: str(path))

    return install


def refused(path: Path, deadline_s: float = 20) -> str:
    with pytest.raises(Refused) as caught:
        extract_clip(path, 64, 0, deadline_s)
    assert caught.value.reason in REASONS and str(caught.value).startswith(caught.value.reason)
    return caught.value.reason


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["plain.mp4", "keyframes.mp4", "index_first.mp4", "with_sound.mp4"])
def test_every_fourth_frame_from_a_random_start(videos: Path, name: str, seed: int) -> None:
    clip = extract_clip(videos / name, 64, seed)
    assert numbers(clip) == expected(clip) == [clip.start + 4 * i for i in range(16)]
    assert clip.times_s == pytest.approx([number / 25 for number in numbers(clip)])
    assert (clip.stride, clip.width, clip.height, clip.fps, clip.video_frames) == (4, 160, 96, pytest.approx(25), 100)


@pytest.mark.parametrize("name", ["odd.mkv", "vp8.webm", "no_times.avi", "stream.ts"])
def test_any_container_gives_the_same_frames(videos: Path, name: str) -> None:
    clip = extract_clip(videos / name, 64, 3)
    assert numbers(clip) == expected(clip) and clip.video_frames == 75
    assert clip.times_s == pytest.approx([number / 25 for number in numbers(clip)], abs=0.002)
    assert (clip.width, clip.height) == ((162, 98) if name == "odd.mkv" else (160, 96))


def test_packets_without_times_are_counted_by_decoding(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = []
    original = video_module._list_frames

    def spy(file: int, decode: bool, end: float) -> object:
        listed.append(decode)
        return original(file, decode, end)

    monkeypatch.setattr(video_module, "_list_frames", spy)
    for name in ("plain.mp4", "vfr.mp4", "edit_list.mp4", "rotated.mp4", "odd.mkv", "vp8.webm"):
        extract_clip(videos / name, 64, 1)
    assert listed == [False] * 6  # the fast way is taken
    extract_clip(videos / "no_times.avi", 64, 1)
    assert listed[6:] == [False, True]


def test_a_short_video_takes_a_smaller_stride(videos: Path) -> None:
    sixteen, thirty = (extract_clip(videos / f"of{count}.mp4", 64, 0) for count in (16, 30))
    assert numbers(sixteen) == list(range(16)) and sixteen.stride == 1
    assert numbers(thirty) == [i * 29 // 15 for i in range(16)] and thirty.stride == pytest.approx(29 / 15)
    assert (sixteen.start, thirty.start) == (0, 0)
    assert refused(videos / "of15.mp4") == "fewer than 16 frames"


def test_a_rotation_tag_is_applied(videos: Path) -> None:
    clip = extract_clip(videos / "rotated.mp4", 64, 0)
    assert (clip.width, clip.height) == (96, 160)
    assert numbers(clip, quarter_turns=1) == expected(clip)  # counterclockwise, as np.rot90 and ffmpeg count them
    upright = extract_clip(videos / "plain.mp4", 64, 0)
    assert numbers(upright) == expected(upright)


def test_pixels_that_are_not_square_are_made_so(videos: Path) -> None:
    clip = extract_clip(videos / "wide_pixels.mp4", 64, 0)
    assert (clip.width, clip.height) == (160, 96) and numbers(clip) == expected(clip)


def test_a_variable_frame_rate_gives_distinct_frames_at_their_times(videos: Path) -> None:
    clip = extract_clip(videos / "vfr.mp4", 64, 0)
    assert numbers(clip) == expected(clip) == [i * 49 // 15 for i in range(16)]
    assert clip.times_s == pytest.approx([(n * 6 if n < 20 else 100 + n) / 30 for n in numbers(clip)])
    assert clip.fps == pytest.approx(49 / (149 / 30))


def test_what_an_edit_list_hides_is_not_there(videos: Path) -> None:
    clip = extract_clip(videos / "edit_list.mp4", 64, 0)
    assert clip.video_frames == 74
    assert numbers(clip) == [26 + number for number in expected(clip)]
    assert clip.times_s == pytest.approx([number / 25 for number in expected(clip)])


def test_frames_are_jpegs_of_full_colour_and_the_same_each_time(videos: Path) -> None:
    clip = extract_clip(videos / "plain.mp4", 96, 7)
    assert clip == extract_clip(videos / "plain.mp4", 96, 7)
    image = Image.open(io.BytesIO(clip.frames[0]))
    assert isinstance(image, JpegImagePlugin.JpegImageFile) and image.size == (96, 96)
    assert JpegImagePlugin.get_sampling(image) == 0 and not image.getexif()
    wanted = picture(clip.start, 160, 96)[:, 32:128].astype(int)  # at 96 px nothing is resized
    assert np.abs(np.asarray(image) - wanted).mean() < 8


def test_the_start_follows_from_seed_and_name(videos: Path, tmp_path: Path) -> None:
    starts = {extract_clip(videos / "plain.mp4", 16, seed).start for seed in range(8)}
    assert len(starts) > 3 and all(0 <= start <= 39 for start in starts)
    other = tmp_path / "other.mp4"
    other.write_bytes((videos / "plain.mp4").read_bytes())
    assert [extract_clip(other, 16, s).start for s in range(3)] != [
        extract_clip(videos / "plain.mp4", 16, s).start for s in range(3)
    ]


@pytest.mark.parametrize("name", ["plain.mp4", "index_first.mp4", "odd.mkv", "no_times.avi"])
@pytest.mark.parametrize("part", [0.3, 0.9, 0.99])
def test_a_truncated_file_is_refused_though_its_beginning_has_frames(
    videos: Path, tmp_path: Path, name: str, part: float
) -> None:
    data = (videos / name).read_bytes()
    cut = tmp_path / name
    cut.write_bytes(data[: int(len(data) * part)])
    assert refused(cut) == "truncated"


def test_a_damaged_stream_is_refused(videos: Path, tmp_path: Path) -> None:
    data = bytearray((videos / "index_first.mp4").read_bytes())
    data[len(data) // 2 : len(data) * 3 // 4] = bytes(len(data) * 3 // 4 - len(data) // 2)
    (tmp_path / "damaged.mp4").write_bytes(data)
    assert refused(tmp_path / "damaged.mp4") == "damaged"


def test_what_is_no_video_is_refused_by_name(videos: Path, tmp_path: Path) -> None:
    assert refused(videos / "audio_only.mp4") == "no video stream"
    assert refused(tmp_path / "missing.mp4") == "cannot be read"
    for name, data, reason in (
        ("empty.mp4", b"", "empty"),
        ("text.mp4", b"<html>404 Not Found</html>", "not a video"),
        ("text.mkv", b"<html>404 Not Found</html>", "not a video"),
        ("noise.mp4", np.random.default_rng(0).bytes(5000), "not a video"),
    ):
        (tmp_path / name).write_bytes(data)
        assert refused(tmp_path / name) == reason, name
    Image.new("RGB", (64, 64)).save(tmp_path / "picture.png")
    assert refused((tmp_path / "picture.png").rename(tmp_path / "picture.mp4")) == "not a video"


def test_nothing_that_a_playlist_names_is_fetched(videos: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.ts"
        for playlist in (f"#EXTM3U\n#EXTINF:1,\n{address}\n", f"ffconcat version 1.0\nfile '{address}'\n"):
            for name in ("playlist.mp4", "playlist.m3u8", "playlist"):
                (tmp_path / name).write_text(playlist)
                assert refused(tmp_path / name) == "not a video"
        (tmp_path / "other.ffconcat").write_text(f"ffconcat version 1.0\nfile '{videos / 'plain.mp4'}'\n")
        assert refused(tmp_path / "other.ffconcat") == "not a video"
        with pytest.raises(BlockingIOError):
            server.accept()


def test_too_many_pixels_are_refused_before_they_are_decoded(videos: Path) -> None:
    with pytest.raises(Refused, match="too many pixels: 6000 x 4000"):
        extract_clip(videos / "large.mp4", 64, 0)


def test_a_video_that_grows_past_the_pixels_that_its_header_says_is_refused(videos: Path, tmp_path: Path) -> None:
    streams = [tmp_path / "small.h264", tmp_path / "large.h264"]
    for name, stream in zip(("of30.mp4", "large.mp4"), streams, strict=True):
        ffmpeg("-i", videos / name, "-preset", "ultrafast", stream)
    streams[0].write_bytes(b"".join(stream.read_bytes() for stream in streams))
    ffmpeg("-i", streams[0], "-c", "copy", tmp_path / "grows.ts")
    assert refused(tmp_path / "grows.ts") == "too many pixels"


def test_too_many_frames_are_refused(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_module, "MAX_FRAMES", 90)
    assert refused(videos / "plain.mp4") == "too many frames"


def test_a_decoder_that_hangs_is_ended_with_its_children(
    videos: Path, tmp_path: Path, fake_ffmpeg: Callable[[str], None]
) -> None:
    fake_ffmpeg(f"sleep 60 & echo $! > {tmp_path}/pid; wait")
    began = time.monotonic()
    assert refused(videos / "plain.mp4", deadline_s=0.5) == "deadline"
    assert time.monotonic() - began < 5
    status = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/status")
    time.sleep(0.1)
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_a_decoder_that_gives_nothing_is_no_success(videos: Path, fake_ffmpeg: Callable[[str], None]) -> None:
    fake_ffmpeg("exit 0")
    assert refused(videos / "plain.mp4") == "fewer than 16 frames"
    fake_ffmpeg(f'case "$*" in *framecrc*) exec {get_ffmpeg_exe()} "$@";; esac')
    assert refused(videos / "plain.mp4") == "damaged"


def test_a_decoder_has_limits_of_memory_and_of_words(videos: Path, fake_ffmpeg: Callable[[str], None]) -> None:
    fake_ffmpeg("sleep 0.3; ulimit -v >&2; exit 1")
    with pytest.raises(Refused, match=f"damaged: {MAX_MEMORY_BYTES // 1024}$"):
        extract_clip(videos / "plain.mp4", 64, 0)
    fake_ffmpeg("exec yes >&2")
    assert refused(videos / "plain.mp4") == "damaged"


def test_hostile_words_are_shown_as_text() -> None:
    refusal = Refused("damaged", "a\x1b[31m\u202eb\r\nc" + "x" * 1000)
    assert str(refusal).isprintable() and len(str(refusal)) < 400


def test_a_name_is_a_name(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-i.mp4", "http:x.mp4", "a b'c,[d];%d.mp4", os.fsdecode(b"caf\xe9.mp4")):
        Path(name).write_bytes((videos / "of16.mp4").read_bytes())
        assert len(extract_clip(Path(name), 16, 0).frames) == 16
