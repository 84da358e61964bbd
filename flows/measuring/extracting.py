"""Features as a job of a preset's processes; of several for each GPU where there are some and pictures are files."""

from collections.abc import Callable, Iterable
from pathlib import Path

from evaluation.extract import ERROR, PER_GPU, extract_job
from evaluation.images.preparation import Pictures
from evaluation.measuring.fresh import Fresh
from evaluation.measuring.streaming import images_done
from flows.home import weights
from flows.launch import JobDied, run_job
from mdm.files import write_json
from mdm.presets import Hardware
from mdm.structure import to_dict
from mdm.training.compute import pick_device

MODULE = "evaluation.extract"


def extract_in_processes(
    hardware: Hardware, work: Path, pictures: Pictures, roles: Iterable[str], progress: Callable[[int], None]
) -> None:
    """What is planned in the folder ``work``. Raises ValueError with the cause that a process gave, and JobDied where
    it gave none."""
    reads = pick_device(hardware.device).type == "cuda" and not isinstance(pictures, Fresh)
    per_gpu = PER_GPU if reads else 1
    job = extract_job(pictures, tuple(roles), weights(), hardware.device, hardware.threads, per_gpu)
    write_json(work / "extract.json", to_dict(job))
    (work / ERROR).unlink(missing_ok=True)
    try:
        processes = hardware.processes * per_gpu
        run_job(MODULE, work, processes, hardware.threads, lambda: progress(images_done(work)))
    except JobDied as death:
        if images_done(work) == len(pictures):  # of another flow, which had not lived to its end
            return
        if (work / ERROR).exists():
            raise ValueError((work / ERROR).read_text()) from death
        raise
