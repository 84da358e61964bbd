"""The three ways of caption states agree as far as their precisions go, and none takes another's set."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mdm.config import ENCODERS, Text
from mdm.data.batches import TrainingSet
from mdm.data.embeddings import TextSource
from mdm.data.shards import Shards, null_condition
from mdm.data.text import caption_states, load_encoder, online_encoder
from mdm.files import write_json
from mdm.network.conditioning import stack_conditions
from mdm.network.nested import NestedUNet
from mdm.network.weights import save_weights
from mdm.presets import MODELS
from mdm.structure import to_dict
from mdm.training.heldout import HeldOut
from preprocessing.embed import embed_captions, stored_states
from small import FAKE, attentive, small_job, small_model

CPU = torch.device("cpu")
CAPTIONS = [
    *("grinning face with big eyes", "woman office worker", "flag of Japan", "red heart", "mountain railway"),
    *("hourglass not done", "input latin letters", "hugging face", "a black cat on a white sofa", "speech balloon"),
    *("two people holding hands in front of the old town hall", "oncoming police car", "bento box", "peach", "zebra"),
    "a photo of the harbour at night, 1987",
]


@pytest.fixture(scope="module")
def minilm(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, TextSource]]:
    """The squares with MiniLM's states of their captions, in both precisions -> the folder, the source of each way."""
    folder = shutil.copytree(squares, tmp_path_factory.mktemp("minilm") / "squares")
    encoder = load_encoder("minilm", Path("/nowhere"))
    digest, limit = encoder.digest(), ENCODERS["minilm"].max_tokens
    for split in ("train", "val"):
        embed_captions(folder / split, "minilm", digest, encoder.encode, limit)
        embed_captions(folder / split, "minilm", digest, encoder.encode, limit, precision="8bit")
    cached = TextSource(encoder="minilm", encoder_digest=digest)
    online = replace(cached, way="online", folder=encoder.folder)
    return folder, {"cached": cached, "cached-8bit": replace(cached, way="cached-8bit"), "online": online}


def all_states(folder: Path, source: TextSource) -> Tensor:
    """[T, D]: of the empty caption, then of every caption."""
    shards = Shards(folder, source)
    states, null = caption_states(shards, range(len(shards)), online_encoder(source, CPU, folder.parent))
    return torch.cat([null, *states])


def test_the_three_ways_give_the_same_states(minilm: tuple[Path, dict[str, TextSource]]) -> None:
    folder, sources = minilm
    states = {way: all_states(folder / "train", source) for way, source in sources.items()}
    exact = states["online"]
    assert exact.shape == states["cached"].shape == states["cached-8bit"].shape
    torch.testing.assert_close(states["cached"], exact, rtol=2**-11, atol=2e-6)  # half precision, no more
    largest = exact.abs().amax(dim=1, keepdim=True)
    assert ((states["cached-8bit"] - exact).abs() <= largest / 254 + 2e-6).all()
    sizes = [(folder / "train" / s.set_name / "00000.safetensors").stat().st_size for s in sources.values()][:2]
    assert 0.5 < sizes[1] / sizes[0] < 0.54


def test_8_bits_move_v_by_a_hundredth_of_what_another_caption_does() -> None:
    """The figures of mdm/data/embeddings.py. An untrained network's v is 0 for any caption, so weights are drawn."""
    encoder = load_encoder("minilm", Path("/nowhere"))
    exact, _ = encoder.encode(CAPTIONS)
    rounded = []
    for state in exact:
        stored = {name: torch.from_numpy(value).float() for name, value in stored_states([state], "8bit").items()}
        rounded.append(stored["tokens"] * stored["scales"].unsqueeze(1))
    error = torch.cat(rounded) - torch.cat(exact)
    assert error.norm() / torch.cat(exact).norm() < 0.02
    assert (error.norm(dim=1) / torch.cat(exact).norm(dim=1)).max() < 0.06

    network = attentive(MODELS["tiny-16"]).eval()
    zs, t = [torch.randn(8, 3, 16, 16)], torch.linspace(20, 1000, 8)
    with torch.no_grad():
        (v,), (v_8bit,), (v_other,) = (
            network(zs, t, **stack_conditions(states)) for states in (exact[:8], rounded[:8], exact[8:])
        )
    assert 0 < (v - v_8bit).norm() / v.norm() < 0.01
    assert (v - v_8bit).norm() / (v - v_other).norm() < 1 / 30


