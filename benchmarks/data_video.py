"""What a clip costs: ``extract_clip`` beside a bare ffmpeg that seeks, selects, scales and writes 16 JPEGs.

    taskset -c 1 python -m benchmarks.data_video [--rounds 5]

Videos like WebVid's are made first: 596 x 336, 25 a second, 18 s, a keyframe every 250 frames. Both take the same
clips, one thread each, in turn in every round. The bare loop is told where to begin and checks nothing: it need not
count frames, and does not notice a video that is cut or turned.
"""

import subprocess
import tempfile
import time
from pathlib import Path

from imageio_ffmpeg import get_ffmpeg_exe

from benchmarks.rows import Row, rounds_asked, show
from preprocessing.pack.video import extract_clip

PX, LIMIT = 256, 0.9  # of the bare loop's clips a second


def ffmpeg(*arguments: object) -> None:
    command = [get_ffmpeg_exe(), "-nostdin", "-hide_banner", "-loglevel", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True, timeout=120)


def make_video(path: Path, number: int) -> None:
    picture = f"mandelbrot=size=596x336:rate=25:start_scale={3 - 0.3 * (number % 8)},noise=alls=6:allf=t"
    ffmpeg("-f", "lavfi", "-i", picture, "-t", 18, "-preset", "veryfast", "-g", 250, "-pix_fmt", "yuv420p", path)


def bare(path: Path, start_s: float, folder: Path) -> None:
    filters = f"select='not(mod(n,4))',scale={PX}:{PX}:force_original_aspect_ratio=increase,crop={PX}:{PX}"
    ends = ("-frames:v", 16, "-fps_mode", "passthrough", "-pix_fmt", "yuvj444p", "-q:v", 2)
    ffmpeg("-threads", 1, "-ss", start_s, "-i", path, "-an", "-vf", filters, *ends, folder / f"{path.stem}-%d.jpg")


def measure(rounds: int, count: int = 8) -> list[Row]:
    found: dict[str, list[float]] = {"extract_clip": [], "bare ffmpeg": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = [folder / f"{number}.mp4" for number in range(count)]
        for number, path in enumerate(videos):
            make_video(path, number)
        starts = [extract_clip(path, PX, seed=0).times_s[0] for path in videos]  # warms the page cache, too
        for _ in range(rounds):
            for way, rates in found.items():
                began = time.perf_counter()
                for path, start_s in zip(videos, starts, strict=True):
                    if way == "bare ffmpeg":
                        bare(path, start_s, folder)
                        continue
                    for i, frame in enumerate(extract_clip(path, PX, seed=0).frames):
                        (folder / f"{path.stem}-{i}.jpeg").write_bytes(frame)
                rates.append(count / (time.perf_counter() - began))
    ratios = [mine / other for mine, other in zip(*found.values(), strict=True)]
    rows = [Row("frames of videos", way, rates, "clips/s per core") for way, rates in found.items()]
    return [*rows, Row("", "ratio, pair by pair", ratios, "", least=LIMIT)]


if __name__ == "__main__":
    show(measure(rounds_asked(__doc__, 5)))
