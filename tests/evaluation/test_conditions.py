"""What images are conditioned on: a negative prompt takes the place of the null caption, stored or encoded now."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.generate import ImageJob, ImageSet, generate_images, prepare
from evaluation.images.asked import prompts_of, refuse
from evaluation.images.captions import read_lines
from evaluation.images.image_folder import ImageFolder
from evaluation.protocols import PROTOCOLS
from mdm.config import ENCODERS, Labels, Sampling, Text, padded_length
from mdm.data.embeddings import TextSource
from mdm.data.ranges import to_uint8
from mdm.data.shards import Shards
from mdm.data.text import TextEncoder, load_encoder
from mdm.diffusion.process import Process
from mdm.diffusion.sampling import SeededNoise, sample
from mdm.network.conditioning import stack_conditions
from mdm.network.nested import NestedUNet
from mdm.network.weights import save_weights
from preprocessing.embed import embed_captions
from small import attentive, small_model

SAMPLING = Sampling(steps=3, guidance=(4.0, 2.0), batch_size=2)
MODEL = replace(small_model(2), text=Text(dim=384, proj_dim=16, num_layers=1))


@pytest.fixture(scope="module")
def made(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TextSource, TextEncoder]:
    """A folder with ``val``, its states by MiniLM, and ``weights`` of a network that listens to them."""
    root = tmp_path_factory.mktemp("negative")
    shutil.copytree(squares / "val", root / "data" / "val")
    encoder = load_encoder("minilm", Path("/nowhere"))
    embed_captions(root / "data" / "val", "minilm", encoder.digest(), encoder.encode, ENCODERS["minilm"].max_tokens)
    save_weights(root / "weights", MODEL, attentive(MODEL).state_dict())
    return root, TextSource(encoder="minilm", encoder_digest=encoder.digest(), folder=encoder.folder), encoder


def drawn(root: Path, out: Path, text: TextSource, **changes: Any) -> np.ndarray:
    """uint8 [2, 16, 16, 3]."""
    images = ImageSet(name="set", weights=str(root / "weights"), sampling=SAMPLING)
    job = ImageJob(sets=(images,), data=str(root / "data" / "val"), text=text, device="cpu")
    job = replace(job, **changes)
    prepare(out, job, prompts_of(PROTOCOLS["embedded"], MODEL, root / "data", 2))
    generate_images(out, job, 0, 1)
    return ImageFolder(out / "set").load([0, 1], 16).transpose(0, 2, 3, 1)


def test_guidance_leads_away_from_the_negative_prompt(
    made: tuple[Path, TextSource, TextEncoder], tmp_path: Path
) -> None:
    """As computed here by hand: v = v_negative + w (v_caption - v_negative) at each level."""
    root, text, encoder = made
    network, process = NestedUNet.from_pretrained(root / "weights"), Process.of(MODEL)
    shards = Shards(root / "data" / "val", text)
    captions = [shards.tokens(i).float() for i in range(2)]
    negative = encoder.encode(["low quality"])[0] * 2
    states = stack_conditions([*captions, *negative], padded_length(MODEL.text))
    to, away = ({name: value[part] for name, value in states.items()} for part in (slice(0, 2), slice(2, 4)))

    def guided(zs: list[torch.Tensor], t: torch.Tensor) -> list[torch.Tensor]:
        pairs = zip(network(zs, t, **to), network(zs, t, **away), SAMPLING.guidance, strict=True)
        return [v_negative + w * (v - v_negative) for v, v_negative, w in pairs]

    found = drawn(root, tmp_path / "negative", text, negative_prompt="low quality")
    seeds = [line.seed for line in read_lines(tmp_path / "negative" / "set")]
    xs = sample(guided, process, SAMPLING, SeededNoise(seeds, process.resolutions))
    expected = to_uint8(xs[-1]).permute(0, 2, 3, 1).numpy()
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1  # rounded the other way by a hair
    plain = drawn(root, tmp_path / "plain", text)
    assert np.abs(found.astype(int) - plain.astype(int)).max() > 20


def test_an_empty_negative_prompt_is_the_null_caption_and_online_and_stored_states_agree(
    made: tuple[Path, TextSource, TextEncoder], tmp_path: Path
) -> None:
    root, text, _ = made
    without = drawn(root, tmp_path / "without", replace(text, folder=""))
    np.testing.assert_array_equal(drawn(root, tmp_path / "empty", text, negative_prompt=""), without)
    stored = drawn(root, tmp_path / "stored", text, negative_prompt="low quality")
    online = drawn(root, tmp_path / "online", replace(text, way="online"), negative_prompt="low quality")
    assert np.abs(stored.astype(int) - online.astype(int)).max() <= 2  # the captions' states differ by half precision
    own = drawn(root, tmp_path / "own", replace(text, way="online"), data="", negative_prompt="low quality")
    np.testing.assert_array_equal(own, online)  # prompts of no data set are encoded as those of one are


def test_what_cannot_be_asked_is_said(made: tuple[Path, TextSource, TextEncoder], tmp_path: Path) -> None:
    root, text, _ = made
    with pytest.raises(ValueError, match=r"'low quality' must be encoded, and no text\.folder says by what"):
        drawn(root, tmp_path / "a", replace(text, folder=""), negative_prompt="low quality")
    with pytest.raises(ValueError, match=r"are of no data set have no stored states: text\.way must be online"):
        drawn(root, tmp_path / "b", text, data="")
    with pytest.raises(ValueError, match="a model of labels reads no captions"):
        ImageJob(sets=(), data="", text=None, negative_prompt="low quality")
    labels = replace(MODEL, text=None, labels=Labels(num_classes=4))
    with pytest.raises(ValueError, match="mdm-released asks with captions, and squares is conditioned on labels"):
        refuse(PROTOCOLS["mdm-released"], labels, "squares")


def test_the_released_script_passes_over_other_letters(squares: Path) -> None:
    asked = replace(PROTOCOLS["mdm-released"], num_samples=4)
    assert len(prompts_of(asked, MODEL, squares, 4)) == 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shards, "caption", lambda self, i: ("café", "a", "b", "東京")[i])
        assert [prompt.caption for prompt in prompts_of(asked, MODEL, squares, 4)] == ["a", "b"]
