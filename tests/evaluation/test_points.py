"""RUN/evaluations -> tables: what stands in one column was measured alike, and each row says which stage it is of."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluation.measuring.identity import drawn_by, way_of
from evaluation.pages.points import read_points, tables
from evaluation.pages.schema import EvaluationTable
from mdm.config import Sampling
from mdm.files import write_json
from mdm.presets import PRESETS
from mdm.structure import to_dict

TINY = PRESETS["tiny"]


def row(digest: str, point: str, nimg: int, value: float, protocol: str = "embedded") -> dict[str, Any]:
    values = {"samples": value, "noise": value + 100, "real images": 12.0}
    metric = {"name": "fd", "label": "a distance", "n": 24, "values": values, "interval": {"samples": [value, value]}}
    facts = {
        "protocol": protocol,
        "protocol_digest": digest,
        "point": point,
        "checkpoint": f"nimg-{nimg:012d}",
        "seed": 0,
    }
    sampling = {f"sampling.{k}": v for k, v in to_dict(TINY.sampling).items()}
    metric |= {"better": "lower", "note": "", "sizes": {"real images": 12}}
    return {**facts, "nimg": nimg, "n": 24, "seed": 0, **sampling, "metrics": [metric]}


def test_digests_and_resolutions_never_share_a_column(tmp_path: Path) -> None:
    for folder, rows in (
        ("embedded", [row("aa", "late", 8320, 20.0), row("bb", "other", 8320, 30.0), row("aa", "early", 4160, 40.0)]),
        ("embedded-32", [row("aa", "as-trained", 6720, 50.0)]),  # another resolution, so another reference
        ("watch", [row("aa", "as-trained", 8320, 60.0, "watch")]),
    ):
        (tmp_path / "evaluations" / folder).mkdir(parents=True)
        write_json(tmp_path / "evaluations" / folder / "results.json", rows)
    made = [EvaluationTable.model_validate(table) for table in tables(TINY, read_points(TINY, tmp_path))]
    assert [(t.protocol, t.digest, t.px, [r.point for r in t.rows]) for t in made] == [
        ("embedded", "aa", 32, ["as-trained"]),
        ("embedded", "aa", 64, ["early", "late"]),
        ("embedded", "bb", 64, ["other"]),
        ("watch", "aa", 64, ["as-trained"]),
    ]
    assert made[0].rows[0].stage == "tiny, stage 32" and made[1].rows[0].guidance == "3/2/1"
    assert made[1].beside() == {"noise": {"fd": (120.0, 140.0, 24)}, "real images": {"fd": (12.0, 12.0, 12)}}
    assert list(made[1].columns()) == ["fd"]


def test_rows_are_in_the_order_of_what_was_swept(tmp_path: Path) -> None:
    folder = tmp_path / "evaluations" / "embedded"
    folder.mkdir(parents=True)
    rows = [row("aa", f"steps-{n}", 8320, 1.0) | {"sampling.steps": n} for n in (16, 4, 8)]
    write_json(folder / "results.json", rows)
    assert [point.sampling.steps for point in read_points(TINY, tmp_path)] == [4, 8, 16]


def test_every_way_of_drawing_has_words_of_its_own() -> None:
    """Whatever decides an image, so that no row or column has two ways in it."""
    usual = drawn_by(TINY.sampling, 0)
    assert way_of(usual).words == "guidance 3/2/1, 24 steps, ddpm quadratic, threshold clip"
    others: dict[str, Any] = {"sampler": "ddim", "steps": 23, "spacing": None, "eta": 0.5, "guidance": [1.35]}
    others |= {"guidance_interval": [0.0, 0.8], "threshold": "dynamic", "percentile": 0.99, "ceiling": 2.0}
    others |= {"precision": "bfloat16", "seed": 1, "format": 1}
    assert others.keys() == usual.keys()
    words = {way_of({**usual, name: value}).words for name, value in others.items()}
    assert len(words) == len(others) and way_of(usual).words not in words
    assert way_of(drawn_by(Sampling(batch_size=3), 1)).words == "guidance 1, 250 steps, ddpm, seed 1"
    assert way_of(drawn_by(Sampling(guidance=(2.0, 2.0, 2.0)), 0)) == way_of(drawn_by(Sampling(guidance=(2.0,)), 0))
    noise = way_of({**usual, "guidance_interval": [0.0, 0.8], "format": 1}).sampler
    assert noise == "ddpm quadratic, guidance interval 0/0.8, threshold clip, noise format 1"


def test_rows_say_in_what_they_were_drawn_otherwise(tmp_path: Path) -> None:
    folder = tmp_path / "evaluations" / "embedded"
    folder.mkdir(parents=True)
    told = {"drawn": drawn_by(replace(TINY.sampling, eta=0.5), 3)}
    write_json(folder / "results.json", [row("aa", "late", 8320, 20.0) | told, row("aa", "other", 8320, 20.0)])
    (table,) = tables(TINY, read_points(TINY, tmp_path))
    samplers = [found["sampler"] for found in table["rows"]]
    assert samplers == ["ddpm quadratic, eta 0.5, threshold clip, seed 3", "ddpm quadratic, threshold clip"]


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "evaluations" / "embedded"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text("[{")
    with pytest.raises(ValueError, match=r"embedded/results\.json is torn"):
        read_points(TINY, tmp_path)
    assert read_points(TINY, tmp_path / "nothing") == []
