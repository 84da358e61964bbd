"""Which caption states a preset's jobs work with: its frozen encoder, and the way that was asked for or is cheapest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from flows.datasets.parts import Part
from flows.home import weights
from mdm.config import ENCODERS, Way
from mdm.data.embeddings import TextSource
from mdm.data.leases import names, others
from mdm.data.text import TextEncoder, encoder_digest, find_encoder, load_encoder
from mdm.files import write_json
from mdm.presets import Preset
from mdm.structure import digest
from preprocessing.cost import Cost, choose, measure_cost
from preprocessing.embed import StatesFormat, embed_part, finished_set, set_folder
from preprocessing.manifest import read_json, read_manifest
from preprocessing.sets import SPLITS

Progress = Callable[[int], Callable[[int, int], None]]
STATES_FORMATS: dict[Way, StatesFormat] = {"cached": "half", "cached-8bit": "8bit"}


class Captions:
    """A preset's captions and their encoder, which is found at once and loaded where something is left to encode."""

    def __init__(self, preset: Preset, folder: Path) -> None:
        if preset.text is None:
            raise ValueError(f"preset {preset.name} is conditioned on labels: it has no captions to embed")
        self.preset, self.folder, self.name, self.spec = preset, folder, preset.text, ENCODERS[preset.text]
        self.encoder_folder = find_encoder(self.name, weights())
        self.digest = encoder_digest(self.name, self.encoder_folder)
        self.loaded: TextEncoder | None = None
        self.checked = False

    def encode(self, captions: list[str]) -> tuple[list[Any], int]:
        if self.loaded is None:
            self.loaded = load_encoder(self.name, weights(), self.preset.hardware.device)
        return self.loaded.encode(captions)

    def encode_to_keep(self, captions: list[str]) -> tuple[list[Any], int]:
        """The same, by an encoder that computes what it did when the first states of this dataset were made."""
        states = self.encode(captions)
        if self.loaded is not None and not self.checked:
            self.loaded.check(self.folder)
            self.checked = True
        return states

    def cost(self) -> Cost:
        """What each way costs here, measured."""
        seen = sum(stage.training.nimg for stage in self.preset.stages.values())
        return measure_cost([self.folder / split for split in SPLITS], self.encode, seen)

    def source(self, say: Callable[[str], None]) -> TextSource:
        """The way that the preset asks for; ``auto``: the cheapest, chosen once and said, with the reason.

        The choice is kept beside the shards, known by data, encoder and images to be seen, so that a rerun does the
        same. A finished set decides before any measurement.
        """
        way = self.preset.embeddings
        chosen: Way = self._chosen(say) if way == "auto" else way
        return TextSource(
            encoder=self.name,
            encoder_digest=self.digest,
            way=chosen,
            folder=str(self.encoder_folder) if chosen == "online" else "",
        )

    def _chosen(self, say: Callable[[str], None]) -> Way:
        data = [read_manifest(self.folder / split)["digest"] for split in SPLITS]
        nimg = [stage.training.nimg for stage in self.preset.stages.values()]
        inputs = digest([data, self.digest, nimg])
        path = self.folder / f"text-{self.name}-auto-{inputs[:12]}.json"
        kept = read_json(path)
        if kept is not None and kept.get("inputs") == inputs and kept.get("way") in get_args(Way):
            say(f"embeddings {kept['reason']}")
            return kept["way"]
        way: Way
        made: list[Way] = [way for way in STATES_FORMATS if self._finished(way)]
        way, reason = (made[0], f"{made[0]}: they are there already") if made else choose(self.cost())
        write_json(path, {"inputs": inputs, "way": way, "reason": reason})
        say(f"embeddings {reason}")
        return way

    def _finished(self, way: Way) -> bool:
        name, limit, precision = self.name, self.spec.max_tokens, STATES_FORMATS[way]
        return all(finished_set(self.folder / split, name, self.digest, limit, precision) for split in SPLITS)

    def manifests(self, way: Way) -> list[dict[str, Any] | None]:
        """Of every split's embeddings, as they lie there now, whatever they were made of."""
        name, precision = self.name, STATES_FORMATS[way]
        return [read_json(set_folder(self.folder / split, name, precision) / "manifest.json") for split in SPLITS]

    def _refuse_to_replace(self, way: Way) -> None:
        readers = others(self.folder)
        made = {manifest["encoder_digest"] for manifest in self.manifests(way) if manifest is not None}
        if readers and made - {self.digest}:
            raise ValueError(
                f"the caption states of {self.folder} are another {self.name}'s, and {names(readers)} may be reading "
                "them: embed again when that has ended"
            )

    def embed(self, way: Way, progress: Progress, part: Part = (1, 1)) -> int:
        """Embeddings of a part (I of N) of both splits' shards -> how many shards are missing then, of other parts.

        ``progress(start)``: the callback of a split that begins there. Raises ValueError where they would take the
        place of another encoder's that somebody else reads.
        """
        self._refuse_to_replace(way)
        name, limit, precision, start = self.name, self.spec.max_tokens, STATES_FORMATS[way], 0
        missing = 0
        for split in SPLITS:
            folder, show = self.folder / split, progress(start)
            missing += embed_part(folder, name, self.digest, self.encode_to_keep, limit, show, precision, part)
            start += captions_of(folder, part)
        return missing


def captions_of(folder: Path, part: Part = (1, 1)) -> int:
    """How many captions a part of a split has."""
    return sum(shard["samples"] for shard in read_manifest(folder)["shards"][part[0] - 1 :: part[1]])
