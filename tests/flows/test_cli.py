"""The console script: errors in one line, what is printed can be passed back."""

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import mlflow.environment_variables
import pytest
import requests
import torch
from sqlalchemy import create_engine

from evaluation.images.captions import Line, write_lines
from flows.cli import main
from flows.home import hold, quiet_services
from flows.starting.embedded import where_things_are
from flows.starting.preflight import on_this_machine
from mdm.config import MODELS
from mdm.data.shards import Shards
from mdm.files import write_json
from mdm.network.nested import NestedUNet
from mdm.presets import resolve
from mdm.structure import to_dict
from mdm.training.compute import pick_device
from mdm.training.ema import PowerAverages
from mdm.training.posthoc import write_snapshot
from small import small_job, small_model


@pytest.fixture(autouse=True)
def home(tmp_path: Path) -> Iterator[Path]:
    """MDM_HOME; what a verb does to the environment ends with the test."""
    before = dict(os.environ)
    os.environ["MDM_HOME"] = str(tmp_path / "home")
    yield tmp_path / "home"
    os.environ.clear()
    os.environ.update(before)


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
    assert "`mdm embed PRESET --set data.name=openmoji` (PRESET: tiny" in refused(capsys, "embed", "openmoji")
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
        "data: no finished data set cc12m: `mdm data cc12m --source PATH` makes it, of cc12m.tsv",
        "text encoder: flan-t5-xl",
        "disk:",
    ):
        assert part in lines or (part == "disk:" and "disk" not in lines)


def test_an_evaluation_that_no_memory_holds_is_refused_in_the_plan(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MDM_OFFLINE", "1")
    for split, count in (("train", 11_000_000), ("val", 11_000)):
        (home / "datasets" / "cc12m" / split).mkdir(parents=True)
        manifest = {"samples": count, "digest": "", "resolution_px": 256, "shards": []}
        write_json(home / "datasets" / "cc12m" / split / "manifest.json", manifest)
    every = ("--dry-run", "--set", "evaluation.num_real=0")
    lines = refused(capsys, "run", "cc12m-256", *every)
    assert "memory: evaluation holds 1,000 samples and 11,000,000 training images of 256 px at once" in lines
    assert "set evaluation.num_samples and evaluation.num_real" in lines
    assert "memory" not in refused(capsys, "run", "cc12m-256", "--dry-run")
    assert "and 1,281,167 training images of 256 px" in refused(capsys, "run", "imagenet-256", *every)  # no set is here
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


def test_dry_run_starts_nothing_and_says_what_is_done(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "tiny", "--dry-run"]) == 0
    first = capsys.readouterr().out
    assert "train 16 → grow 32 → train 32" in first
    assert not (home / "runs").exists()
    (home / "runs" / "tiny" / "16").mkdir(parents=True)
    write_json(home / "runs" / "tiny" / "16" / "done.json", {"seconds": 61})
    assert main(["run", "tiny", "--dry-run"]) == 0
    states = [dict(line.split()[:2] for line in out.splitlines()[1:]) for out in (first, capsys.readouterr().out)]
    assert set(states[0].values()) == {"missing"}
    assert states[1] == {**states[0], "16": "done"}


