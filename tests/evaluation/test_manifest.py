"""Prompts from a file: the layout that GenEval reads, fields kept, resumed to the byte, other settings refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.images.captions import image_seed
from evaluation.images.manifest import read_prompts
from evaluation.images.prompts import conditions_of, open_drawing
from flows.cli import main
from mdm.config import Labels, Sampling, Text
from mdm.data.embeddings import TextSource
from mdm.data.ranges import to_uint8
from mdm.data.text import load_encoder
from mdm.diffusion.generate import generate
from small import attentive, small_model
from tests.flows.test_protocols import write_run

MODEL = replace(small_model(2), text=None, labels=Labels(num_classes=4, null=True))
SAMPLING = Sampling(steps=2, guidance=(2.0,), batch_size=2)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of labels, which need no encoder."""
    folder = tmp_path / "runs" / "small"
    write_run(folder, tmp_path, MODEL, sampling=SAMPLING)
    return folder


def test_a_negative_prompt_is_what_guidance_leads_away_from(tmp_path: Path) -> None:
    text, encoder = (
        replace(small_model(2), text=Text(dim=384, proj_dim=16, num_layers=1)),
        load_encoder("minilm", tmp_path),
    )
    source = TextSource(encoder="minilm", encoder_digest=encoder.digest())
    write_run(tmp_path / "run", tmp_path / "gone", text, source=source, text="minilm", sampling=SAMPLING)
    for negative in ("", "low quality"):
        drawing = open_drawing(tmp_path / "run", {}, None, "cpu", negative)
        states, null = conditions_of(drawing, ["a red heart"], tmp_path)
        assert isinstance(null, torch.Tensor) and len(states) == 1
        torch.testing.assert_close(null, encoder.encode([negative])[0][0], atol=1e-5, rtol=1e-5)


def test_pictures_lie_as_geneval_reads_them_and_a_kill_costs_what_is_missing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "asked.jsonl", tmp_path / "out"
    file.write_text('{"prompt": "3", "tag": "colors", "include": [{"class": "bus"}]}\n\n{"prompt": "1"}\n')
    command = ["sample", str(run), "--prompts", str(file), "-o", str(out), "--count", "3", "--seed", "5"]
    assert main(command) == 0 and capsys.readouterr().out == f"{out / 'manifest.jsonl'}\n"
    assert sorted(path.name for path in out.iterdir()) == ["00000", "00001", "manifest.jsonl", "settings.json"]
    assert json.loads((out / "00000" / "metadata.jsonl").read_text()) == read_prompts(file)[0]  # one object, one line
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [(line["index"], line["sample"], line["prompt"]) for line in lines] == [
        (index, sample, prompt) for index, prompt in enumerate("31") for sample in range(3)
    ]
    assert lines[2]["image"] == "00000/samples/0002.png" and lines[2]["include"] == [{"class": "bus"}]
    seeds = [image_seed(5, number) for number in range(2)]
    drawn = generate(attentive(MODEL).eval(), [1, 1], 4, seeds, SAMPLING, torch.device("cpu"))[-1]
    expected = to_uint8(drawn).permute(0, 2, 3, 1).numpy()
    pictures = {line["image"]: (out / line["image"]).read_bytes() for line in lines}
    for number in range(2):
        with Image.open(out / "00001" / "samples" / f"000{number}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), expected[number])
    (out / "manifest.jsonl").unlink()
    (out / "00001" / "samples" / "0000.png").unlink()
    kept = (out / "00000" / "samples" / "0001.png").stat().st_mtime_ns
    assert main(command) == 0 and (out / "manifest.jsonl").exists()
    assert {name: (out / name).read_bytes() for name in pictures} == pictures
    assert (out / "00000" / "samples" / "0001.png").stat().st_mtime_ns == kept
    capsys.readouterr()
    assert main([*command, "--steps", "3"]) == 1
    assert f"{out} was begun with other sampling: give another folder (-o)" in capsys.readouterr().err
    begun = json.loads((out / "settings.json").read_text())
    (out / "settings.json").write_text(json.dumps({**begun, "format": 1}))  # of other noise
    assert main(command) == 1 and "begun with other format" in capsys.readouterr().err
    del begun["format"]  # as the first version wrote it, whose noise is today's
    (out / "settings.json").write_text(json.dumps(begun))
    assert main(command) == 0
    capsys.readouterr()
    file.write_text('{"prompt": "3"}\n')
    assert main(command) == 1 and "begun with other prompts" in capsys.readouterr().err


def test_what_is_wrong_with_a_file_of_prompts_is_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain.txt").write_text("a red heart \n\nein Bär\n", encoding="utf-8")
    assert read_prompts(tmp_path / "plain.txt") == [{"prompt": "a red heart"}, {"prompt": "ein Bär"}]
    (tmp_path / "windows.jsonl").write_bytes('\ufeff{"prompt": "a\u2028b"}\r\n{"prompt": "c"}\r\n'.encode())
    assert read_prompts(tmp_path / "windows.jsonl") == [{"prompt": "a\u2028b"}, {"prompt": "c"}]
    for text, says in (
        ("", "has no prompt"),
        ('{"prompt": "a\\ud800b"}', "line 1: the prompt holds half a letter"),
        ("{", "line 1 is no JSON"),
        ('{"prompt": "a", "weight": NaN}', "line 1 is no JSON: NaN is no number of JSON's"),
        ('{"prompt": "a", "weight": 1e999}', "line 1 is no JSON: 1e999 is no number of JSON's"),
        ('{"prompt": ' + "[" * 200_000, "line 1 is no JSON"),
        ('{"prompt": " "}', "line 1: the prompt is empty"),
        ('{"text": "a"}', 'line 1: an object with a "prompt" is needed'),
        ('{"prompt": "a"}\n{"prompt": "b", "seed": 1}', "line 2: seed is a field of the manifest"),
    ):
        (tmp_path / "wrong.jsonl").write_text(text)
        assert main(["sample", str(run), "--prompts", str(tmp_path / "wrong.jsonl")]) == 1
        assert says in capsys.readouterr().err
    for words, says in (
        ([], "the following arguments are required: PROMPT"),
        (["1", "--negative", "blurred"], "is conditioned on labels, and reads no captions"),
        (["1", "--negative", "blurred", "--guidance", "1"], "does nothing without guidance"),
        (["1", "--prompts", str(tmp_path / "plain.txt")], "give prompts, or a file of them"),
        (["--prompts", str(tmp_path / "plain.txt"), "--strip"], "are of prompts given one by one"),
        (["--prompts", str(tmp_path / "a.csv")], "neither .txt"),
        (["1", "--guidance-interval", "0.5"], "--guidance-interval takes two numbers, LOW,HIGH, not '0.5'"),
        (["--prompts", str(tmp_path / "plain.txt")], "on labels: give numbers from 0 to 3, not 'a red heart'"),
    ):
        try:
            assert main(["sample", str(run), *words]) == 1
        except SystemExit as ended:
            assert ended.code == 2
        assert says in capsys.readouterr().err
