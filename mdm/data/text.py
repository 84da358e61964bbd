"""Frozen caption encoders (paper Sec. 4.1: FLAN-T5 XL), through transformers, from a folder, a package or the hub."""

import hashlib
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdm.config import ENCODERS, EncoderSpec, Model
from mdm.data.embeddings import TextSource
from mdm.data.shards import Shards

PATTERNS = ("*.json", "*.model", "*.safetensors")  # of the hub's files: no second copy of the weights
BATCH = 32  # captions encoded at once, where it is ours to choose


class TextEncoder:
    """A frozen encoder: captions -> token states. bfloat16 on a GPU, float32 on the CPU. ``cut`` counts cut captions.

    Raises ValueError naming a folder that transformers cannot read.
    """

    def __init__(self, name: str, folder: str, spec: EncoderSpec, device: torch.device | str = "cpu") -> None:
        from transformers import AutoConfig, AutoModel, AutoTokenizer, T5EncoderModel
        from transformers.utils import logging

        logging.disable_progress_bar()

        self.name, self.spec, self.device, self.folder, self.cut = name, spec, device, folder, 0
        half = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
        try:
            kind: Any = T5EncoderModel if AutoConfig.from_pretrained(folder).model_type == "t5" else AutoModel
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            # safetensors alone: what is loaded is what ``encoder_digest`` has seen.
            model = kind.from_pretrained(folder, dtype=half, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"text encoder {name}: {folder} cannot be loaded ({str(error).strip().splitlines()[0]}). It must hold "
                "config.json, the weights as .safetensors and the tokenizer's files: copy them there again"
            ) from error
        self.model = model.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def padded(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Token states float32 [B, L, D], zeros behind, and mask [B, L], on the encoder's device."""
        limit = self.spec.max_tokens
        self.cut += sum(len(ids) > limit for ids in self.tokenizer(captions, verbose=False)["input_ids"])
        batch = self.tokenizer(captions, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        batch = batch.to(self.device)
        mask = batch["attention_mask"].float()
        return self.model(**batch).last_hidden_state.float() * mask.unsqueeze(2), mask

    def condition(self, captions: list[str]) -> dict[str, Tensor]:
        """The network's keyword arguments for a batch of captions."""
        text, mask = self.padded(captions)
        return {"text": text, "text_mask": mask}

    def encode(self, captions: list[str]) -> tuple[list[Tensor], int]:
        """Token states float32 [L_i, D] of each caption on the CPU, and how many were cut at ``max_tokens``."""
        before = self.cut
        states, mask = self.padded(captions)
        lengths = mask.sum(dim=1).int().tolist()
        return [state[:n].clone() for state, n in zip(states.cpu(), lengths, strict=True)], self.cut - before

    def digest(self) -> str:
        """sha256 over the weights, tokenizer and configuration: another digest is another set of embeddings."""
        return encoder_digest(self.name, Path(self.folder))


def online_encoder(text: TextSource | None, device: torch.device) -> TextEncoder | None:
    """The encoder of a job without stored embeddings (None for one that has them, or that takes labels).

    Raises ValueError where the folder holds another encoder than the job was made for.
    """
    if text is None or text.way != "online":
        return None
    check_name(text.encoder)
    encoder = TextEncoder(text.encoder, text.folder, ENCODERS[text.encoder], device)
    if encoder.digest() != text.encoder_digest:
        raise ValueError(
            f"{text.folder} holds another encoder or tokenizer than this job began with (digest "
            f"{encoder.digest()[:12]}, not {text.encoder_digest[:12]}): put that one back, or begin a new run"
        )
    return encoder


def caption_states(shards: Shards, indices: Sequence[int], encoder: TextEncoder | None) -> tuple[list[Tensor], Tensor]:
    """States float32 [L_i, D] of a dataset's captions, and of the empty one: stored, or made by ``encoder`` now."""
    if encoder is None:
        return [shards.tokens(i) for i in indices], shards.null_tokens()
    captions = ["", *(shards.caption(i) for i in indices)]
    parts = [encoder.encode(captions[start : start + BATCH])[0] for start in range(0, len(captions), BATCH)]
    null, *states = [state for part in parts for state in part]
    return states, null


def known_conditions(
    shards: Shards, indices: Sequence[int], model: Model, encoder: TextEncoder | None
) -> tuple[list[Tensor | int], Tensor | int | None]:
    """What samples are conditioned on, captions as states: their states or labels, and those of nothing."""
    if model.labels is None:
        states, null = caption_states(shards, indices, encoder)
        return [*states], null
    return [shards.label(i) for i in indices], model.labels.null_class


def check_name(name: str) -> None:
    """Raises ValueError for an encoder that is none of ours."""
    if name not in ENCODERS:
        raise ValueError(f"unknown text encoder {name!r}; there are {', '.join(ENCODERS)}")


def find_encoder(name: str, weights: Path) -> Path:
    """The local folder of an encoder. Raises ValueError saying what is missing and where to put it."""
    check_name(name)
    spec, local = ENCODERS[name], weights / name
    if (local / "config.json").exists():
        return local
    if spec.package is not None:
        try:
            return Path(importlib.import_module(spec.package).get_model_path())
        except ImportError:
            raise ValueError(f"text encoder {name}: install the package {spec.package.replace('_', '-')}") from None
    offline = [flag for flag in ("MDM_OFFLINE", "HF_HUB_OFFLINE") if os.environ.get(flag) == "1"]
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(str(spec.hub), allow_patterns=list(PATTERNS), local_files_only=bool(offline)))
    except Exception as error:
        why = f"{offline[0]}=1 forbids the download" if offline else f"the download failed ({type(error).__name__})"
        raise ValueError(
            f"text encoder {name}: {local} holds no config.json, {spec.hub} is not in the hub's cache, and {why}. "
            f"{how_to_get(name, local)}{', or unset ' + offline[0] if offline else ''}"
        ) from error


def how_to_get(name: str, folder: Path) -> str:
    """What to do about an encoder of the hub that is missing here."""
    wanted = " ".join(f"--include '{pattern}'" for pattern in PATTERNS)
    return (
        f"Where there is a network: `hf download {ENCODERS[name].hub} {wanted} --local-dir {folder}`, then copy that "
        "folder here"
    )


def load_encoder(name: str, weights: Path, device: torch.device | str = "cpu") -> TextEncoder:
    """A frozen encoder by name; see ``find_encoder`` for where it is looked for."""
    folder = find_encoder(name, weights)
    return TextEncoder(name, str(folder), ENCODERS[name], device)


def encoder_digest(name: str, folder: Path) -> str:
    """sha256 over the encoder's limit and its files: weights, configuration, tokenizer."""
    whole = hashlib.sha256(f"{name} {ENCODERS[name].max_tokens}".encode())
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".model", ".safetensors", ".txt"):
            with path.open("rb") as file:
                whole.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()
