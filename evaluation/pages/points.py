"""RUN/evaluations -> what was measured of a run's checkpoints, point by point, and the tables of it in records.json."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.measuring.identity import Way, drawn_by, way_of
from evaluation.protocols import PROTOCOLS
from evaluation.results import SAMPLES
from mdm.config import Sampling
from mdm.files import load_json
from mdm.presets import Preset
from mdm.structure import from_dict

EVALUATIONS = "evaluations"  # in a run's folder: PROTOCOL or PROTOCOL-STAGE, with results.json and a folder per point
RESULTS = "results.json"
FACTS = {"point", "protocol", "protocol_digest", "checkpoint", "nimg", "n", "seed", "metrics"}  # of each of its rows


@dataclass(frozen=True)
class Point:
    """A checkpoint of a stage, how its images were drawn, and what they measured."""

    name: str
    protocol: str
    digest: str  # of all that decides the numbers beside the checkpoint and the sampling
    stage: str
    px: int
    nimg: int
    sampling: Sampling
    way: Way  # points of equal words and stage differ by the checkpoint alone
    metrics: list[dict[str, Any]]  # rows as ``Result.to_record`` makes them
    folder: Path | None = None  # with its images and its cosines

    @property
    def guidance(self) -> str:
        return self.way.guidance

    def metric(self, name: str) -> dict[str, Any] | None:
        """That row, if it says something of the samples."""
        return next((m for m in self.metrics if m["name"] == name and SAMPLES in m["values"]), None)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """results.json of an evaluation's folder, a row per point; none where there is no such file.

    Raises ValueError where it is torn, or something else.
    """
    file = folder / RESULTS
    again = "Delete it: the same `mdm evaluate` commands find what they have measured, and write it again"
    try:
        rows = load_json(file) if file.exists() else []
    except ValueError as error:
        raise ValueError(f"{error}. {again}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= FACTS for row in rows):
        raise ValueError(f"{file} holds something else than an evaluation's points. {again}")
    return rows


def read_points(preset: Preset, run: Path) -> list[Point]:
    """Every point of every evaluation of a run, those of one protocol by stage, images seen and name.

    Raises ValueError naming a file that is torn.
    """
    found, last = [], list(preset.stages)[-1]
    for folder in sorted(file.parent for file in (run / EVALUATIONS).glob(f"*/{RESULTS}")):
        for row in read_results(folder):
            stage = folder.name.removeprefix(row["protocol"]).removeprefix("-") or last
            fields = {k.removeprefix("sampling."): v for k, v in row.items() if k.startswith("sampling.")}
            sampling = from_dict(Sampling, fields)
            px = preset.stages[stage].model.resolutions[-1]
            found.append(
                Point(
                    row["point"],
                    row["protocol"],
                    row["protocol_digest"],
                    stage,
                    px,
                    row["nimg"],
                    sampling,
                    way_of(row.get("drawn") or drawn_by(sampling, row["seed"])),
                    row["metrics"],
                    folder / row["point"],
                )
            )
    stages = list(preset.stages)
    return sorted(
        found,
        key=lambda p: (
            *(p.protocol, p.digest, stages.index(p.stage), p.nimg),
            *(p.sampling.guidance, p.sampling.sampler, p.sampling.steps),
        ),
    )


def together(points: list[Point]) -> dict[tuple[str, str, int], list[Point]]:
    """Points whose numbers may stand in one column: of one protocol, digest and resolution."""
    key = lambda p: (p.protocol, p.digest, p.px)  # noqa: E731
    return {k: list(found) for k, found in itertools.groupby(sorted(points, key=key), key)}


def tables(preset: Preset, points: list[Point]) -> list[dict[str, Any]]:
    """The section ``evaluations`` of records.json."""
    return [
        {
            "protocol": protocol,
            "digest": digest,
            "px": px,
            "summary": PROTOCOLS[protocol].summary if protocol in PROTOCOLS else "",
            "rows": [_row(preset, point) for point in found],
        }
        for (protocol, digest, px), found in together(points).items()
    ]


def _row(preset: Preset, point: Point) -> dict[str, Any]:
    return {
        "point": point.name,
        "stage": f"{preset.name}, stage {point.stage}",
        "nimg": point.nimg,
        **point.way._asdict(),
        "metrics": [{"protocol": point.protocol} | metric for metric in point.metrics],
    }
