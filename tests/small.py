"""A dataset of a few pictures and a network of a few thousand weights, made from scratch for the tests."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mdm.config import Level, Model, Sampling, Text
from mdm.data.embeddings import TextSource
from mdm.network.nested import NestedUNet
from mdm.run.job import Job
from mdm.stage import Cadence, Compute, Training
from preprocessing.embed import embed_captions
from preprocessing.manifest import digest, write_json
from preprocessing.pack.images import encode_png
from preprocessing.pack.shards import TarFile

TEXT_DIM = 16
FAKE = TextSource(encoder="fake", encoder_digest="fake-1")
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230), "white": (250, 250, 250)}


def fake_encode(captions: list[str]) -> tuple[list[np.ndarray], int]:
    """A vector per word that depends on the word alone: an encoder's shape without its weights."""
    words = [["<s>", *caption.split()] for caption in captions]
    vectors = [
        np.stack(
            [
                np.random.default_rng(int(hashlib.sha256(w.encode()).hexdigest()[:8], 16)).normal(size=TEXT_DIM)
                for w in ws
            ]
        )
        for ws in words
    ]
    return vectors, 0


def write_dataset(folder: Path, split: str, count: int, px: int, per_shard: int = 8) -> Path:
    """Squares of one colour on white, in the format that the trainer reads."""
    target = folder / split
    target.mkdir(parents=True)
    random = np.random.default_rng(len(split))
    shards = []
    for number, start in enumerate(range(0, count, per_shard)):
        path = target / f"{number:05d}.tar"
        with TarFile(path) as tar:
            for i in range(start, min(start + per_shard, count)):
                name, colour = list(COLOURS.items())[i % len(COLOURS)]
                picture = np.full((px, px, 3), 255, np.uint8)
                x, y = random.integers(0, px // 2, 2)
                picture[y : y + px // 2, x : x + px // 2] = colour
                key = f"{split}{i:03d}"
                meta = f'{{"key": "{key}", "label": {i % 4}}}'.encode()
                tar.add(key, {"png": encode_png(picture), "txt": f"{name} square".encode(), "json": meta})
            shards.append(tar.finish())
    manifest = {
        "format": 1,
        "name": "squares",
        "split": split,
        "resolution_px": px,
        "image_ext": "png",
        "samples": count,
        "shards": shards,
        "source": {},
        "licence": "CC0-1.0",
        "credit": "made by the tests",
        "inputs": "tests",
    }
    write_json(target / "manifest.json", {**manifest, "digest": digest(manifest)})
    embed_captions(target, FAKE.encoder, FAKE.encoder_digest, fake_encode, 8, lambda done, total: None)
    return target


LEVELS = (
    Level(resolution=8, channels=(16, 24), num_res_blocks=(1, 1), num_attn_layers=(0, 1), attention_ffn=True),
    Level(resolution=16, channels=(8, 16), num_res_blocks=(1, 1), num_attn_layers=(0, 0), shift=2),
    Level(resolution=32, channels=(8, 8), num_res_blocks=(1, 1), num_attn_layers=(0, 0), shift=4),
)


def small_model(num_levels: int = 2) -> Model:
    return Model(levels=LEVELS[:num_levels], text=Text(dim=TEXT_DIM, proj_dim=16, num_layers=1), emb_channels=32)


def attentive(model: Model) -> NestedUNet:
    """As made, a network answers 0 to any caption: this one listens."""
    torch.manual_seed(0)
    network = NestedUNet(model)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return network


def write_t5(weights: Path, words: Sequence[str], dim: int = 16) -> Path:
    """A T5 of a few thousand random weights in the layout that the hub has, as ``weights/flan-t5-xl``."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    whole.save_pretrained(weights / "flan-t5-xl")
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(vocabulary), d_model=dim, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(weights / "flan-t5-xl")
    return weights


def small_job(data: Path, num_levels: int = 2, **changes: object) -> Job:
    """A job of seconds on one thread; ``changes`` are fields of its Training, Cadence, Compute or of itself."""
    settings: dict[str, object] = {"nimg": 96, "batch_size": 8, "lr": 1e-3, "log_every_nimg": 24, "eval_every_nimg": 48}
    settings |= {"checkpoint_every_nimg": 16, "caption_dropout": 0.1, "ema_rampup": 0.1, "loss": "v", "low_only": 0.5}
    settings |= changes

    def take(cls: type) -> dict[str, object]:
        return {f.name: settings.pop(f.name) for f in dataclasses.fields(cls) if f.name in settings}

    return Job(
        model=small_model(num_levels),
        training=Training(**take(Training)),  # type: ignore[arg-type]
        compute=Compute(**take(Compute)),  # type: ignore[arg-type]
        cadence=Cadence(**take(Cadence)),  # type: ignore[arg-type]
        sampling=Sampling(steps=2, guidance=(2.0, 1.0)),
        train_data=str(data / "train"),
        val_data=str(data / "val"),
        text=FAKE,
        device="cpu",
        threads=1,
        **settings,  # type: ignore[arg-type]
    )
