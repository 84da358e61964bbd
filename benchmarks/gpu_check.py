"""What this machine's GPUs make of the project, in about ten minutes: make gpu-check

Golden tensors, torch.compile, DDP and FSDP2, kill and resume, drawing and measuring, and the speed and memory of every
preset's stages, on the GPUs that torch finds; without one the same on the CPU as far as a CPU goes. Writes
results/DATE-gpu-check.md, which can be sent in, and ends with an error if a section failed.
"""

import argparse
import datetime
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "evaluation"), str(Path(__file__).parent)]

from benchmarks.gpu_parts import Section  # noqa: E402
from benchmarks.gpu_sections import compiling, drawing, drawn_again, golden, processes, resuming  # noqa: E402
from benchmarks.gpu_speed import drawing_speed, features, speed, trainer  # noqa: E402
from mdm.run.job import commit, cpu_name  # noqa: E402


def check(sections: dict[str, Callable[[Section], None]]) -> Iterator[Section]:
    """Run the sections in turn; an exception fails its own only."""
    for title, run in sections.items():
        section = Section(title)
        print(f"## {title}\n", flush=True)
        try:
            run(section)
        except Exception as error:
            section.passed = False
            section.say("\n".join(["```", *traceback.format_exception(error)[-3:], "```"]))
        yield section


def head(device: torch.device) -> list[str]:
    today, found = datetime.date.today().isoformat(), "no GPU: this is the CPU part only, no GPU has run anything here"
    if device.type == "cuda":
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        found = (
            ", ".join(f"{p.name} ({p.total_memory / 2**30:.0f} GiB)" for p in names) + f", CUDA {torch.version.cuda}"
        )
    return [
        f"# GPU check, {today}",
        "",
        f"{found}; {cpu_name()}, {os.cpu_count()} cores; torch {torch.__version__}; commit {commit(ROOT)}; "
        "`make gpu-check`",
        "",
    ]


def report(lines: list[str], sections: Iterator[Section], output: Path) -> int:
    """Write each section as it ends -> the exit status: 1 if one failed."""
    failed, path = 0, output / f"{datetime.date.today().isoformat()}-gpu-check.md"
    print("\n".join(lines), flush=True)
    for section in sections:
        print(f"\n{section.title}: {section.verdict}\n", flush=True)
        lines += [f"## {section.title}: {section.verdict}", "", *section.lines, ""]
        failed += not section.passed
        path.write_text("\n".join(lines).rstrip() + "\n")
    print(f"written to {path}" + (f"; {failed} sections FAILED" if failed else ""))
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--compiled", action="store_true", help="measure speeds with torch.compile (minutes per stage)")
    parser.add_argument("--only", nargs="+", metavar="TITLE", help="these sections")
    parser.add_argument("--stages", nargs="+", default=[], metavar="PRESET/STAGE", help="whose speed is measured")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER")
    arguments = parser.parse_args(argv)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    speeds = device, arguments.compiled, arguments.stages
    sections: dict[str, Callable[[Section], None]] = {
        "Golden tensors": lambda s: golden(s, device),
        "torch.compile": lambda s: compiling(s, device),
        "Several processes": lambda s: processes(s, device),
        "Killed and resumed": lambda s: resuming(s, device),
        "Drawing": lambda s: drawing(s, device),
        "Drawn again": lambda s: drawn_again(s, device),
        "Features": lambda s: features(s, device),
        "Trainer": lambda s: trainer(s, device),
        "Drawing speed": lambda s: drawing_speed(s, *speeds),
        "Speed and memory": lambda s: speed(s, *speeds),
    }
    if unknown := set(arguments.only or []) - sections.keys():
        parser.error(f"--only {min(unknown)}: there are {', '.join(sections)}")
    sections = {title: run for title, run in sections.items() if title in (arguments.only or sections)}
    return report(head(device), check(sections), arguments.output)


if __name__ == "__main__":
    sys.exit(main())
