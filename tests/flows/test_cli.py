"""The console script: errors in one line, what is printed can be passed back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flows.cli import main
from mdm.files import write_json
from mdm.network.nested import NestedUNet
from mdm.structure import to_dict
from mdm.training.ema import PowerAverages
from mdm.training.posthoc import write_snapshot
from small import small_job, small_model


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MDM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_config_prints_what_config_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "tiny", "--set", "seed=3"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "c.json").write_text(printed)
    assert main(["config", "tiny", "--config", str(tmp_path / "c.json")]) == 0
    assert capsys.readouterr().out == printed
    assert json.loads(printed)["seed"] == 3


def test_wrong_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown preset 'tinny'; there are tiny" in refused(capsys, "run", "tinny")
    assert "stages.16.training.nimgs" in refused(capsys, "run", "tiny", "--set", "stages.16.training.nimgs=4")
    assert "is not JSON" in refused(capsys, "run", "tiny", "--config", __file__)
    assert "job.json is missing" in refused(capsys, "train", str(tmp_path))
    assert "is no run" in refused(capsys, "sample", "nothing", "red heart")
    assert "is no run" in refused(capsys, "status", "nothing")
    assert "holds no metrics.jsonl" in refused(capsys, "track", str(tmp_path))


def test_a_preset_this_machine_cannot_run_says_all_that_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MDM_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", "/nonexistent")
    lines = refused(capsys, "run", "cc12m-1024")
    for part in (
        "GPUs: hardware.processes wants 8",
        "data: no finished dataset at",
        "text encoder: flan-t5-xl",
        "disk:",
    ):
        assert part in lines or (part == "disk:" and "disk" not in lines)


def test_an_evaluation_that_no_memory_holds_is_refused_in_the_plan(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MDM_OFFLINE", "1")
    for split, count in (("train", 11_000_000), ("val", 11_000)):
        (home / "datasets" / "cc12m-256" / split).mkdir(parents=True)
        write_json(home / "datasets" / "cc12m-256" / split / "manifest.json", {"samples": count})
    lines = refused(capsys, "run", "cc12m-256", "--dry-run")
    assert "memory: evaluation holds 30,000 samples and 11,011,000 real images of 256 px at once" in lines
    assert "set evaluation.num_samples and evaluation.num_real" in lines
    fewer = [part for name in ("num_samples", "num_real") for part in ("--set", f"evaluation.{name}=500")]
    assert "memory" not in refused(capsys, "run", "cc12m-256", "--dry-run", *fewer)
    assert not (home / "runs").exists()


def test_an_unwritable_home_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MDM_HOME", str(tmp_path / "file" / "home"))
    assert "cannot be written (Not a directory): set MDM_HOME" in refused(capsys, "run", "tiny")


def test_a_second_run_on_one_home_is_told_who_holds_it(home: Path) -> None:
    code = (
        "import sys; from flows.home import hold, home\n"
        "with hold(home() / 'run.lock', 'x'): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    second = subprocess.run([sys.executable, "-m", "flows.cli", "run", "tiny"], capture_output=True, text=True)
    holder.communicate("")
    assert second.returncode == 1
    assert f"is in use by process {holder.pid}" in second.stderr


def test_dry_run_starts_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "tiny", "--dry-run"]) == 0
    assert "train 16 → grow 32 → train 32" in capsys.readouterr().out
    assert not (home / "runs").exists()


def test_mdm_train_works_without_prefect_and_mlflow(squares: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_json(run / "job.json", to_dict(small_job(squares, nimg=8)))
    code = (
        "import sys\nfor name in ('prefect', 'mlflow', 'pydantic', 'rich'): sys.modules[name] = None\n"
        f"from flows.cli import main; sys.exit(main(['train', {str(run)!r}, '--attempt=3', '--tolerate=1']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    told = json.loads((run / "outcome.json").read_text())
    assert (told["outcome"], told["attempt"]) == ("done", 3)


def test_every_verb_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = "run data embed train ema sample evaluate report track status models config verify deploy"
    for verb in verbs.split():
        with pytest.raises(SystemExit) as end:
            main([verb, "--help"])
        assert end.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: mdm {verb}")


def test_a_preset_is_priced_before_anything_runs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    price = ["train", "--preset", "tiny", "--dry-run"]
    assert main([*price, "--stage", "16", "--set", "stages.16.training.nimg=1920"]) == 0
    rows = {line[:26].strip(): line[26:].split() for line in capsys.readouterr().out.splitlines() if line[:1] != " "}
    assert rows["parameters"] == ["1,409,507"]
    assert rows["steps x images per step"] == ["120", "x", "16"]
    assert rows["time"] == ["0.2", "min"]
    assert not home.exists()
    assert "`mdm run tiny` trains a preset's stages" in refused(capsys, "train", "--preset", "tiny")
    assert "needs a run folder, or --preset" in refused(capsys, "train")
    assert "not both" in refused(capsys, "train", "folder", "--preset", "tiny", "--dry-run")
    assert "the stages of tiny are 16, 32, 64" in refused(capsys, *price, "--stage", "8")
    assert "16 does not divide by 3 processes" in refused(capsys, *price, "--processes", "3")
    assert "go with --preset" in refused(capsys, "train", "folder", "--set", "seed=1")


def test_a_job_is_priced_too(squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "job.json", to_dict(small_job(squares)))
    assert main(["train", str(tmp_path), "--dry-run", "--processes", "2"]) == 0
    out = capsys.readouterr().out
    assert "12 x 8" in out and "1 x 4" in out
    assert "training.batch_size 8 does not divide by 3" in refused(
        capsys, "train", str(tmp_path), "--dry-run", "--processes", "3"
    )


def test_an_ema_of_another_length_is_rebuilt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    averages = PowerAverages(dict((network := NestedUNet(small_model(1))).named_parameters()))
    for step in range(1, 5):
        averages.update(list(network.parameters()), step * 8, 8)
        write_snapshot(run, step * 8, network.config, averages.weights)
    assert main(["ema", str(run), "--length", "0.08", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("0.050") == 4 and "nothing written" in printed
    assert main(["ema", str(run), "--length", "0.08", "-o", str(out)]) == 0
    torch.testing.assert_close(NestedUNet.from_pretrained(out).state_dict(), network.state_dict(), rtol=1e-5, atol=1e-6)
    assert "now in" in capsys.readouterr().out
    assert "exists already" in refused(capsys, "ema", str(run), "--length", "0.08", "-o", str(out))
    assert "needs -o FOLDER" in refused(capsys, "ema", str(run), "--length", "0.08")
    assert main(["ema", str(run), "--length", "0.01", "--dry-run"]) == 1
    assert "more than the 5% admitted" in capsys.readouterr().err


def test_models_lists_parameters_and_flops(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("MDM-S64S256 "))
    assert "449,833,286" in line
    assert "587.61" in line


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m flows.cli models | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("model")
