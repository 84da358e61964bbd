"""Frozen encoders: what they are, where they are found, what they do with long captions."""

import shutil
from pathlib import Path

import pytest
import torch

from mdm.config import ENCODERS
from mdm.data.embeddings import TextSource, same_encoder
from mdm.data.text import TextEncoder, encoder_digest, files_digest, find_encoder, load_encoder, online_encoder
from small import write_t5

WORDS = ["red", "blue", "round", "square", "heart", "dog"]


@pytest.fixture(scope="module")
def small_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MDM_HOME/weights with flan-t5-xl in it."""
    return write_t5(tmp_path_factory.mktemp("weights"), WORDS)


def test_t5_is_its_frozen_encoder_from_a_local_folder(small_t5: Path) -> None:
    encoder = load_encoder("flan-t5-xl", small_t5)
    assert type(encoder.model).__name__ == "T5EncoderModel"
    assert not any(p.requires_grad for p in encoder.model.parameters())
    assert not encoder.model.training
    states, cut = encoder.encode(["red heart", "", "blue round dog"])
    assert [tuple(s.shape) for s in states] == [(3, 16), (1, 16), (4, 16)]  # with </s>
    assert cut == 0
    alone = encoder.encode(["red heart"])[0][0]
    torch.testing.assert_close(states[0], alone)  # padding changes nothing
    padded, mask = encoder.padded(["red heart", ""])
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert padded[1, 1:].abs().max() == 0
    assert not padded.requires_grad


@pytest.mark.parametrize("name", list(ENCODERS))
def test_a_caption_over_the_limit_is_cut_and_counted_and_keeps_its_end(name: str, small_t5: Path) -> None:
    encoder = load_encoder(name, small_t5)
    limit = ENCODERS[name].max_tokens
    special = len(encoder.encode([""])[0][0])  # </s>, or [CLS] and [SEP]
    long, whole = " ".join(["red"] * (limit + 9)), " ".join(["red"] * (limit - special))
    states, cut = encoder.encode([long, "red dog", whole])
    assert [len(s) for s in states] == [limit, 2 + special, limit]
    assert cut == 1
    torch.testing.assert_close(states[0], states[2])  # what is left is a whole caption
    encoder.padded([long, long])
    assert encoder.cut == 3


def test_weights_and_tokenizer_each_make_another_encoder(tmp_path: Path) -> None:
    files = ["config.json", "model-00001-of-00002.safetensors", "spiece.model", "tokenizer.json", "vocab.txt"]
    for name in files:
        (tmp_path / name).write_bytes(b"one")
    digests = {files_digest("flan-t5-xl", tmp_path), files_digest("minilm", tmp_path)}
    for name in files:
        (tmp_path / name).write_bytes(b"two")
        digests.add(files_digest("flan-t5-xl", tmp_path))
    assert len(digests) == 2 + len(files)
    before = files_digest("flan-t5-xl", tmp_path)
    (tmp_path / "README.md").write_text("no part of it")
    assert files_digest("flan-t5-xl", tmp_path) == before


def test_a_library_that_gives_other_ids_for_the_same_files_is_another_encoder(
    small_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = small_t5 / "flan-t5-xl"
    before, tokenize = encoder_digest("flan-t5-xl", folder), PreTrainedTokenizerFast.__call__
    assert before == encoder_digest("flan-t5-xl", folder) and before.startswith(files_digest("flan-t5-xl", folder))

    def lower(self: PreTrainedTokenizerFast, texts: list[str], **options: object) -> object:
        return tokenize(self, [text.replace("a ", "") for text in texts], **options)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", lower)
    after = encoder_digest("flan-t5-xl", folder)
    assert after != before and not same_encoder(after, before)
    old = files_digest("flan-t5-xl", folder)  # as sets and jobs of before have it
    assert same_encoder(old, before) and same_encoder(after, old) and not same_encoder("0" * 64, before)


def test_an_encoder_that_no_longer_computes_the_same_is_refused_and_rounding_is_not(
    small_t5: Path, tmp_path: Path
) -> None:
    encoder = load_encoder("flan-t5-xl", small_t5)
    encoder.check(tmp_path)
    assert encoder.cut == 0  # the captions of the check are not the data's
    kept = tmp_path / "text-flan-t5-xl-probes.safetensors"
    stamp = kept.stat().st_mtime_ns
    rounded = load_encoder("flan-t5-xl", small_t5)
    rounded.model.to(torch.bfloat16)  # as a GPU computes it
    rounded.check(tmp_path)
    changed = load_encoder("flan-t5-xl", small_t5)
    with torch.no_grad():
        for weight in changed.model.encoder.block[1].parameters():
            weight.neg_()  # a library's new mistake: the files are the same
    with pytest.raises(ValueError, match=r"no longer those in .*probes\.safetensors \(cosine .*run `mdm embed` again"):
        changed.check(tmp_path)
    assert kept.stat().st_mtime_ns == stamp
    kept.write_bytes(b"torn")
    changed.check(tmp_path)


def test_an_encoder_that_is_nowhere_offline_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDM_OFFLINE", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(ValueError, match="text encoder flan-t5-xl") as refusal:
        find_encoder("flan-t5-xl", tmp_path)
    message = str(refusal.value)
    for part in (str(tmp_path / "flan-t5-xl"), "MDM_OFFLINE=1", "hf download google/flan-t5-xl", "--local-dir"):
        assert part in message
    assert "\n" not in message
    with pytest.raises(ValueError, match="unknown text encoder 'bert'; there are flan-t5-xl, flan-t5-xl-512, minilm"):
        find_encoder("bert", tmp_path)


def test_a_folder_that_is_no_encoder_is_named(small_t5: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_t5 / "flan-t5-xl", tmp_path / "flan-t5-xl")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")  # what the digest does not cover is not loaded
    with pytest.raises(
        ValueError, match=r"flan-t5-xl cannot be loaded .*must hold config.json, the weights as \.safet"
    ):
        load_encoder("flan-t5-xl", tmp_path)


def test_an_online_job_refuses_another_encoder_than_it_began_with(small_t5: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_t5 / "flan-t5-xl", tmp_path / "flan-t5-xl")
    digest = encoder_digest("flan-t5-xl", folder)
    text = TextSource(encoder="flan-t5-xl", encoder_digest=digest, way="online", folder=str(folder))
    assert isinstance(online_encoder(text, torch.device("cpu"), tmp_path), TextEncoder)
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"dog"', '"cat"'))
    with pytest.raises(ValueError, match="holds another encoder or tokenizer than this job began with"):
        online_encoder(text, torch.device("cpu"), tmp_path)
    with pytest.raises(ValueError, match=r"text\.folder must name the encoder's folder"):
        TextSource(encoder="flan-t5-xl", encoder_digest=digest, way="online")
