"""openmoji-motion: drawings that move, as small videos whose captions name the motion.

For tests, and for whoever wants clips to try: the videos go through the same extractor as anyone's.
"""

import csv
import hashlib
import io
import math
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ffmpeg
from imageio_ffmpeg import get_ffmpeg_exe, get_ffmpeg_version
from PIL import Image, __version__

from preprocessing.items import Item, Place
from preprocessing.manifest import make_folder, read_json, write_file, write_json
from preprocessing.pack.images import rasterise_svg
from preprocessing.sources.openmoji import Drawing, OpenMoji
from preprocessing.sources.videos import split_of

COUNT, PX = 300, 128
FRAMES, FPS = 76, 25  # a clip spans 61 of them
# From 0 to 1, the video's length: how far the drawing lies from the centre, to the right and down, in widths of the
# picture; its size, 1 = all of the picture; degrees clockwise.
MOTIONS: dict[str, Callable[[float], tuple[float, float, float, float]]] = {
    "moving left": lambda t: (0.3 - 0.6 * t, 0, 0.6, 0),
    "moving right": lambda t: (0.6 * t - 0.3, 0, 0.6, 0),
    "moving up": lambda t: (0, 0.3 - 0.6 * t, 0.6, 0),
    "moving down": lambda t: (0, 0.6 * t - 0.3, 0.6, 0),
    "zooming in": lambda t: (0, 0, 0.4 + 0.6 * t, 0),
    "zooming out": lambda t: (0, 0, 1 - 0.6 * t, 0),
    "turning clockwise": lambda t: (0, 0, 0.8, 180 * t),
    "turning counterclockwise": lambda t: (0, 0, 0.8, -180 * t),
}


def make_motion_videos(
    folder: Path, count: int = COUNT, px: int = PX, progress: Callable[[int, int], None] = lambda done, of: None
) -> Path:
    """Videos ``00000.mp4``, … (H.264, 76 frames, 25 a second) and ``captions.csv`` in ``folder`` -> the latter's path.

    A video that is there is not made again; a larger count adds to the videos of a smaller one. Raises ValueError for
    a count or size that cannot be, where the folder holds videos of other settings or versions, or cannot be written.
    """
    if px < 16 or px % 2:
        raise ValueError(f"px must be even and at least 16, got {px}: H.264 halves the resolution of colours")
    scenes = _scenes(count)
    make_folder(folder)
    recipe = _recipe(px)
    if (read_json(folder / "motion.json") or recipe) != recipe:
        raise ValueError(
            f"{folder} holds videos of another size or of other versions: use another folder, or delete it"
        )
    write_json(folder / "motion.json", recipe)
    missing = [scene for scene in scenes if not (folder / scene.file).exists()]
    progress(count - len(missing), count)
    pool = ThreadPoolExecutor(os.cpu_count())  # Pillow and ffmpeg leave the interpreter free
    try:
        for done, _ in enumerate(pool.map(lambda scene: _make(folder, scene, px), missing), count - len(missing) + 1):
            progress(done, count)
    finally:
        pool.shutdown(cancel_futures=True)
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows([("file", "caption"), *((s.file, s.caption) for s in scenes)])
    write_file(folder / "captions.csv", table.getvalue().encode())
    return folder / "captions.csv"


@dataclass(frozen=True)
class Scene:
    """A video to be made: which drawing moves how."""

    file: str
    drawing: Drawing
    motion: str

    @property
    def caption(self) -> str:
        return f"{self.drawing.caption}, {self.motion}"


def _scenes(count: int) -> list[Scene]:
    drawings = sorted(OpenMoji().drawings, key=lambda drawing: hashlib.sha256(drawing.key.encode()).digest())
    if not 1 <= count <= len(drawings) * len(MOTIONS):
        raise ValueError(f"count must be from 1 to {len(drawings) * len(MOTIONS):,}, got {count:,}")
    scenes = []
    for number in range(count):
        again, which = divmod(number, len(drawings))
        scenes.append(Scene(f"{number:05d}.mp4", drawings[which], list(MOTIONS)[(which + again) % len(MOTIONS)]))
    return scenes


@dataclass
class Motion:
    """The videos as a source; ``make`` puts those into ``folder`` that are listed and not there yet."""

    folder: Path
    count: int = COUNT
    held_out: float = 0.05

    @property
    def version(self) -> str:
        return OpenMoji().version

    def fingerprint(self) -> dict[str, Any]:
        return {"source": "openmoji-motion", "count": self.count, "held_out": self.held_out, **_recipe(PX)}

    def items(self) -> Iterator[Item]:
        for scene in _scenes(self.count):
            key = Path(scene.file).stem
            yield Item(key, scene.caption, split_of(key, self.held_out), Place(self.folder / scene.file))

    def root(self) -> Path:
        return self.folder

    def notes(self) -> list[str]:
        return []

    def make(self) -> None:
        make_motion_videos(self.folder, self.count)


def _recipe(px: int) -> dict[str, Any]:
    return {"px": px, "from": f"{OpenMoji().version}, Pillow {__version__}, ffmpeg {get_ffmpeg_version()}"}


def _make(folder: Path, scene: Scene, px: int) -> None:
    picture = Image.fromarray(rasterise_svg(scene.drawing.path, px))
    frames = (_frame(picture, *MOTIONS[scene.motion](i / (FRAMES - 1))) for i in range(FRAMES))
    write_file(folder / scene.file, _encode(b"".join(frame.tobytes() for frame in frames), px))


def _frame(picture: Image.Image, right: float, down: float, size: float, degrees: float) -> Image.Image:
    """The drawing moved, on white."""
    centre, turn = picture.width / 2, math.radians(degrees)
    cos, sin = math.cos(turn) / size, math.sin(turn) / size
    x, y = centre + right * picture.width, centre + down * picture.width  # where the drawing's centre comes to lie
    place = (cos, sin, centre - cos * x - sin * y, -sin, cos, centre + sin * x - cos * y)  # of a pixel's source
    white = (255, 255, 255)
    return picture.transform(picture.size, Image.Transform.AFFINE, place, Image.Resampling.BICUBIC, fillcolor=white)


def _encode(pixels: bytes, px: int) -> bytes:
    """RGB, uint8 [frames, px, px, 3] -> mp4; the same bytes for the same pixels."""
    with tempfile.TemporaryDirectory() as folder:  # an mp4 is not written in one go: a pipe does not do
        path = Path(folder) / "video.mp4"
        command = (
            ffmpeg.input("pipe:0", f="rawvideo", pix_fmt="rgb24", s=f"{px}x{px}", framerate=FPS)
            .output(
                str(path),
                **{"c:v": "libx264", "flags:v": "+bitexact", "fflags": "+bitexact"},
                preset="veryfast",
                crf=18,
                pix_fmt="yuv420p",
                threads=1,
            )
            .global_args("-hide_banner", "-loglevel", "error")
            .compile(cmd=get_ffmpeg_exe())
        )
        done = subprocess.run(command, input=pixels, capture_output=True, timeout=120)
        if done.returncode != 0:
            raise RuntimeError(f"ffmpeg cannot encode: {done.stderr.decode(errors='replace').strip()[-500:]}")
        return path.read_bytes()
