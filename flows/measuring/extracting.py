"""Features as a job of a preset's processes, each with a GPU of its own where there are some."""

from collections.abc import Callable, Iterable
from pathlib import Path

from evaluation.extract import ERROR, extract_job
from evaluation.images.preparation import Pictures
from evaluation.measuring.streaming import images_done
from flows.home import weights
from flows.launch import JobDied, run_job
from mdm.files import write_json
from mdm.presets import Hardware
from mdm.structure import to_dict

MODULE = "evaluation.extract"


def extract_in_processes(
    hardware: Hardware, work: Path, pictures: Pictures, roles: Iterable[str], progress: Callable[[int], None]
) -> None:
    """What is planned in the folder ``work``. Raises ValueError with the cause that a process gave, and JobDied where
    it gave none."""
    job = extract_job(pictures, tuple(roles), weights(), hardware.device, hardware.threads)
    write_json(work / "extract.json", to_dict(job))
    (work / ERROR).unlink(missing_ok=True)
    try:
        run_job(MODULE, work, hardware.processes, hardware.threads, lambda: progress(images_done(work)))
    except JobDied as death:
        if images_done(work) == len(pictures):  # of another flow, which had not lived to its end
            return
        if (work / ERROR).exists():
            raise ValueError((work / ERROR).read_text()) from death
        raise
