"""Captions and weights -> a folder of images, one file per seed. A process of its own under torchrun:

    torchrun --nproc-per-node 2 -m evaluation.generate FOLDER

``FOLDER/generate.json`` (see ``ImageJob``) names the sets to draw; each is ``FOLDER/SET/``, whose captions.jsonl says
which image is of which prompt (``prepare`` writes both). An image depends on its prompt and seed alone; what rounding
makes of its batch mates is fixed too, because batches are of fixed numbers: ranks share batches, and a killed run
draws those again in which files are missing, and gets the same bytes.
"""

import contextlib
import functools
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from evaluation.images.captions import Line, Prompt, assign, read_lines
from evaluation.images.conditions import conditions_of_samples, own_conditions
from evaluation.images.image_folder import ImageFolder
from mdm.config import Device, Model, Sampling, check
from mdm.data.embeddings import TextSource
from mdm.data.leases import Lease, removal_asked
from mdm.data.order import hash64
from mdm.data.shards import Shards
from mdm.diffusion.generate import generate
from mdm.files import load_as, write_json
from mdm.network.nested import NestedUNet
from mdm.run.watch import stops_as_ctrl_c
from mdm.structure import to_dict
from mdm.training.compute import pick_device, place_of_process

AS_MADE = "untrained"


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """One folder of images to draw."""

    name: str
    weights: str  # a checkpoint's ema/ or raw/ folder, or "untrained": the same network as the first set's, as made
    sampling: Sampling


@dataclass(frozen=True, kw_only=True)
class ImageJob:
    """What to draw."""

    sets: tuple[ImageSet, ...]
    data: str  # the folder of the split whose samples are asked for; "": prompts of no data set
    data_digest: str = ""  # of its manifest: another set in that folder is refused; "" in jobs of before
    text: TextSource | None  # their states; none for a class-conditional model
    negative_prompt: str = ""  # the caption that guidance leads away from; "": the null caption, which is the empty one
    seed: int = 0
    device: Device = "auto"
    threads: int = 0
    loose: bool = False  # files of their own, to look at, instead of a tar for each batch
    part: tuple[int, int] = (1, 1)  # (I, N): every N-th batch, from the I-th on
    into: str = ""  # the folder of the sets; "": where the job lies. Several parts share one

    def __post_init__(self) -> None:
        check(not self.negative_prompt or self.text is not None, "negative_prompt: a model of labels reads no captions")

    @functools.cached_property
    def model(self) -> Model:
        """The configuration of the first trained set."""
        trained = next(s.weights for s in self.sets if s.weights != AS_MADE)
        return load_as(Model, Path(trained) / "config.json")


def prepare(folder: Path, job: ImageJob, prompts: list[Prompt]) -> None:
    """Say in the folder what is to be drawn. What is there of these prompts stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for images in job.sets:
        assign(Path(job.into or folder) / images.name, prompts, job.seed)
    write_json(folder / "generate.json", to_dict(job))


class Painter:
    """A job's networks and conditions on this process's device. ``lines``: of all images that it will be asked for."""

    def __init__(self, job: ImageJob, lines: Collection[Line]) -> None:
        self.job, self.device = job, pick_device(job.device)
        # All captions at once: an online encoder has left the device before the first network comes.
        given = job.model, job.text, job.negative_prompt, self.device
        if job.data:
            shards = Shards(Path(job.data), job.text, pinned=job.data_digest)
            self.conditions, self.null = conditions_of_samples(shards, lines, *given)
        else:
            self.conditions, self.null = own_conditions(lines, *given)
        self._network: tuple[str, NestedUNet] | None = None

    def known(self, batch: Sequence[Line]) -> list[Line]:
        """Those whose samples were not removed."""
        return [line for line in batch if line.key in self.conditions]

    def network(self, images: ImageSet) -> NestedUNet:
        """A set's; one at a time stays on the device."""
        if self._network is None or self._network[0] != images.name:
            self._network = None
            network = _network(self.job, images).to(self.device).to(memory_format=torch.channels_last)
            if self.device.type == "cuda":
                network.compile()
            self._network = images.name, network
        return self._network[1]

    def draw(self, images: ImageSet, lines: Sequence[Line]) -> list[Tensor]:
        """A batch at all levels: [B, 3, H_r, H_r] in [-1, 1]. Raises ValueError where a removal of samples waits."""
        if removal_asked():
            raise ValueError(f"{removal_asked()}: the same command goes on with the images that are missing")
        states, seeds = [self.conditions[line.key] for line in lines], [line.seed for line in lines]
        return generate(self.network(images), states, self.null, seeds, images.sampling, self.device)


def generate_images(folder: Path, job: ImageJob, rank: int, world: int) -> None:
    """Draw this rank's share of every set: every ``world``-th batch of the job's part."""
    if job.threads:
        torch.set_num_threads(job.threads)
    target, (part, parts) = Path(job.into or folder), job.part
    shares = {
        images.name: batches(target / images.name, images.sampling.batch_size)[part - 1 :: parts][rank::world]
        for images in job.sets
    }
    lines = {line.key: line for mine in shares.values() for batch in mine for line in batch}
    painter, px = Painter(job, lines.values()), job.model.resolutions
    for images in job.sets:
        drawn, mine = ImageFolder(target / images.name), shares[images.name]
        bar = tqdm(total=sum(map(len, mine)), desc=images.name, disable=rank != 0)
        for batch in mine:
            asked = painter.known(batch)
            missing = {line.index for line in asked if not drawn.has(line.index, px)}
            if missing:
                drawn.save(painter.draw(images, asked), [line.index for line in asked], missing, job.loose)
            bar.update(len(batch))
        bar.close()


def batches(folder: Path, size: int) -> list[list[Line]]:
    """The lines of a folder's captions.jsonl in batches of ``size`` numbers, whichever of them are asked for."""
    found: dict[int, list[Line]] = {}
    for line in sorted(read_lines(folder), key=lambda line: line.index):
        found.setdefault(line.index // size, []).append(line)
    return list(found.values())


def _network(job: ImageJob, images: ImageSet) -> NestedUNet:
    if images.weights != AS_MADE:
        return NestedUNet.from_pretrained(Path(images.weights))
    torch.manual_seed(hash64(job.seed, "untrained"))
    return NestedUNet(job.model).eval()


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print("usage: python -m evaluation.generate FOLDER  (under torchrun for several processes)", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    stops_as_ctrl_c()  # every picture is whole or not there: nothing has to be saved
    try:
        job = load_as(ImageJob, folder / "generate.json")
        rank, world = place_of_process()
        with Lease(Path(job.data).parent, f"samples {folder}") if job.data and rank == 0 else contextlib.nullcontext():
            generate_images(folder, job, rank, world)
    except (ValueError, FileNotFoundError) as error:
        print(f"generate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("generate: stopped; the same command draws what is missing", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
