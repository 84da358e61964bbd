"""A video -> the 16 frames of one clip, as JPEGs. Videos come from anywhere: they are decoded by a child with limits.

ffmpeg runs twice. The first time it lists the times of the frames without decoding them; the second time it seeks, and
gives exactly the frames of the chosen times. Where a container does not know the times, or they are not those of what
is decoded (frames that are not shown, two fields of a frame), the first run is repeated with decoding.
"""

import contextlib
import hashlib
import io
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import ffmpeg
import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

FRAMES, EVERY = 16, 4  # of a clip (App. F): 16 frames, every 4th of the video
FILTER = "lanczos"  # swscale widens it where it shrinks a picture, so that nothing aliases
MAX_PIXELS = 4096 * 4096  # of a frame
MAX_FRAMES = 1_000_000  # of a video: 11 hours at 25 a second
MAX_MEMORY_BYTES = 2 << 30
MAX_MESSAGES_BYTES = 1 << 20  # of ffmpeg's own words about one video
# Containers that hold their pictures themselves. Not among them: playlists, which name other files and addresses.
CONTAINERS = "mov,matroska,avi,flv,mpegts,mpeg,ogg,asf"
REASONS = (
    "cannot be read",
    "empty",
    "not a video",
    "no video stream",
    "truncated",
    "damaged",
    "too many pixels",
    "too many frames",
    "fewer than 16 frames",
    "deadline",
    "out of memory",
)
SAID = {  # by ffmpeg, the first that fits -> why
    "max pixel count": "too many pixels",
    "matches no streams": "no video stream",
    "Cannot allocate memory": "out of memory",
    "moov atom not found": "truncated",
    "partial file": "truncated",
    "File ended prematurely": "truncated",
    "Error opening input": "not a video",
}
PREFIX = re.compile(r"\[[^]]* @ 0x[0-9a-f]+\] ")  # of what ffmpeg says: an address, another each time
SHOWN = re.compile(r"^\[Parsed_showinfo_\S+ @ \S+\] n: *\d+ pts: *(-?\d+) .* sar:(\d+)/(\d+) s:(\d+)x(\d+) ", re.M)


