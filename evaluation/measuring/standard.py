"""A checkpoint's numbers as others publish them: drawn images -> features by the published networks -> results.json.

First everything is checked that can be without computing; then features are made, or found (kept.py); then numbers
(protocol_metrics.py). Killed at any moment, the same call goes on and finds the same.
"""

import errno
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.clip_score import hessel_score, torchmetrics_score
from evaluation.images.captions import Line, Prompt
from evaluation.images.preparation import Drawn, Noise, Reference
from evaluation.measuring.fresh import Fresh
from evaluation.measuring.identity import Origin, identity, measured_by
from evaluation.measuring.kept import Extract, extract_here, forget_others, kept_pictures, kept_texts
from evaluation.measuring.protocol_metrics import (
    DISTANCES,
    FEWEST,
    Classifier,
    FeatureSets,
    TextReader,
    clip_scores,
    relative,
    roles,
)
from evaluation.networks.features import Extractor
from evaluation.protocols import Protocol
from evaluation.results import RANDOM, Metric, Result
from mdm.data.shards import Shards
from mdm.files import whole_file, write_json

COSINES = "cosines.jsonl"

Progress = Callable[[str, int, int], None]
Cosines = dict[str, NDArray[np.float64]]


def measure_standard(
    protocol: Protocol,
    images: Path | Fresh,
    reference: Shards | Sequence[Shards],
    networks: Mapping[str, Extractor],
    out: Path,
    references: Path,
    origin: Origin,
    progress: Progress,
    prompts: Sequence[Prompt] | None = None,
    about: str = "",
    for_tests: bool = False,
    extract: Extract = extract_here,
) -> dict[str, Any]:
    """Measure a folder of images that generate.py drew by a protocol, or images yet to draw (fresh.py) -> what
    ``out/results.json`` holds.

    ``reference``: the split, or the splits, that the protocol names. ``networks``: by their roles, as ``load_networks``
    gives them. The features of the images are kept in ``out/features``, those of real images and of noise in
    ``references``, where every other measurement finds them. ``out/cosines.jsonl`` has the raw cosine of each image
    with its caption. ``origin``: how the images were drawn. ``progress(what, done, total)`` is called all along.
    ``prompts``: whose images are measured, where that is not all: a sample that was removed leaves its image behind.
    ``about``: what every number's note begins with. ``extract``: who computes features, this process or several others.

    ``for_tests``: networks with random weights are taken, and their numbers written as ``random_metrics``, which no
    report reads. Raises ValueError, one line, for what is missing, wrong or full; before long work where it can be
    known.
    """
    _check_networks(protocol, networks, for_tests)
    of_pictures, of_captions = roles(protocol)
    drawn = images if isinstance(images, Fresh) else Drawn.open(images, protocol.preparation, prompts)
    if len(drawn) < FEWEST:
        raise ValueError(f"{len(drawn)} images are measured, a protocol needs at least {FEWEST}")
    keys = [line.key for line in drawn.lines] if protocol.reference == "the prompts' own" else []
    splits = [reference] if isinstance(reference, Shards) else list(reference)
    real = Reference.open(splits, protocol.preparation, drawn.px, keys)
    if len(real) < FEWEST:
        raise ValueError(
            f"{splits[0].folder}: {len(real)} real images to measure against, {FEWEST} at least are needed"
        )
    noise = Noise(len(drawn), drawn.px, origin.seed)
    everybody = (*of_pictures, *of_captions)
    known = measured_by(
        protocol,
        drawn.lines,
        real.identity,
        px=drawn.px,
        networks={role: [networks[role].name, networks[role].weights] for role in everybody},
        resize={role: networks[role].resize for role in everybody},
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        distances = {role: networks[role] for role in of_pictures}
        everything = distances | {role: networks[role] for role in of_captions}
        found = {}
        for what, folder, name, pictures, asked in (
            ("real images", references, splits[0].folder.name, real, distances),
            ("noise", references, "noise", noise, distances),
            ("samples", out / "features", "samples", drawn, everything),
        ):
            told = _of(progress, f"features of {what}", len(pictures))
            found[what] = kept_pictures(folder, name, pictures, asked, told, extract) if asked else {}
        results, sets = [], {}
        for role in of_pictures:
            drawn_, noise_, real_ = (found[what][networks[role].name] for what in ("samples", "noise", "real images"))
            sets[role] = FeatureSets(networks[role], drawn_, noise_, real_, origin.seed)
        for i, name in enumerate(metric for metric in protocol.metrics if metric in DISTANCES):
            progress(name, i, len(protocol.metrics))
            role, measure = DISTANCES[name]
            results += measure(sets[role])
        if "relative" in protocol.metrics:
            results.append(relative(sets, of_pictures))
        captions = [line.caption[: protocol.caption_letters or None] for line in drawn.lines]
        scores, cosines, texts = _caption_scores(captions, found["samples"], networks, of_captions, out, progress)
        results = [replace(result, metric=_noted(result.metric, about)) for result in (*results, *scores)]
        forget_others(out / "features", [*found["samples"].values(), *texts])
        return _write(out, identity(known, origin), results, cosines, drawn.lines, len(real))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = error.filename or f"{out} or {references}"
            raise ValueError(f"{where}: {error.strerror}. Make room: the same command goes on") from error
        raise


def _check_networks(protocol: Protocol, networks: Mapping[str, Extractor], for_tests: bool) -> None:
    of_pictures, of_captions = roles(protocol)
    if lacking := [role for role in (*of_pictures, *of_captions) if role not in networks]:
        raise ValueError(f"protocol {protocol.name} needs the networks {', '.join(lacking)}, too")
    if "inception_score" in protocol.metrics and not isinstance(networks[DISTANCES["inception_score"][0]], Classifier):
        raise ValueError(f"{DISTANCES['inception_score'][0]}: has no classes, which the Inception score is made of")
    if silent := [role for role in of_captions if not isinstance(networks[role], TextReader)]:
        raise ValueError(f"{', '.join(silent)}: reads no captions, which the CLIP score needs")
    random = sorted({network.name for network in networks.values() if network.name.startswith(RANDOM)})
    if random and not for_tests:
        raise ValueError(f"{', '.join(random)}: random weights, for tests only: nothing is measured with them")


def _noted(metric: Metric, about: str) -> Metric:
    return replace(metric, note=f"{about}. {metric.note}") if about else metric


def _of(progress: Progress, what: str, total: int) -> Callable[[int], None]:
    return lambda done: progress(what, done, total)


def _caption_scores(
    captions: Sequence[str],
    features: Mapping[str, NDArray[np.float32]],
    networks: Mapping[str, Extractor],
    asked: Sequence[str],
    out: Path,
    progress: Progress,
) -> tuple[list[Result], Cosines, list[NDArray[np.float32]]]:
    results, cosines, texts = [], Cosines(), []
    for i, role in enumerate(asked):
        progress(f"captions by {role}", i, len(asked))
        network = networks[role]
        assert isinstance(network, TextReader)
        texts.append(kept_texts(out / "features", captions, network, network.text_features))
        result, cosines[role] = clip_scores(network, role, features[network.name], texts[-1])
        results.append(result)
    return results, cosines, texts


def _write(
    out: Path,
    known: dict[str, Any],
    results: Sequence[Result],
    cosines: Cosines,
    lines: Sequence[Line],
    real_images: int,
) -> dict[str, Any]:
    random = any(result.extractor.startswith(RANDOM) for result in results)
    rows = [_random_row(result) if random else result.to_record() for result in results]
    whole = {
        "random_metrics" if random else "metrics": rows,
        "displays": {
            role: {"torchmetrics": torchmetrics_score(found), "hessel": hessel_score(found)}
            for role, found in cosines.items()
        },
        "real_images": real_images,
        **known,
    }
    if cosines:
        write_cosines(out / COSINES, cosines, lines)
    write_json(out / "results.json", whole)
    return whole


def _random_row(result: Result) -> dict[str, Any]:
    plain = {"name": result.metric.name, "n": result.n, "extractor": result.extractor}
    return plain | {
        "values": dict(result.values),
        "interval": {what: [*ends] for what, ends in result.intervals.items()},
    }


def write_cosines(file: Path, cosines: Cosines, lines: Sequence[Line]) -> None:
    """A line per image: its caption's key and text, and the raw cosine of both by each network."""
    with whole_file(file) as opened:
        for i, line in enumerate(lines):
            own = {role: float(found[i]) for role, found in cosines.items()}
            row = {"index": line.index, "key": line.key, "caption": line.caption, "cosines": own}
            opened.write(json.dumps(row).encode() + b"\n")
