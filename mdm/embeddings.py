"""Where caption states come from: embeddings stored beside the shards, in one of two precisions, or the encoder itself.

``cached`` reads ``text-NAME/`` (half precision), ``cached-8bit`` reads ``text-NAME-8bit/`` (int8 and one scale per
token, half the bytes), both as preprocessing/embed.py writes them; ``online`` stores nothing, mdm/text.py makes the
states while training.

What 8 bits change: a state differs by at most its token's largest entry / 254. Measured with MiniLM on 256 captions:
1.4 % of the states' norm (worst token 4.0 %; half precision: 0.02 %). That moves v by 0.2 to 0.5 %, of networks with
random weights and of half-trained ``tiny`` ones alike, a hundredth of what another caption moves it
(tests/mdm/test_embeddings.py holds it below 1 % and a thirtieth). FLAN-T5 XL is unmeasured: its weights are no package.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open
from torch import Tensor

from mdm.config import check

Way = Literal["online", "cached", "cached-8bit"]


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """Which caption states a job works with, as job.json and generate.json carry it."""

    encoder: str  # the frozen encoder's name
    encoder_digest: str  # of its weights and tokenizer (mdm.text.encoder_digest); states of any other are refused
    way: Way = "cached"
    folder: str = ""  # online: where the encoder's files lie

    def __post_init__(self) -> None:
        check(self.way != "online" or self.folder != "", "text.folder must name the encoder's folder if way is online")

    @property
    def set_name(self) -> str:
        """The folder of its embeddings, below the dataset's."""
        return f"text-{self.encoder}" + ("-8bit" if self.way == "cached-8bit" else "")


class StoredStates:
    """The embeddings of a dataset folder: (shard, place) -> token states float32 [L, D].

    Raises ValueError naming a set that is missing, or was made of other images or by another encoder.
    """

    def __init__(self, data: Path, manifest: dict[str, Any], text: TextSource) -> None:
        self.folder = data / text.set_name
        self.names = [Path(shard["file"]).with_suffix(".safetensors").name for shard in manifest["shards"]]
        try:
            made = json.loads((self.folder / "manifest.json").read_text())
        except FileNotFoundError:
            raise ValueError(
                f"{self.folder} is no finished set of embeddings (no manifest.json): `mdm embed` makes it"
            ) from None
        if made.get("data_digest") != manifest["digest"]:
            raise ValueError(f"{self.folder} was made for other images: run `mdm embed` again")
        if made.get("encoder_digest") != text.encoder_digest:
            raise ValueError(
                f"{self.folder} was made by another encoder or tokenizer than the {text.encoder} that is asked for "
                f"({str(made.get('encoder_digest'))[:12]}, not {text.encoder_digest[:12]}): run `mdm embed` again"
            )

    def __call__(self, shard: int, place: int) -> Tensor:
        file = self._file(self.names[shard])
        start, end = file.get_slice("offsets")[place : place + 2].tolist()
        return _decode(file, slice(start, end))

    def null(self) -> Tensor:
        """States [L, D] of the empty caption."""
        return _decode(self._file("null.safetensors"), slice(None))

    @lru_cache(maxsize=256)  # noqa: B019 (one set lives as long as its process)
    def _file(self, name: str) -> Any:
        return safe_open(self.folder / name, "pt")


def _decode(file: Any, span: slice) -> Tensor:
    """Half precision: as it is. 8 bits: times the token's scale."""
    tokens = file.get_slice("tokens")[span].float()
    return tokens * file.get_slice("scales")[span].unsqueeze(1) if "scales" in file.keys() else tokens  # noqa: SIM118
