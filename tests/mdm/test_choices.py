"""Open questions of the paper: every reading resolves, the default changes nothing, the page is the table."""

from pathlib import Path

import pytest

from mdm.choices import CHOICES, overrides, table
from mdm.presets import PRESETS, resolve

PAGE = Path(__file__).parents[2] / "docs" / "choices.md"
PAPER = [name for name in PRESETS if name != "tiny"]


@pytest.mark.parametrize("topic", CHOICES)
def test_the_first_reading_is_the_default_and_the_others_are_not(topic: str) -> None:
    concerned = 0
    for name in PAPER:
        for i, reading in enumerate(CHOICES[topic].readings):
            try:
                changed = resolve(name, overrides(PRESETS[name], f"{topic}={reading}"))
            except ValueError as error:
                assert "no stage that it concerns" in str(error)
                continue
            concerned += 1
            assert (changed == PRESETS[name]) == (i == 0), (name, reading)
    assert concerned >= len(CHOICES[topic].readings)


def test_another_batch_keeps_steps_and_warm_up_in_steps() -> None:
    stage = resolve("cc12m-1024", overrides(PRESETS["cc12m-1024"], "batch-1024=table-3")).stages["1024"].training
    assert (stage.batch_size, stage.nimg, stage.warmup_nimg) == (384, 384 * 100_000, 384 * 30_000)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("batch=table-3", "unknown topic 'batch'; there are cc12m-64, batch-1024"),
        ("batch-1024=table", "unknown reading 'table'; there are app-b, table-3"),
        ("imagenet-schedule=table-3", "preset cc12m-1024 has no stage that it concerns"),
    ],
)
def test_a_wrong_choice_is_named(chosen: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overrides(PRESETS["cc12m-1024"], chosen)


def test_the_page_is_the_table() -> None:
    assert PAGE.read_text() == table(), "mdm config --choices > docs/choices.md"
