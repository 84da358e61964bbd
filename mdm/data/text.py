"""Frozen caption encoders (paper Sec. 4.1: FLAN-T5 XL), through transformers, from a folder, a package or the hub."""

import contextlib
import hashlib
import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mdm.config import ENCODERS, EncoderSpec, Model
from mdm.data.embeddings import TextSource, same_encoder
from mdm.data.shards import Shards
from mdm.files import whole_file
from mdm.structure import digest

PATTERNS = ("*.json", "*.model", "*.safetensors")  # of the hub's files: no second copy of the weights
BATCH = 32  # captions encoded at once, where it is ours to choose

# What encoders are known by: words, capitals, digits, other scripts, an emoji, odd spaces, and one over any limit.
PROBES = (
    "",
    "a red heart",
    "Two DOGS in the snow, 1987 (oil on canvas)",
    "naïve café, Ærø — “quotes” & <tags>",
    "東京の夜 Москва القاهرة 👩🏽‍🚀",
    "  tabs\tand   spaces ",
    "on and on " * 200,
)
COSINE = 0.999  # of two states at least, where one encoder was rounded differently: half precision, a GPU, 8 bits


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
        with _loading(name, folder):
            kind: Any = T5EncoderModel if AutoConfig.from_pretrained(folder).model_type == "t5" else AutoModel
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            # safetensors alone: what is loaded is what ``encoder_digest`` has seen.
            model = kind.from_pretrained(folder, dtype=half, use_safetensors=True)
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
        """See ``encoder_digest``."""
        return encoder_digest(self.name, Path(self.folder))

    def check(self, data: Path) -> None:
        """Compare the states of ``PROBES`` with those kept in a dataset's folder; the first to come leaves them there.

        Raises ValueError where they differ by more than rounding (``COSINE``): a library has changed what the same
        files compute.
        """
        kept, cut = data / f"text-{self.name}-probes.safetensors", self.cut
        digest, states = self.digest(), [self.encode([probe])[0][0] for probe in PROBES]
        self.cut = cut  # captions of the data are counted, these are not
        before = _kept_states(kept, digest)
        if before is None:
            with whole_file(kept, f".{os.getpid()}") as file:
                file.write(save({str(i): state for i, state in enumerate(states)}, {"encoder_digest": digest}))
            return
        least = min(_cosine(now, then) for now, then in zip(states, before, strict=True))
        if not least >= COSINE:
            raise ValueError(
                f"text encoder {self.name}: its states of fixed captions are no longer those in {kept} (cosine "
                f"{least:.4f}, at least {COSINE} is rounding): go back to the library versions that they were made "
                "with, or delete that file and the embeddings beside it, and run `mdm embed` again"
            )


