"""RUN/evaluations -> tables: what stands in one column was measured alike, and each row says which stage it is of."""

from pathlib import Path
from typing import Any

import pytest

from evaluation.pages.points import read_points, tables
from evaluation.pages.schema import EvaluationTable
from mdm.files import write_json
from mdm.presets import PRESETS
from mdm.structure import to_dict

TINY = PRESETS["tiny"]


def row(digest: str, point: str, nimg: int, value: float, protocol: str = "embedded") -> dict[str, Any]:
    values = {"samples": value, "noise": value + 100, "real images": 12.0}
    metric = {"name": "fd", "label": "a distance", "n": 24, "values": values, "interval": {"samples": [value, value]}}
    facts = {"protocol": protocol, "protocol_digest": digest, "point": point, "checkpoint": f"nimg-{nimg:012d}"}
    sampling = {f"sampling.{k}": v for k, v in to_dict(TINY.sampling).items()}
    metric |= {"better": "lower", "note": "", "sizes": {"real images": 12}}
    return {**facts, "nimg": nimg, "n": 24, **sampling, "metrics": [metric]}


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


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "evaluations" / "embedded"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text("[{")
    with pytest.raises(ValueError, match=r"embedded/results\.json is torn"):
        read_points(TINY, tmp_path)
    assert read_points(TINY, tmp_path / "nothing") == []
