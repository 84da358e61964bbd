"""The weight files of the networks that measure: what each is, where it lies, and whether it is the right one.

One folder holds them all (``MDM_HOME/weights``; the caller says). A file is used only if its sha256 is the row's; where
a row has none, that of the user's file is kept beside it, and another file is refused from then on.
"""

import hashlib
import os
import shlex
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from evaluation.results import RANDOM
from mdm.files import sha256, sync, whole_file

TIMEOUT_S = 10  # of one answer of the server


@dataclass(frozen=True)
class WeightFile:
    """``file``: its name in the folder. ``sha256`` is None where nobody is known to have published it;
    ``sha256_from`` says who has. ``model``: the architecture, as open_clip or timm calls it (nothing for TorchScript,
    which brings its own). ``quick_gelu``: trained with x·sigmoid(1.702 x) instead of GELU.
    """

    name: str
    file: str
    url: str
    source: str
    licence: str
    sha256: str | None
    sha256_from: str = ""
    model: str = ""
    quick_gelu: bool = False


def _openai_clip(size: str, model: str, hub: str, revision: str, digest: str, published: str) -> WeightFile:
    return WeightFile(
        name=f"clip_{size}",
        file=f"clip-{size.replace('_', '-')}-openai.safetensors",
        url=f"https://huggingface.co/timm/{hub}.openai/resolve/{revision}/open_clip_model.safetensors",
        source="OpenAI's CLIP (Radford et al. 2021) as open_clip's tag `openai` loads it",
        licence="MIT (openai/CLIP)",
        sha256=digest,
        sha256_from=published,
        model=f"{model}-quickgelu",
        quick_gelu=True,
    )


INCEPTION_V3 = WeightFile(
    name="inception_v3",
    file="inception-2015-12-05.pt",
    url="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    source="NVIDIA's TorchScript translation of Google's inception-2015-12-05.tgz; what clean-fid 0.1.35 downloads",
    licence="Apache-2.0 (Google's graph); NVIDIA states none of its own for the translation",
    sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    sha256_from="crowsonkb/k-diffusion, k_diffusion/evaluation.py",
)
# The hub's own revisions and digests, as public repositories that pin these files state them; each was found in at
# least three that agree.
CLIP_B_32 = _openai_clip(
    "vit_b_32",
    "ViT-B-32",
    "vit_base_patch32_clip_224",
    "a6f597a30f7b82c51704746581f9a4e41421e878",
    "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
    "several public repositories that pin the hub's file at this revision",
)
CLIP_B_16 = _openai_clip(
    "vit_b_16",
    "ViT-B-16",
    "vit_base_patch16_clip_224",
    "977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d",
    "4b8699299b1e8997753c64b052ba32031449d5d853f55a039148560ee02b820f",
    "several public repositories that pin the hub's file at this revision",
)
CLIP_L_14 = _openai_clip(
    "vit_l_14",
    "ViT-L-14",
    "vit_large_patch14_clip_224",
    "main",
    "9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",
    "several public repositories that check their copy; the hub's revision begins with 18d05354",
)
CLIP_L_14_336 = _openai_clip(
    "vit_l_14_336",
    "ViT-L-14-336",
    "vit_large_patch14_clip_336",
    "81e38efc4637de5023b10e75a7f9bd1c6fa6b010",
    "fbc415c3d0d7b79faed8f5ccfb740c32b7c4f5ffe7283b851f89c6231c01a8e0",
    "several public repositories that pin the hub's file at this revision",
)
DINOV2_L_14 = WeightFile(
    name="dinov2_vit_l_14",
    file="dinov2_vitl14_pretrain.pth",
    url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    source="Meta's DINOv2 (Oquab et al. 2023), trained on LVD-142M, without registers; the address is timm 1.0.31's",
    licence="Apache-2.0",
    sha256="d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
    sha256_from="several public repositories that check their copy (1,217,586,395 bytes)",
    model="vit_large_patch14_dinov2",
)
TABLE = (INCEPTION_V3, CLIP_B_32, CLIP_B_16, CLIP_L_14, CLIP_L_14_336, DINOV2_L_14)


@dataclass(frozen=True)
class Weights:
    """A file whose content was checked: ``sha256`` is its own."""

    row: WeightFile
    path: Path
    sha256: str


def find_weights(row: WeightFile, folder: Path, given: Path | None = None, download: bool = True) -> Weights:
    """The file ``given``, or the folder's, or downloaded into it where that is allowed; checked.

    MDM_OFFLINE=1 and HF_HUB_OFFLINE=1 forbid downloads. Raises ValueError, one line, for a file that is missing,
    cannot be had or is another one; and for a row outside the table that does not call itself random.
    """
    if row not in TABLE and not row.name.startswith(RANDOM):
        raise ValueError(f"weights {row.name!r} are not in the table: a test's own are called {RANDOM}…")
    path = Path(given or folder / row.file)
    try:
        if given is None and not path.exists():
            _download(row, path, download)
        found = sha256(path)
    except OSError as error:
        raise ValueError(f"weights {row.name}: {path}: {error.strerror or error}. {how_to_get(row, path)}") from error
    kept = Path(folder) / f"{row.file}.sha256"  # as sha256sum writes it
    if row.sha256 is not None and found != row.sha256:
        what = f"has sha256 {found}, not {row.sha256} ({row.sha256_from}): another file, altered or cut off"
        raise ValueError(f"weights {row.name}: {path} {what}. Remove it, then: {how_to_get(row, path)}")
    if row.sha256 is None and kept.exists() and found != kept.read_text().split()[0]:
        what = f"has sha256 {found}, and was {kept.read_text().split()[0]} when it was first used"
        raise ValueError(f"weights {row.name}: {path} {what}. Put that file back; or delete {kept} if the new is meant")
    if row.sha256 is None and not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(f"{found}  {row.file}\n")
    return Weights(row, path, found)


def how_to_get(row: WeightFile, path: Path) -> str:
    known = f"sha256 {row.sha256}" if row.sha256 else "its sha256 is not published: compare it with its source"
    return f"Where there is a network: `{shlex.join(['curl', '-fL', '-o', str(path), row.url])}` ({known})"


def _download(row: WeightFile, path: Path, allowed: bool) -> None:
    """Whole or not at all: a temporary file beside it, on the disk and checked before it gets its name."""
    offline = [f"{flag}=1" for flag in ("MDM_OFFLINE", "HF_HUB_OFFLINE") if os.environ.get(flag) == "1"]
    if offline or not allowed:
        why = f"{offline[0]} forbids the download" if offline else "nothing is downloaded here"
        raise ValueError(f"weights {row.name}: {path} is missing, and {why}. {how_to_get(row, path)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(row.url, timeout=TIMEOUT_S) as answer, whole_file(path, f".{os.getpid()}") as file:
            length = int(answer.headers.get("Content-Length") or 0)
            with tqdm(total=length, desc=row.file, unit="B", unit_scale=True, disable=None) as bar:
                while block := answer.read(1 << 20):
                    file.write(block)
                    digest.update(block)
                    size += len(block)
                    bar.update(len(block))
            if length and size != length:
                raise ValueError(f"it ended after {size} of {length} bytes")
            if row.sha256 not in (None, digest.hexdigest()):
                raise ValueError(f"what came has sha256 {digest.hexdigest()}, not {row.sha256}")
        sync(path.parent)
    except (OSError, ValueError, HTTPException) as error:  # urllib's are OSErrors
        why = f"{path} is missing, and the download failed ({error})"
        raise ValueError(f"weights {row.name}: {why}. {how_to_get(row, path)}") from error
