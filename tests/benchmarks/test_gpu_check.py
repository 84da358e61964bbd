"""make gpu-check: a section that fails is seen in the file and in the exit status, and stops none of the others."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from benchmarks.gpu_check import check, head, main, report
from benchmarks.gpu_parts import Section, Step
from mdm.stage import Compute, Stage
from small import small_job, small_model


def fine(section: Section) -> None:
    section.table("a", "b")
    section.row(1, "two")


def broken(section: Section) -> None:
    raise RuntimeError("NCCL went away")


def test_a_section_that_breaks_fails_the_check_and_not_the_others(tmp_path: Path) -> None:
    assert report(["# head"], check({"one": fine, "two": broken, "three": fine}), tmp_path) == 1
    (written,) = tmp_path.iterdir()
    text = written.read_text()
    assert written.name.endswith("-gpu-check.md")
    assert "## one: passed\n\n| a | b |\n| --- | --- |\n| 1 | two |" in text
    assert "## two: FAILED" in text and "NCCL went away" in text and "## three: passed" in text


def test_all_fine_is_no_error(tmp_path: Path) -> None:
    assert report([], check({"one": fine}), tmp_path) == 0


def test_without_a_gpu_it_says_so() -> None:
    assert "no GPU has run anything here" in "\n".join(head(torch.device("cpu")))


@pytest.mark.parametrize("num_levels", [1, 3])
def test_its_step_trains(num_levels: int) -> None:
    stage = Stage(
        model=small_model(num_levels), training=small_job(Path(), num_levels).training, compute=Compute(compile=False)
    )
    step = Step(stage, 4, torch.device("cpu"))
    losses = [step().item() for _ in range(30)]
    assert losses[-1] < losses[0]


def test_help_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "without one the same on the CPU" in " ".join(capsys.readouterr().out.split())
