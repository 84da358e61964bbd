"""Where caption states come from: embeddings stored beside the shards, in one of two precisions, or the encoder itself.

``cached`` reads ``text-NAME/`` (half precision), ``cached-8bit`` reads ``text-NAME-8bit/`` (int8 and one scale per
token, half the bytes), both as preprocessing/embed.py writes them; ``online`` stores nothing, text.py makes the
states while training.

What 8 bits change: a state differs by at most its token's largest entry / 254. Measured with MiniLM on 256 captions:
1.4 % of the states' norm (worst token 4.0 %; half precision: 0.02 %). That moves the output by 0.2 to 0.5 %, of
networks with random weights and of half-trained ``tiny`` ones alike, a hundredth of what another caption moves it
(tests/mdm/data/test_embeddings.py holds it below 1 % and a thirtieth). FLAN-T5 XL is unmeasured: its weights are no
package.
"""

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mdm.config import Way, check
from mdm.data.tars import DamagedShard
from mdm.files import sha256


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """Which caption states a job works with, as job.json and generate.json carry it."""

    encoder: str  # the frozen encoder's name
    encoder_digest: str  # text.encoder_digest; states of any other are refused
    way: Way = "cached"
    folder: str = ""  # online: where the encoder's files lie

    def __post_init__(self) -> None:
        check(self.way != "online" or self.folder != "", "text.folder must name the encoder's folder if way is online")

    @property
    def set_name(self) -> str:
        """The folder of its embeddings, below the dataset's."""
        return f"text-{self.encoder}" + ("-8bit" if self.way == "cached-8bit" else "")


def same_encoder(a: str, b: str) -> bool:
    """Whether two encoder digests (FILES-TOKENS, see ``text.encoder_digest``) are of one encoder.

    Digests of before token ids were looked at are FILES alone, and fit any tokens.
    """
    (files_a, _, tokens_a), (files_b, _, tokens_b) = a.partition("-"), b.partition("-")
    return files_a == files_b and (tokens_a == tokens_b or not tokens_a or not tokens_b)


class StoredStates:
    """The embeddings of a dataset folder: (shard, place) -> token states [L, D], float16 as stored, float32 of 8 bits.

    ``digests``: each file is compared with the set's manifest when this process first opens it. The files are mapped,
    not held open, and states in half precision are views of them: not to be written to. Raises ValueError naming a set
    that is missing, or was made of other images or by another encoder.
    """

    def __init__(self, data: Path, manifest: dict[str, Any], text: TextSource, digests: bool = False) -> None:
        self.folder, self.digests = data / text.set_name, digests
        self.names = [Path(shard["file"]).with_suffix(".safetensors").name for shard in manifest["shards"]]
        try:
            made = json.loads((self.folder / "manifest.json").read_text())
        except FileNotFoundError:
            raise ValueError(
                f"{self.folder} is no finished set of embeddings (no manifest.json): `mdm embed` makes it"
            ) from None
        if made.get("data_digest") != manifest["digest"]:
            raise ValueError(f"{self.folder} was made for other images: run `mdm embed` again")
        if not same_encoder(str(made.get("encoder_digest")), text.encoder_digest):
            raise ValueError(
                f"{self.folder} was made by another encoder or tokenizer than the {text.encoder} that is asked for "
                f"({str(made.get('encoder_digest'))[:12]}, not {text.encoder_digest[:12]}): run `mdm embed` again"
            )
        self.sha256 = {shard["file"]: shard["sha256"] for shard in made["shards"]}

    def __call__(self, shard: int, place: int) -> Tensor:
        """Raises DamagedShard."""
        file = self._file(self.names[shard])
        start, end = file["offsets"][place : place + 2].tolist()
        states = _decode(file, slice(start, end))
        if not _finite(states):
            raise DamagedShard(
                f"{self.folder / self.names[shard]}: the states of sample {place} are not finite: delete the file, "
                "then run `mdm embed` again"
            )
        return states

    def check(self) -> list[str]:
        """A line for every file that is missing."""
        present = set(os.listdir(self.folder))
        return [f"{self.folder / name} is missing" for name in [*self.names, "null.safetensors"] if name not in present]

    def null(self) -> Tensor:
        """States [L, D] of the empty caption."""
        return _decode(self._file("null.safetensors"), slice(None))

    @lru_cache(maxsize=256)  # noqa: B019 (one set lives as long as its process)
    def _file(self, name: str) -> dict[str, Tensor]:
        path = self.folder / name
        try:
            if self.digests and name in self.sha256 and sha256(path) != self.sha256[name]:
                raise DamagedShard(f"{path} is altered (wrong sha256): delete it, then run `mdm embed` again")
            with safe_open(path, "pt") as file:
                return {part: file.get_tensor(part) for part in file.keys()}  # noqa: SIM118 (it is no dictionary)
        except (OSError, SafetensorError) as error:
            raise DamagedShard(f"{path} is missing or damaged ({error}): run `mdm embed` again") from None


def _decode(file: dict[str, Tensor], span: slice) -> Tensor:
    """Half precision: as it is. 8 bits: times the token's scale."""
    tokens = file["tokens"][span]
    return tokens.float() * file["scales"][span].unsqueeze(1) if "scales" in file else tokens


def _finite(states: Tensor) -> bool:
    values = states.numpy()
    if values.dtype == np.float16:  # by their exponents' bits: isfinite takes 15 times as long
        return bool((values.view(np.uint16) & 0x7C00).max(initial=0) < 0x7C00)
    return bool(np.isfinite(values).all())
