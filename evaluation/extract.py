"""Features of many pictures by a protocol's networks, in several processes that share them:

    torchrun --nproc-per-node 2 -m evaluation.extract FOLDER

``FOLDER/extract.json`` (see ``ExtractJob``) says of which pictures and by which networks, ``FOLDER/plan.json`` what is
to be made there (streaming.py). Killed, any number of processes goes on with what is not done.
"""

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from evaluation.images.preparation import Drawn, Noise, Pictures, Reference
from evaluation.measuring.fresh import Fresh
from evaluation.measuring.streaming import extract_blocks
from evaluation.networks.features import Extractor
from mdm.config import Device, check
from mdm.data.leases import Lease
from mdm.files import load_as, whole_file
from mdm.run.watch import stops_as_ctrl_c
from mdm.training.compute import pick_device, place_of_process

# Processes that share a GPU where pictures are files: one decodes 280 PNG of 256 px a second, and Inception on an H200
# takes 1,560 of them (`make gpu-check`).
PER_GPU = 4
ERROR = "error.txt"  # why it ended, in one line

Load = Callable[[Sequence[str], Path, torch.device], dict[str, Extractor]]


@dataclass(frozen=True, kw_only=True)
class ExtractJob:
    """Networks by their roles, and one source of pictures."""

    roles: tuple[str, ...]
    weights: str  # the folder of their files
    device: Device
    threads: int = 0
    per_gpu: int = 1  # processes
    drawn: Drawn | None = None
    fresh: Fresh | None = None
    reference: Reference | None = None
    noise: Noise | None = None

    def __post_init__(self) -> None:
        check(sum(source is not None for source in self._sources) == 1, "one source of pictures is needed")

    @property
    def _sources(self) -> tuple[Pictures | None, ...]:
        return self.drawn, self.fresh, self.reference, self.noise

    @property
    def pictures(self) -> Pictures:
        return next(source for source in self._sources if source is not None)


def extract_job(
    pictures: Pictures, roles: Sequence[str], weights: Path, device: Device, threads: int, per_gpu: int = 1
) -> ExtractJob:
    return ExtractJob(
        roles=tuple(roles),
        weights=str(weights),
        device=device,
        threads=threads,
        per_gpu=per_gpu,
        drawn=pictures if isinstance(pictures, Drawn) else None,
        fresh=pictures if isinstance(pictures, Fresh) else None,
        reference=pictures if isinstance(pictures, Reference) else None,
        noise=pictures if isinstance(pictures, Noise) else None,
    )


def run_extract(folder: Path, job: ExtractJob, rank: int, world: int, load: Load) -> None:
    """This rank's share. Raises ValueError, one line, for what is missing, wrong or damaged."""
    if job.threads:
        torch.set_num_threads(job.threads)
    networks = load(job.roles, Path(job.weights), pick_device(job.device, job.per_gpu))
    extract_blocks(list(networks.values()), job.pictures.batches, folder, rank, world)


def main(load: Load) -> int:
    """``load``: networks by their roles, from the folder of weights; a test's entry has its own."""
    arguments = sys.argv[1:]
    if len(arguments) != 1:
        print("usage: python -m evaluation.extract FOLDER  (under torchrun for several processes)", file=sys.stderr)
        return 2
    folder, (rank, world) = Path(arguments[0]), place_of_process()
    stops_as_ctrl_c()  # every block is done or not: nothing has to be saved
    try:
        job = load_as(ExtractJob, folder / "extract.json")
        with contextlib.ExitStack() as used:
            for data in job.pictures.data_folders if rank == 0 else ():
                used.enter_context(Lease(data, f"features {folder}"))
            run_extract(folder, job, rank, world, load)
    except (ValueError, OSError) as error:
        print(f"extract: {error}", file=sys.stderr)
        with contextlib.suppress(OSError), whole_file(folder / ERROR, f".{rank}") as file:
            file.write(str(error).encode())
        return 1
    except KeyboardInterrupt:
        print("extract: stopped; the same command goes on", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    from evaluation.measuring.networks import load_roles  # seconds

    sys.exit(main(load_roles))
