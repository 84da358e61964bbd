"""The paper's figures from a run's points: time and hours with the stages before, guidance against captions."""

from dataclasses import replace

import pytest

from evaluation.pages.charts import draw_curve
from evaluation.pages.figures import figures
from evaluation.pages.schema import Curve, Series
from evaluation.pages.speed import Pace
from mdm.presets import PRESETS, resolve
from tests.evaluation.example_records import PACE, TINY, evaluated, measured


def test_along_the_training_the_stages_before_count() -> None:
    gpu = Pace((0.0, 10_000.0), (0.0, 1000.0), "NVIDIA A100", True, 4)  # 10 images/s
    curves = figures(TINY, evaluated(), dict.fromkeys(TINY.stages, gpu))
    by_axis = {c["x_label"]: c["series"] for c in curves if c["title"].startswith("Fr") or c["title"].startswith("fd")}
    before = 14_720 + 6_720  # of the stages 16 and 32
    (series,) = by_axis["images seen, earlier stages counted in"]  # guidance 3 and 5 have one point each
    assert series["x"] == [before + 4160, before + 8320] and series["name"].startswith("stage 64, guidance 1,")
    ends = 1000 + 672  # the first stage's rate is known up to 10,000 images
    (series,) = by_axis["seconds of training steps, earlier stages counted in"]
    assert series["x"] == pytest.approx([ends + 416, ends + 832])
    (series,) = by_axis["GPU-hours of training steps (NVIDIA A100), earlier stages counted in"]
    assert series["x"] == pytest.approx([4 * (ends + 416) / 3600, 4 * (ends + 832) / 3600])


def test_without_times_images_alone_are_an_axis() -> None:
    axes = {c["x_label"] for c in figures(TINY, evaluated(), {"64": PACE}) if "along" in c["title"]}
    assert axes == {"images seen, earlier stages counted in"}


def test_over_guidance_each_point_names_its_own() -> None:
    (curve,) = [c for c in figures(TINY, evaluated(), {}) if "guidance" in c["title"]]
    assert curve["lines"] == []  # of stand-ins no printed value is a neighbour
    (series,) = curve["series"]
    assert (series["labels"], series["x"]) == (["1", "3", "5"], pytest.approx([0.1, 0.3, 0.5]))
    Curve.model_validate(curve)


def test_intervals_are_drawn_across_their_points() -> None:
    points = evaluated()
    for point in points:
        for row in point.metrics:
            value = row["values"]["samples"]
            row["interval"] = {"samples": [value - 0.01, value + 0.02]}
    del points[0].metrics[0]["interval"]["samples"]
    curves = [Curve.model_validate(curve) for curve in figures(TINY, points, {})]
    (along,) = [c for c in curves if c.title.startswith("fd") or c.title.startswith("Fr") if "along" in c.title]
    assert along.series[0].x_interval == [] and along.series[0].y_interval[0] is None
    (over,) = [c for c in curves if "guidance" in c.title]
    (series,) = over.series
    assert series.x_interval == [pytest.approx([x - 0.01, x + 0.02]) for x in series.x]
    assert series.y_interval == [pytest.approx([y - 0.01, y + 0.02]) for y in series.y]
    drawn = draw_curve(over, "chart")
    assert 'id="chart-crossed0"' in drawn and 'id="chart-upright0"' in drawn
    with pytest.raises(ValueError, match="y_interval: 2 of 3 points"):
        Series(name="", x=[1, 2, 3], y=[1, 2, 3], y_interval=[None, None])


def test_table_1_stands_where_protocol_and_metric_are_its_own() -> None:
    preset = resolve("cc12m-256", {})
    early = measured(preset, "fid_30k_legacy", 30.0, nimg=512_000)
    late = measured(preset, "fid_30k_legacy", 14.0)
    (curve,) = figures(preset, [early, late], {})
    assert [line["y"] for line in curve["lines"]] == [18.35, 13.43]
    heldout = [replace(point, protocol="cc12m-heldout") for point in (early, late)]
    assert figures(preset, heldout, {})[0]["lines"] == []
    other = [early, replace(late, digest="another")]
    assert figures(preset, other, {}) == []  # never one line through two digests


def test_all_presets_have_a_way_back_to_fresh_weights() -> None:
    for preset in PRESETS.values():
        last = list(preset.stages)[-1]
        points = [measured(preset, "fid_30k_legacy", 9.0, nimg=n, stage=last) for n in (10, 20)]
        (x,) = [s["x"] for c in figures(preset, points, {}) for s in c["series"]]
        assert x[1] - x[0] == 10
