"""The images of a point as a job: all of them in a flow, or a part of them on a machine of its own."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from evaluation.generate import AS_MADE, ImageJob, ImageSet, prepare
from evaluation.images.asked import prompts_of
from evaluation.images.captions import Prompt, is_whole, lines_of
from evaluation.images.image_folder import ImageFolder
from evaluation.measuring.fresh import Fresh
from evaluation.protocols import PROTOCOLS, STAND_INS, Protocol
from flows.datasets.parts import Part, in_turn, part_lock, set_lock
from flows.datasets.text import Captions
from flows.home import pasted
from flows.home import weights as home_weights
from flows.inputs import SampleInputs, sample_inputs
from flows.launch import run_job
from flows.markers import begin, begun_as
from flows.measuring.plan import Evaluation
from mdm.data.embeddings import TextSource
from mdm.data.leases import Lease
from mdm.data.text import find_encoder
from mdm.files import sha256
from mdm.presets import Preset
from preprocessing.manifest import read_json, read_manifest


@dataclass(frozen=True)
class PointDrawing:
    """``folder``: of the sets of images. ``inputs``: what decides them."""

    folder: Path
    job: ImageJob
    inputs: SampleInputs
    prompts: list[Prompt]
    preset: Preset

    def count(self) -> int:
        """Of the images that are there."""
        found = sum(ImageFolder(self.folder / images.name).count for images in self.job.sets)
        return min(found, len(self.prompts) * len(self.job.sets))

    def whole(self) -> bool:
        px = self.preset.model.resolutions
        return all(is_whole(self.folder / images.name, self.prompts, px) for images in self.job.sets)

    def refuse_exchanged(self) -> None:
        """Raises ValueError where images that would be kept were drawn for another split than the one that is there
        now: their numbers would be of two data sets. A removal of samples exchanges nothing.
        """
        pinned = (read_json(self.folder / "generate.json") or {}).get("data_digest", "")
        if pinned in ("", self.job.data_digest) or begun_as(self.folder, self.inputs) is None:
            return
        if any(lines_of(self.folder / images.name, self.prompts) for images in self.job.sets):
            raise ValueError(
                f"{self.job.data} holds other data (digest {self.job.data_digest[:12]}) than {self.folder} was drawn "
                f"for ({pinned[:12]}): put that set back (`mdm data` lists what there is), or, to draw anew: "
                f"{pasted('mv', self.folder, f'{self.folder}.old')}"
            )

    def run(self, on_poll: Callable[[], None]) -> None:
        prepare(self.folder, self.job, self.prompts)
        hardware = self.preset.hardware
        run_job("evaluation.generate", self.folder, hardware.processes, hardware.threads, on_poll)

    def fresh(self, protocol: Protocol, say: Callable[[str], None]) -> Fresh:
        """All of them yet to draw, while they are measured; none becomes a file."""
        with part_lock(self.folder, "images", (1, 1)):
            begin(self.folder, self.inputs, say)
            prepare(self.folder, self.job, self.prompts)
        return Fresh.open(self.folder, protocol.preparation, self.prompts)

    def run_part(self, part: Part, say: Callable[[str], None], on_poll: Callable[[], None]) -> None:
        """Draw every N-th batch, from the I-th on; others draw the others at the same time, on any machine."""
        own = self.folder / "parts" / f"{part[0]}-of-{part[1]}"
        job = replace(self.job, part=part, into=str(self.folder))
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with part_lock(self.folder, "images", part):
            with in_turn(lambda: set_lock(self.folder), say):  # of those who begin at once one is the first
                begin(self.folder, self.inputs, say)
                prepare(own, job, self.prompts)
            run_job("evaluation.generate", own, self.preset.hardware.processes, self.preset.hardware.threads, on_poll)


def drawing_of(
    preset: Preset,
    folder: Path,
    weights: Path,
    data: Path | None,
    text: TextSource | None,
    protocol: Protocol = PROTOCOLS["embedded"],
) -> PointDrawing:
    """A protocol's prompts from these weights; and, for stand-ins to be compared with, from an untrained network."""
    sets = [ImageSet(name="samples", weights=str(weights), sampling=preset.sampling)]
    if protocol.name in STAND_INS:
        # An untrained network answers 0 to any caption, so guiding it changes nothing.
        unguided = replace(preset.sampling, guidance=(1.0,))
        sets.append(ImageSet(name="untrained", weights=AS_MADE, sampling=unguided))
    model = preset.model
    negative = protocol.negative_prompt
    if text is not None and (negative or protocol.prompts == "figures"):  # captions that no set has
        text = replace(text, folder=text.folder or str(find_encoder(text.encoder, home_weights())))
    if text is not None and protocol.prompts == "figures":
        text = replace(text, way="online")
    of_split = data / protocol.split if data is not None and protocol.prompts == "held out" else None
    job = ImageJob(
        sets=tuple(sets),
        data="" if of_split is None else str(of_split),
        data_digest="" if of_split is None else read_manifest(of_split)["digest"],
        text=text,
        negative_prompt=negative,
        seed=preset.seed,
        device=preset.hardware.device,
        threads=preset.hardware.threads,
        loose=preset.hardware.loose_images,
    )
    inputs = sample_inputs(preset, sha256(weights / "model.safetensors"), text, negative)
    prompts = prompts_of(protocol, model, data, preset.evaluation.num_samples, preset.sampling.guidance[0])
    drawing = PointDrawing(folder, job, inputs, prompts, preset)
    drawing.refuse_exchanged()
    return drawing


def with_processes(preset: Preset, processes: int) -> Preset:
    """That many draw; 0: as many as the preset has."""
    return replace(preset, hardware=replace(preset.hardware, processes=processes or preset.hardware.processes))


def draw_part(planned: Evaluation, preset: Preset, part: Part, say: Callable[[str], None]) -> int:
    """A part of every point's images -> how many are missing then, of other parts. Neither Prefect nor MLflow hears.

    Raises Busy where somebody draws some of the same.
    """
    missing, data, text = 0, planned.data, planned.text
    planned.begin()
    with contextlib.nullcontext() if data is None else Lease(data, f"images of {planned.run.name}"):
        if planned.protocol.data and text is not None and data is not None:
            text = _states(preset, data, say)
        for point in planned.points:
            chosen = replace(preset, sampling=point.sampling)
            folder = planned.folder / point.name / "samples"
            drawing = drawing_of(chosen, folder, point.weights, data, text, planned.protocol)
            total = len(drawing.prompts) * len(drawing.job.sets)
            with tqdm(total=total, desc=point.name, unit="img", initial=drawing.count()) as bar:
                drawing.run_part(part, say, partial(_show, bar, drawing))
            missing += total - drawing.count()
    return missing


def _show(bar: "tqdm[NoReturn]", drawing: PointDrawing) -> None:
    bar.update(drawing.count() - bar.n)


def stored_where_nobody_trains(preset: Preset, data: Path) -> Preset:
    """COCO has no training split to choose by what costs least: its captions' states are kept for all who ask."""
    return preset if read_manifest(data / "train")["samples"] else replace(preset, embeddings="cached")


def _states(preset: Preset, data: Path, say: Callable[[str], None]) -> TextSource:
    """Of captions of another set than the run's: made by the first who comes, the others wait for them."""
    captions = Captions(stored_where_nobody_trains(preset, data), data)
    with in_turn(lambda: part_lock(data, "text", (1, 1)), say):
        source = captions.source(say)
        if source.way != "online":
            captions.embed(source.way, lambda start: lambda done, total: None)
    return source
