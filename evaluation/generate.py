"""Captions and weights -> a folder of images, one file per seed. A process of its own under torchrun:

    torchrun --nproc-per-node 2 -m evaluation.generate FOLDER

``FOLDER/generate.json`` (see ``ImageJob``) names the sets to draw; each becomes ``FOLDER/SET/``. An image depends on
its caption and seed alone, so ranks share the work by index, and a killed run goes on with the files that are missing.
"""

import contextlib
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mdm.config import Device, Model, Sampling
from mdm.data.embeddings import TextSource
from mdm.data.leases import Lease, removal_asked
from mdm.data.order import hash64
from mdm.data.pixels import to_uint8
from mdm.data.shards import Shards
from mdm.data.text import known_conditions, online_encoder
from mdm.diffusion.generate import generate
from mdm.network.nested import NestedUNet
from mdm.structure import from_dict
from mdm.training.compute import pick_device

UNTRAINED = "untrained"


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """One folder of images to draw."""

    name: str
    weights: str  # a checkpoint's ema/ or raw/ folder, or "untrained": the same network as the first set's, as made
    sampling: Sampling


@dataclass(frozen=True, kw_only=True)
class ImageJob:
    """What to draw: the first ``num_samples`` captions of a dataset's split, in its order."""

    sets: tuple[ImageSet, ...]
    data: str  # dataset folder whose captions are drawn
    data_digest: str = ""  # of its manifest: another set in that folder is refused; "" in jobs of before
    text: TextSource | None  # their states; none for a class-conditional model
    num_samples: int
    seed: int = 0
    device: Device = "auto"
    threads: int = 0


def save_images(xs: list[Tensor], resolutions: tuple[int, ...], folder: Path, indices: list[int]) -> None:
    """Write levels of [B, 3, H_r, H_r] as PNG: the lower ones first, so that a top one vouches for its set."""
    for x, px in zip(xs, resolutions, strict=True):
        top = px == resolutions[-1]
        for index, picture in zip(indices, to_uint8(x), strict=True):
            targets = [folder / "levels" / str(px) / f"{index:05d}.png"] + (
                [folder / f"{index:05d}.png"] if top else []
            )
            for target in targets:
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_suffix(".tmp")
                Image.fromarray(picture.permute(1, 2, 0).numpy()).save(temporary, format="png")
                temporary.replace(target)


def generate_images(folder: Path, job: ImageJob, rank: int, world: int) -> None:
    """Draw this rank's share of every set."""
    device = pick_device(job.device)
    if job.threads:
        torch.set_num_threads(job.threads)
    shards = Shards(Path(job.data), job.text, pinned=job.data_digest)
    captioned = shards.present()  # image i is of the i-th caption that is there
    if job.num_samples > len(captioned):
        raise ValueError(f"{job.data} has {len(captioned)} captions, {job.num_samples} are asked for")
    mine = range(rank, job.num_samples, world)
    # All captions at once: an online encoder has left the device before the first network comes.
    encoder = online_encoder(job.text, device, Path(job.data).parent)
    conditions, null = known_conditions(shards, [captioned[i] for i in mine], _model(job), encoder)
    for images in job.sets:
        network = _network(job, images).to(device).to(memory_format=torch.channels_last)
        target = folder / images.name
        target.mkdir(parents=True, exist_ok=True)
        missing = [i for i in mine if not (target / f"{i:05d}.png").exists()]
        bar = tqdm(total=len(mine), initial=len(mine) - len(missing), desc=images.name, disable=rank != 0)
        for start in range(0, len(missing), images.sampling.batch_size):
            if removal_asked():
                raise ValueError(f"{removal_asked()}: the same command goes on with the images that are missing")
            indices = missing[start : start + images.sampling.batch_size]
            seeds = [image_seed(job.seed, i) for i in indices]
            xs = generate(network, [conditions[mine.index(i)] for i in indices], null, seeds, images.sampling, device)
            save_images(xs, network.config.resolutions, target, indices)
            bar.update(len(indices))
        bar.close()
        if rank == 0:
            lines = []
            for i in range(job.num_samples):
                sample = shards[captioned[i]]
                line = {"index": i, "key": sample.key, "caption": sample.caption, "seed": image_seed(job.seed, i)}
                lines.append(json.dumps(line))
            (target / "captions.jsonl").write_text("\n".join(lines) + "\n")


def image_seed(seed: int, index: int) -> int:
    """The noise seed of image ``index``: the same for every set, so that sets differ by their weights alone."""
    return hash64(seed, "image", index)


def _model(job: ImageJob) -> Model:
    """The configuration of the first trained set."""
    trained = next(s.weights for s in job.sets if s.weights != UNTRAINED)
    return from_dict(Model, json.loads((Path(trained) / "config.json").read_text()))


def _network(job: ImageJob, images: ImageSet) -> NestedUNet:
    if images.weights != UNTRAINED:
        return NestedUNet.from_pretrained(Path(images.weights))
    torch.manual_seed(hash64(job.seed, "untrained"))
    return NestedUNet(_model(job)).eval()


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print("usage: python -m evaluation.generate FOLDER  (under torchrun for several processes)", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    for number in (signal.SIGTERM, signal.SIGHUP):  # every picture is whole or not there: nothing has to be saved
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        job = from_dict(ImageJob, json.loads((folder / "generate.json").read_text()))
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        with Lease(Path(job.data).parent, f"samples {folder}") if rank == 0 else contextlib.nullcontext():
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
