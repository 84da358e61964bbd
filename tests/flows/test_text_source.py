"""Which way of caption states a preset's jobs are given: chosen once, then kept."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

import flows.datasets.text
from flows.cli import main
from flows.datasets.text import Captions
from mdm.data.leases import Lease
from mdm.presets import PRESETS, Preset, resolve
from preprocessing.embed import embed_captions
from small import fake_encode


@pytest.fixture
def folder(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 + 9 captions, as the dataset ``squares`` of an MDM_HOME."""
    monkeypatch.setenv("MDM_HOME", str(tmp_path))
    return shutil.copytree(squares, tmp_path / "datasets" / "squares")


def preset(embeddings: str, nimg: int = 1000) -> Preset:
    stages = {name: {"training": {"nimg": nimg}} for name in ("16", "32", "64")}
    return resolve("tiny", {"data": {"name": "squares"}, "embeddings": embeddings, "stages": stages})


def test_the_presets_say_how() -> None:
    assert resolve("tiny", {}).embeddings == "cached"
    assert resolve("cc12m-1024", {}).embeddings == "auto"
    with pytest.raises(ValueError, match="embeddings must be one of auto, online, cached, cached-8bit; got 'disk'"):
        resolve("tiny", {"embeddings": "disk"})


@pytest.mark.parametrize("way", ["online", "cached", "cached-8bit"])
def test_what_is_asked_for_is_done(way: str, folder: Path) -> None:
    said: list[str] = []
    captions = Captions(preset(way), folder)
    source = captions.source(said.append)
    assert (source.way, source.encoder, source.encoder_digest) == (way, "minilm", captions.digest)
    assert source.folder == (str(captions.encoder_folder) if way == "online" else "")
    assert said == []


def test_auto_is_resolved_by_measured_cost_and_a_rerun_does_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    assert Captions(preset("auto"), folder).source(said.append).way == "cached"  # each caption is seen many times
    assert Captions(preset("auto", nimg=16), folder).source(said.append).way == "online"  # 48 images of 49 captions
    assert said[0].startswith("embeddings cached: encoding takes")
    assert said[1].startswith("embeddings online: encoding takes")

    def measured_again(*_: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(flows.datasets.text, "measure_cost", measured_again)
    assert Captions(preset("auto"), folder).source(said.append).way == "cached"
    assert Captions(preset("auto", nimg=16), folder).source(said.append).way == "online"
    assert said[2:] == said[:2]
    with pytest.raises(AssertionError, match="measured again"):  # another training is another question
        Captions(preset("auto", nimg=32), folder).source(said.append)
    eight = Captions(preset("cached-8bit"), folder)
    eight.embed("cached-8bit", lambda start: lambda done, total: None)
    assert Captions(preset("auto", nimg=32), folder).source(said.append).way == "cached-8bit"
    assert said[-1] == "embeddings cached-8bit: they are there already"


def test_states_that_another_process_reads_are_not_replaced_by_another_encoders(folder: Path) -> None:
    captions = Captions(preset("cached"), folder)
    embed_captions(folder / "val", "minilm", "of another tokenizer", fake_encode, 8)
    before = (folder / "val" / "text-minilm" / "00000.safetensors").read_bytes()
    with Lease(folder, "training a") as lease:
        torn = lease.path.with_name("x-1-00.json")
        for other, told in (
            ({"pid": os.getppid(), "started": None}, r"training a \(process .*"),  # another process that lives
            ({"machine": "elsewhere"}, r"training a \(process .*"),  # numbers are each machine's own
            ({}, rf"an unknown owner \({torn} cannot be read\)"),
        ):
            owner = {**lease.owner, "time": time.time(), **other}
            torn.write_text(json.dumps(owner) if other else "")
            with pytest.raises(ValueError, match=rf"are another minilm's, and {told} may be reading them"):
                captions.embed("cached", lambda start: lambda done, total: None)
    assert (folder / "val" / "text-minilm" / "00000.safetensors").read_bytes() == before


def test_embed_prints_what_each_way_costs_and_makes_what_is_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["tiny", "--set", "data.name=squares", "--set"]
    assert main(["embed", *options, "embeddings=auto", "--dry-run"]) == 0
    out = capsys.readouterr().out
    seen = sum(stage.training.nimg for stage in PRESETS["tiny"].stages.values())
    for part in ("49 captions of", f"ms each; {seen:,} images will be seen", "cached: ", "cached-8bit: ", "online: "):
        assert part in out
    assert "auto chooses cached: " in out
    assert not list(folder.glob("*/text-minilm*")) and not list(folder.glob("text-*"))
    assert main(["embed", *options, "embeddings=online"]) == 0
    assert "nothing is stored: the trainers encode" in capsys.readouterr().out
    assert not list(folder.glob("*/text-minilm*"))
    assert main(["embed", *options, "embeddings=cached-8bit"]) == 0
    assert (folder / "train" / "text-minilm-8bit" / "manifest.json").exists()
    assert not (folder / "train" / "text-minilm").exists()