class Refused(ValueError):
    """A video that gives no clip. ``reason`` is one of REASONS; ``detail``, for people, may quote hostile text."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, "".join(c if c.isprintable() else " " for c in detail)[:300]
        super().__init__(f"{reason}: {self.detail}")


@dataclass(frozen=True)
class Clip:
    """What ``extract_clip`` took out of a video."""

    frames: list[bytes]  # 16 JPEGs, px x px
    times_s: list[float]  # when each is shown, from the first frame of the video
    start: int  # number of the first in the video
    stride: float  # frames of the video from one to the next, on average: 4, or less in a short video
    width: int  # of the video as it is shown, upright and with square pixels
    height: int
    fps: float  # on average
    video_frames: int


def extract_clip(video: Path, px: int, seed: int, deadline_s: float = 60) -> Clip:
    """One clip of a video: 16 distinct frames, upright, centre crops of the resized picture, JPEG q95 4:4:4.

    It spans 61 frames, or all of a shorter video, and starts at a place that follows from the seed and the file's name
    without extension. Raises Refused where the video gives no 16 frames within so many seconds of wall clock.
    """
    if px < 16:
        raise ValueError(f"px must be at least 16, got {px}")
    end = time.monotonic() + deadline_s
    try:
        file = video.open("rb")
    except OSError as error:
        raise Refused("cannot be read", str(error.strerror or error)) from error
    with file:
        if not os.fstat(file.fileno()).st_size:
            raise Refused("empty", "0 bytes")
        if _is_cut(file.fileno()):
            raise Refused("truncated", "its parts are longer than the file")
        return _extract(file.fileno(), f"{seed} {video.stem}", px, end)


def _is_cut(file: int) -> bool:
    """Whether an mp4 or avi says that it is longer than it is. Of a cut index, ffmpeg shows only what is left.

    Of a Matroska file ffmpeg says it itself; an MPEG stream has no length: what is there is all.
    """
    size, at = os.fstat(file).st_size, 0
    for _ in range(1000):  # boxes; an mp4 has about four
        header = os.pread(file, 16, at)
        if at == 0 and header[:4] == b"RIFF":
            return 8 + int.from_bytes(header[4:8], "little") > size
        length = int.from_bytes(header[8:16] if header[:4] == b"\0\0\0\1" else header[:4])
        if length < 8 or (at == 0 and header[4:8] != b"ftyp"):
            break
        at += length
    return at > size


def _extract(file: int, where: str, px: int, end: float) -> Clip:
    for decode in (False, True):
        frames = _list_frames(file, decode, end)
        if frames is None:
            continue
        times, base = frames
        if len(times) < FRAMES:
            raise Refused("fewer than 16 frames", f"{len(times)} frames")
        span = min(len(times), (FRAMES - 1) * EVERY + 1)
        start = int(hashlib.sha256(os.fsencode(where)).hexdigest(), 16) % (len(times) - span + 1)
        # As AnimateDiff's linspace of whole numbers; each is another frame, as span >= FRAMES.
        chosen = [times[start + i * (span - 1) // (FRAMES - 1)] for i in range(FRAMES)]
        seek_s = float(chosen[0] * base) if start and not decode else None
        try:
            pixels, shown = _decode(file, chosen, seek_s, px, end)
        except Refused as refused:
            if refused.reason != "damaged" or decode:
                raise
            continue  # perhaps only where it was sought
        if [pts for pts, *_ in shown] != chosen or len(pixels) != FRAMES * px * px * 3:
            continue
        _, sar, width, height = shown[0]
        return Clip(
            frames=[_jpeg(frame) for frame in np.frombuffer(pixels, np.uint8).reshape(FRAMES, px, px, 3)],
            times_s=[float((pts - times[0]) * base) for pts in chosen],
            start=start,
            stride=(span - 1) / (FRAMES - 1),
            width=round(width * sar),
            height=height,
            fps=float((len(times) - 1) / ((times[-1] - times[0]) * base)),
            video_frames=len(times),
        )
    raise Refused("damaged", "the frames that were listed cannot be decoded")


def _jpeg(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _list_frames(file: int, decode: bool, end: float) -> tuple[list[int], Fraction] | None:
    """The times at which frames are shown, ascending, and the time that they are counted in, in seconds.

    None where the packets do not tell. Raises Refused.
    """
    how = {"vf": "scale=16:16", "fps_mode": "passthrough", "enc_time_base": "demux", "c:v": "rawvideo"}
    output = ffmpeg.output(
        _input(file), "pipe:1", f="framecrc", **{"frames:v": MAX_FRAMES}, **(how if decode else {"c:v": "copy"})
    )
    listed, said = _run(output.global_args("-loglevel", "error"), file, end)
    lines = listed.decode("ascii", "replace").splitlines()
    about = dict(line[1:].split(" 0: ", 1) for line in lines if line.startswith("#") and " 0: " in line)
    width, _, height = about.get("dimensions", "0x0").partition("x")
    if int(width) * int(height) > MAX_PIXELS:
        raise Refused("too many pixels", f"{width} x {height}")
    packets = [line.split(",") for line in lines if not line.startswith("#")]
    if len(packets) >= MAX_FRAMES:
        raise Refused("too many frames", f"{MAX_FRAMES:,} or more")
    refusal = _refusal(said, 0)  # of a file that is cut, ffmpeg lists what there is, and succeeds
    if refusal.reason == "truncated":
        raise refusal
    # Those before the beginning of an edit list are decoded, but not shown: AV_PKT_FLAG_DISCARD is 4.
    times = [int(p[2]) for p in packets if not any(int(f[3:], 16) & 4 for f in p if f.startswith(" F="))]
    if not decode and (any(t == -(2**63) for t in times) or len(set(times)) < len(times)):
        return None
    return sorted(set(times)), Fraction(about.get("tb", "1/1"))


def _decode(
    file: int, chosen: list[int], seek_s: float | None, px: int, end: float
) -> tuple[bytes, list[tuple[int, Fraction, int, int]]]:
    """The frames of the chosen times: RGB, uint8 [frames, px, px, 3], and of each its time, shape of a pixel, size."""
    seek = {} if seek_s is None else {"seek_timestamp": 1, "ss": f"{seek_s:.6f}", "noaccurate_seek": None}
    wanted = "+".join(f"eq(pts,{pts})" for pts in chosen)
    filters = (
        f"select='({wanted})*(isnan(prev_selected_pts)+gt(pts,prev_selected_pts))'",  # the same time twice: once
        "showinfo=checksum=0",
        # First the crop: a picture of 60,000 x 16 resized whole would be enormous.
        "crop=w='min(iw,ih/sar)':h='min(ih,iw*sar)'",
        f"scale={px}:{px}:flags={FILTER}+accurate_rnd+full_chroma_int+bitexact",
        "format=rgb24",
    )
    output = ffmpeg.output(
        _input(file, **seek),
        "pipe:1",
        f="rawvideo",
        vf=",".join(filters),
        fps_mode="passthrough",
        **{"frames:v": len(chosen)},
    )
    pixels, said = _run(output.global_args("-loglevel", "info", "-nostats", "-xerror"), file, end)
    shown = [
        (int(pts), Fraction(int(a), int(b)) if int(a) and int(b) else Fraction(1), int(width), int(height))
        for pts, a, b, width, height in SHOWN.findall(said)
    ]
    return pixels, shown


def _input(file: int, **options: Any) -> Any:
    """The first video stream that is no cover picture: read by one thread, from the file alone.

    By descriptor: a file's name says nothing about what is in it, and may hold anything.
    """
    limits = {"protocol_whitelist": "file,pipe", "format_whitelist": CONTAINERS, "max_pixels": MAX_PIXELS, "threads": 1}
    return ffmpeg.input(f"file:/dev/fd/{file}", **limits, **options)["V:0"]


def _run(output: Any, file: int, end: float) -> tuple[bytes, str]:
    """What ffmpeg wrote, and what it said. Raises Refused where it fails, or does not end in time."""
    arguments = ("-nostdin", "-hide_banner", "-copyts", "-filter_threads", "1")
    left_s = max(end - time.monotonic(), 0.001)
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            output.global_args(*arguments).compile(cmd=get_ffmpeg_exe()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=messages,
            pass_fds=(file,),
            process_group=0,
        )
        try:
            _limit(process.pid, left_s)
            written, _ = process.communicate(timeout=left_s)
        except subprocess.TimeoutExpired:
            raise Refused("deadline", "not decoded in time") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        messages.seek(0)
        said = messages.read(MAX_MESSAGES_BYTES).decode("utf-8", "replace")
    if process.returncode != 0:
        raise _refusal(said, process.returncode)
    return written, said


def _limit(pid: int, wall_s: float) -> None:
    """Bound what a child may take, also when this process is killed. Elsewhere than on Linux its input is bounded."""
    if sys.platform == "linux":
        for kind, most in (
            (resource.RLIMIT_AS, MAX_MEMORY_BYTES),
            (resource.RLIMIT_CPU, 4 * int(wall_s) + 4),  # of all its threads
            (resource.RLIMIT_FSIZE, MAX_MESSAGES_BYTES),
        ):
            with contextlib.suppress(ProcessLookupError):  # it has ended
                resource.prlimit(pid, kind, (most, most))


def _refusal(said: str, code: int) -> Refused:
    """Why ffmpeg failed, by what it said."""
    lines = [PREFIX.sub("", line) for line in said.strip().splitlines()] or [f"ffmpeg ended with {code}"]
    for words, reason in SAID.items():
        line = next((line for line in lines if words in line), None)
        if line is not None:
            return Refused(reason, line)
    return Refused("damaged", next((line for line in reversed(lines) if "invalid" in line.lower()), lines[-1]))