def test_a_run_that_a_deployed_flow_has_is_refused_before_anything_starts(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with hold(home / "runs" / "tiny" / "flow.lock", "run tiny"):
        assert main(["run", "tiny"]) == 1
    assert f"run tiny is in use by process {os.getpid()}" in capsys.readouterr().err
    assert not (home / "prefect").exists()


def test_what_lies_among_the_runs_is_named_and_ends_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, config in (("foreign", '{"a": 1}'), ("torn", '{"stages": '), ("whole", '{"stages": {"16": {}}}')):
        (home / "runs" / name / "16").mkdir(parents=True)
        (home / "runs" / name / "config.json").write_text(config)
    marker = home / "runs" / "whole" / "16" / "done.json"
    marker.write_text('{"seconds": 3')
    assert main(["status"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert f"{home / 'runs' / 'foreign' / 'config.json'} is not of a run" in lines["foreign"]
    assert f"{home / 'runs' / 'torn' / 'config.json'} is not of a run" in lines["torn"]
    assert "0 of 4 stages done" in lines["whole"]
    assert main(["status", "whole"]) == 0
    assert f"{marker} is torn" in capsys.readouterr().out
    assert "is not of a run" in refused(capsys, "status", "foreign")


def test_features_of_references_are_listed_and_those_that_nobody_reads(
    home: Path, squares: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "datasets").mkdir(parents=True)
    (home / "datasets" / "squares").symlink_to(squares)
    assert main(["status"]) == 0 and "files of features" not in capsys.readouterr().out
    references, data = home / "references", Shards(squares / "val").revision
    for name, entry in (("new", {"data": [data]}), ("old", {"data": [{**data, "revision": 1}]}), ("noise", {})):
        (references / f"{name}.part").mkdir(parents=True)
        (references / f"{name}.npy").write_bytes(bytes(2_000_000))
        write_json(references / f"{name}.json", entry)
    (references / "old.part").rmdir()
    (references / "new.part" / "half.npy").write_bytes(bytes(1_000))
    with hold(references / "noise.part" / "owner.lock", "features"):
        assert main(["status"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"3 files of features in {references}, 6.0 MB: made again where they were deleted",
        "  new.part  1.0 kB  unfinished: the same evaluation goes on",
        "  noise.part  0 bytes  being made",
        "  old.npy  2.0 MB  of data that is no more here, or has lost samples since",
    ]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_one_line(
    number: int, home: Path, squares: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", no_locks)
    run = home / "runs" / "small"
    (run / "16").mkdir(parents=True)
    write_json(run / "config.json", {"stages": {"16": {}}})
    write_json(run / "job.json", to_dict(small_job(squares, nimg=8)))
    (run / "flow.lock").touch()
    (run / "16" / "lock").touch()
    for verb in (["run", "tiny"], ["data", "tiny"], ["train", str(run)]):
        assert main(verb) == 1
        assert re.search(r"mdm( train)?: .*lock cannot be locked .* has no locks", capsys.readouterr().err)
    assert main(["status", "small"]) == 0
    assert "begun" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "name"), [("cuda", "Rocket 9000"), ("mps", "Apple's GPU (MPS)")])
def test_a_gpu_that_is_seen_is_named_with_the_line_that_uses_it(
    kind: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: kind == "cuda")
    monkeypatch.setattr("torch.cuda.device_count", lambda: int(kind == "cuda"))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: name)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: kind == "mps")
    assert main(["run", "tiny", "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert f"this machine has {name}" in said and "`--device auto`" in said
    assert main(["run", "tiny", "--dry-run", "--device", "auto"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("run tiny in ") and told.err == ""  # the same run as without
    chosen = on_this_machine(resolve("tiny", {"hardware": {"device": "auto"}})).hardware
    assert (chosen.device, chosen.processes) == (kind, 1)
    other = "mps" if kind == "cuda" else "cuda"
    assert "this machine cannot run preset tiny" in refused(capsys, "run", "tiny", "--device", other)
    if kind == "mps":
        assert pick_device("auto").type == kind


def test_a_machine_without_a_gpu_trains_on_its_cores(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "tiny", "--dry-run"]) == 0
    assert capsys.readouterr().err == ""
    chosen = on_this_machine(resolve("tiny", {"hardware": {"device": "auto"}})).hardware
    assert (chosen.device, chosen.processes) == ("cpu", 2)


@pytest.mark.parametrize("proxy", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_our_own_servers_are_not_asked_through_a_proxy(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "inside.example")
    monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    quiet_services()
    for url in ("http://127.0.0.1:4200/api/health", "http://localhost:5000/health", "http://inside.example"):
        assert requests.utils.get_environ_proxies(url) == {}
    assert requests.utils.get_environ_proxies("http://example.org") != {}


def test_a_server_that_never_answers_is_given_up_within_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "")  # to be put back
        monkeypatch.delenv(name)
    quiet_services()
    tries = 1 + mlflow.environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.get()
    assert tries * mlflow.environment_variables.MLFLOW_HTTP_REQUEST_TIMEOUT.get() <= 60


def test_settings_that_a_run_does_not_heed_are_said_and_logins_kept(home: Path) -> None:
    strange = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    code = (
        "import json, os; from flows.home import embed_services; lines = embed_services(); "
        "print(json.dumps([lines, {k: v for k, v in os.environ.items() if k[:6] in ('PREFEC', 'MLFLOW')}]))"
    )
    environment = {**os.environ, **strange, "MLFLOW_TRACKING_PASSWORD": "secret"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    lines, settings = json.loads(told.stdout)
    assert settings["MLFLOW_TRACKING_PASSWORD"] == "secret" and not strange.keys() & settings.keys()
    assert [name for name in strange if any(name in line for line in lines)] == list(strange)
    assert "secret" not in str(lines)


@pytest.mark.slow
def test_a_server_that_ends_at_once_is_told_with_its_last_words(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file where Prefect's database should be: any cause is told as the server told it."""
    (home / "prefect" / "prefect.db").mkdir(parents=True)
    command = [sys.executable, "-m", "flows.cli", "run", "tiny"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "mdm: Prefect's temporary server ended with code" in done.stderr
    assert "unable to open database file" in done.stderr and "Traceback" not in done.stderr


def test_what_is_printed_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDM_HOME", str(home := tmp_path / "a b%20c?d"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (home / "runs" / "tiny").mkdir(parents=True)
    write_json(home / "runs" / "tiny" / "config.json", {"stages": {"16": {}}})
    captions = ["a dog's $(rm) \x1b[31m", "a dog's $(rm) \x1b[31m", "a cat " * 99]
    drawn = [Line(index=i, key=f"k{i}", caption=caption, seed=i) for i, caption in enumerate(captions)]
    (home / "runs" / "tiny" / "samples" / "samples").mkdir(parents=True)
    write_lines(home / "runs" / "tiny" / "samples" / "samples", drawn)
    lines = {line[:12].strip(): line[13:] for line in where_things_are("tiny").splitlines() if line}
    words = {what: shlex.split(line) for what, line in lines.items()}
    assert words["Your prompt"][-2:] == ["a dog's $(rm) \ufffd[31m", ("a cat " * 10)]
    assert f"MDM_HOME={home}" in words["Your prompt"] and f"PREFECT_HOME={home / 'prefect'}" in words["Prefect UI"]
    assert create_engine(words["MLflow UI"][-1]).url.database == f"file:{quote(str(home / 'mlflow' / 'mlflow.db'))}"


@pytest.mark.parametrize("processes", [1, 2])
def test_mdm_train_works_without_prefect_and_mlflow(processes: int, squares: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_json(run / "job.json", to_dict(small_job(squares, nimg=8)))
    code = (
        "import sys\n"
        "for name in ('prefect', 'mlflow', 'pydantic', 'rich', 'psutil', 'joblib'): sys.modules[name] = None\n"
        f"options = ['--attempt=3', '--tolerate=1', '--processes={processes}']\n"
        f"from flows.cli import main; sys.exit(main(['train', {str(run)!r}, *options]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    told = json.loads((run / "outcome.json").read_text())
    assert (told["outcome"], told["attempt"]) == ("done", 3)


def test_a_torn_file_of_a_run_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = home / "runs" / "torn"
    write_json(make(run / "samples") / "done.json", {})
    make(run / "report")
    for torn in (run / "config.json", run / "report" / "records.json"):
        torn.write_text("{")
    for command in (["sample", "torn", "a"], ["evaluate", "torn"]):
        assert f"{run / 'config.json'} is torn or no JSON" in refused(capsys, *command)
    assert "records.json is torn or no JSON" in refused(capsys, "report", "torn")
    assert "nobody is no run (`mdm status` lists them)" in refused(capsys, "report", "nobody")
    make(home / "runs" / "begun")
    assert "records.json is missing" in refused(capsys, "report", "begun")
    assert "--part is of the images that a protocol draws" in refused(capsys, "evaluate", "torn", "--part", "1/2")
    keys = home / "keys.txt"
    keys.write_bytes(b"caf\xe9\n")
    assert "keys.txt is no UTF-8 text (at byte 3)" in refused(capsys, "data", "tiny", "--remove", str(keys))


def make(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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


def test_models_lists_parameters_and_flops(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdm.config.MODELS", {name: MODELS[name] for name in ("MDM-S64S256", "tiny-16")})
    assert main(["models"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("MDM-S64S256 "))
    assert "449,833,286" in line
    assert "587.61" in line


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m flows.cli models | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("model")