def test_an_online_batch_carries_captions_and_the_same_ones_are_dropped(
    minilm: tuple[Path, dict[str, TextSource]],
) -> None:
    folder, sources = minilm
    encoder = online_encoder(sources["online"], CPU, folder)
    assert encoder is not None
    stored, online = (
        data.batch(range(20))
        for data in (
            TrainingSet(shards, seed=1, null=null_condition(small_model(1), shards), dropout=0.5)
            for shards in (Shards(folder / "train", sources[way]) for way in ("cached", "online"))
        )
    )
    assert 4 < online.captions.count("") < 16
    assert online.states is None
    made, (_, kept) = encoder.condition(list(online.captions)), stored.on(CPU)
    assert torch.equal(made["text_mask"], kept["text_mask"])
    torch.testing.assert_close(made["text"], kept["text"], rtol=2**-11, atol=2e-6)


def test_held_out_captions_are_encoded_once(
    minilm: tuple[Path, dict[str, TextSource]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sources = minilm
    job = small_job(folder, num_levels=1)
    model = replace(job.model, text=Text(dim=384, proj_dim=16, num_layers=1))
    watched = {}
    for way in ("cached", "online"):
        encoder = online_encoder(sources[way], CPU, folder)
        watched[way] = HeldOut(Shards(folder / "val", sources[way]), encoder, model, "v", job.sampling, 0, CPU, 64)
        if encoder is not None:
            monkeypatch.setattr(encoder, "padded", None)  # whoever asks again fails
    torch.testing.assert_close(
        watched["online"].condition["text"], watched["cached"].condition["text"], rtol=2**-11, atol=2e-6
    )
    torch.testing.assert_close(watched["online"].null, watched["cached"].null, rtol=2**-11, atol=2e-6)
    watched["online"].losses(NestedUNet(model))


def test_training_online_is_training_on_the_cached_states(
    minilm: tuple[Path, dict[str, TextSource]], tmp_path: Path
) -> None:
    folder, sources = minilm
    job = small_job(folder, num_levels=1, nimg=16, log_every_nimg=8, eval_every_nimg=16, max_batch_per_process=4)
    model = replace(job.model, text=Text(dim=384, proj_dim=16, num_layers=1))
    for which in ("raw", "ema"):  # of one that listens to captions
        save_weights(tmp_path / "init" / which, model, attentive(model).state_dict())
    job = replace(job, model=model, init=str(tmp_path / "init"))
    values: dict[str, dict[tuple[int, str], float]] = {}
    for way in ("cached", "online"):
        run = tmp_path / way
        run.mkdir()
        write_json(run / "job.json", to_dict(replace(job, text=sources[way])))
        blocked = (
            "import sys; [sys.modules.__setitem__(n, None) for n in ('prefect', 'mlflow', 'flows', 'evaluation')]; "
        )
        code = blocked + f"from mdm.train import main; sys.exit(main([{str(run)!r}]))"
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        values[way] = {(p["nimg"], name): v for p in lines for name, v in p["values"].items() if "loss" in name}
        counts = [p["values"]["data/captions_cut"] for p in lines if "data/captions_cut" in p["values"]]
        assert counts == ([0] * 2 if way == "online" else [])
    assert values["online"] == pytest.approx(values["cached"], rel=1e-3)
    assert values["online"] != values["cached"]  # not bit-equal: they were really of another origin


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder_digest": "fake-2"},
            "was made by another encoder or tokenizer than the fake .*run `mdm embed` again",
        ),
        ({"way": "cached-8bit"}, "text-fake-8bit is no finished set of embeddings"),
        ({"encoder": "other"}, "text-other is no finished set of embeddings"),
    ],
)
def test_a_set_of_another_encoder_or_precision_is_refused(change: dict[str, str], message: str, squares: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Shards(squares / "train", replace(FAKE, **change))
