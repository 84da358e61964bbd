import pytest

from evaluation import results
from evaluation.networks.features import EfficientNetLite0
from evaluation.report import MetricRow
from evaluation.results import FRECHET, KID, TEXT_IMAGE, Metric, Result, memory_bytes
from mdm.presets import PRESETS


def test_names_carry_the_stand_in() -> None:
    assert FRECHET.name == EfficientNetLite0.metric_name(f"fd{EfficientNetLite0.dim}")
    assert KID.name == EfficientNetLite0.metric_name("kid")
    assert TEXT_IMAGE.name == "text_image_cosine_minilm_effnet_heads"
    metrics = {value for value in vars(results).values() if isinstance(value, Metric)}
    assert len({metric.name for metric in metrics}) == len(metrics) >= 5
    for metric in metrics:
        assert "fid" not in metric.name and "clip" not in metric.name and "inception" not in metric.name


def test_record_is_what_the_page_reads() -> None:
    record = Result(KID, 256, {"samples": 0.2, "noise": 1.0}, {"samples": (0.1, 0.3)}).to_record()
    row = MetricRow.model_validate(record)
    assert row.n == 256 and row.interval == {"samples": [0.1, 0.3]} and row.better == "lower"


def test_refuses_what_means_nothing() -> None:
    with pytest.raises(ValueError, match="'samples' is nan"):
        Result(KID, 8, {"samples": float("nan")})
    with pytest.raises(ValueError, match="'noise', which has no value"):
        Result(KID, 8, {"samples": 1.0}, {"noise": (0, 1)})
    with pytest.raises(ValueError, match="does not enclose"):
        Result(KID, 8, {"samples": 2.0}, {"samples": (0, 1)})
    with pytest.raises(ValueError, match="at least one value"):
        Result(KID, 8, {})
    with pytest.raises(ValueError, match="a number of images for 'noise', which has no value"):
        Result(KID, 8, {"samples": 2.0}, sizes={"noise": 4})


def test_what_was_measured_on_another_number_of_images_has_its_own() -> None:
    row = MetricRow.model_validate(Result(KID, 8, {"samples": 0.2, "noise": 1.0}, sizes={"noise": 4}).to_record())
    assert (row.size("samples"), row.size("noise")) == (8, 4)


def test_every_presets_closing_measurement_fits_in_a_common_machine() -> None:
    for preset in PRESETS.values():
        asked = preset.evaluation
        assert asked.num_real > 0, f"{preset.name}: all of its training images, whatever there are"
        assert memory_bytes(asked.num_samples, asked.num_real, preset.px) < 24e9, preset.name