@contextlib.contextmanager
def _loading(name: str, folder: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(
            f"text encoder {name}: {folder} cannot be loaded ({str(error).strip().splitlines()[0]}). It must hold "
            "config.json, the weights as .safetensors and the tokenizer's files: copy them there again"
        ) from error


def _kept_states(path: Path, digest: str) -> list[Tensor] | None:
    """The states of ``PROBES`` in a file, if they are of that encoder."""
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("encoder_digest") == digest:
                return [file.get_tensor(str(i)) for i in range(len(PROBES))]
    except (OSError, SafetensorError):
        return None  # torn, or not there: made anew
    return None


def _cosine(a: Tensor, b: Tensor) -> float:
    """Of whole states [L, D]; 0 where they have other shapes."""
    return float(cosine_similarity(a.flatten(), b.flatten(), dim=0)) if a.shape == b.shape else 0.0


def online_encoder(
    text: TextSource | None, device: torch.device, data: Path | None, negative: str = ""
) -> TextEncoder | None:
    """The encoder of a job without stored embeddings, or with a ``negative`` prompt, which no set has stored (None for
    one that has all it needs, or that takes labels).

    ``data``: the dataset's folder, with its splits in it; None: prompts of no dataset. Raises ValueError where the
    encoder's folder holds another one than the job was made for, or it no longer computes what it did for this dataset.
    """
    if text is None or (text.way != "online" and not negative):
        return None
    check_name(text.encoder)
    if not text.folder:
        raise ValueError(f"text encoder {text.encoder}: {negative!r} must be encoded, and no text.folder says by what")
    encoder = TextEncoder(text.encoder, text.folder, ENCODERS[text.encoder], device)
    if not same_encoder(encoder.digest(), text.encoder_digest):
        raise ValueError(
            f"{text.folder} holds another encoder or tokenizer than this job began with (digest "
            f"{encoder.digest()[:12]}, not {text.encoder_digest[:12]}): put that one back, or begin a new run"
        )
    if data is not None:
        encoder.check(data)
    return encoder


def caption_states(
    shards: Shards, indices: Sequence[int], encoder: TextEncoder | None, negative: str = ""
) -> tuple[list[Tensor], Tensor]:
    """States float32 [L_i, D] of a dataset's captions, and of the ``negative`` one: stored, or made by ``encoder``."""
    if encoder is not None and shards.online:
        return encode_all(encoder, [shards.caption(i) for i in indices], negative)
    states = [shards.tokens(i).float() for i in indices]
    return states, encode_all(encoder, [], negative)[1] if encoder is not None else shards.null_tokens().float()


def encode_all(encoder: TextEncoder, captions: Sequence[str], negative: str = "") -> tuple[list[Tensor], Tensor]:
    """States float32 [L_i, D] of captions, and of the ``negative`` one, all encoded together."""
    captions = [negative, *captions]
    parts = [encoder.encode(captions[start : start + BATCH])[0] for start in range(0, len(captions), BATCH)]
    null, *states = [state for part in parts for state in part]
    return states, null


def known_conditions(
    shards: Shards, indices: Sequence[int], model: Model, encoder: TextEncoder | None, negative: str = ""
) -> tuple[list[Tensor | int], Tensor | int | None]:
    """What samples are conditioned on, captions as states: their states or labels; and what guidance leads away from,
    the ``negative`` caption or the label of nothing."""
    if model.labels is None:
        states, null = caption_states(shards, indices, encoder, negative)
        return [*states], null
    return [shards.label(i) for i in indices], model.labels.null_class


def check_name(name: str) -> None:
    """Raises ValueError for an encoder that is none of ours."""
    if name not in ENCODERS:
        raise ValueError(f"unknown text encoder {name!r}; there are {', '.join(ENCODERS)}")


def find_encoder(name: str, weights: Path, download: bool = True) -> Path:
    """The local folder of an encoder. Raises ValueError saying what is missing and where to put it."""
    check_name(name)
    spec, local = ENCODERS[name], weights / (ENCODERS[name].files or name)
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

        here = bool(offline) or not download
        return Path(snapshot_download(str(spec.hub), allow_patterns=list(PATTERNS), local_files_only=here))
    except Exception as error:
        failed = f"the download failed ({type(error).__name__})" if download else "nothing is downloaded at this point"
        why = f"{offline[0]}=1 forbids the download" if offline else failed
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
    """What an encoder computes, as FILES-TOKENS: another digest is another set of embeddings.

    FILES: sha256 over its limit and its files (weights, configuration, tokenizer). TOKENS: of the ids that its
    tokenizer gives to ``PROBES``, which depend on the library's version too. Raises ValueError naming a folder that
    cannot be read.
    """
    from transformers import AutoTokenizer

    with _loading(name, folder):
        tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(list(PROBES), truncation=True, max_length=ENCODERS[name].max_tokens)["input_ids"]
    return f"{files_digest(name, folder)}-{digest(ids)[:16]}"


def files_digest(name: str, folder: Path) -> str:
    """sha256 over the encoder's limit and its files."""
    whole = hashlib.sha256(f"{name} {ENCODERS[name].max_tokens}".encode())
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".model", ".safetensors", ".txt"):
            with path.open("rb") as file:
                whole.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()
