"""Export of a released model, or one trained on from it, for the community pipeline ``matryoshka`` of diffusers.

That pipeline (examples/community/matryoshka.py of huggingface/diffusers) takes its network from a folder
``unet/nesting_level_N``, N being the number of levels around the innermost one. Its modules and their options, read off
its source: names differ, layers, their order and their shapes do not.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file

from mdm.config import MODELS, Level, Model
from mdm.files import whole_folder
from mdm.network.nested import NestedUNet

# Ours -> theirs, without the prefix "inner_unet." per enclosing level.
_RENAMES = [
    (r"text\.proj", r"encoder_hid_proj"),
    (r"text\.pool", r"add_embedding.cond_emb"),
    (r"levels\.\d+\.time\.fc([12])", r"time_embedding.linear_\1"),
    (r"levels\.\d+\.micro\.embeddings\.scale\.fc([12])", r"add_embedding.add_timestep_embedder.linear_\1"),
    (r"levels\.\d+\.norm_out", r"conv_norm_out"),
    (r"levels\.\d+\.(conv_in|conv_out)", r"\1"),
    (r"adapters\.\d+\.down", r"in_adapter"),
    (r"adapters\.\d+\.up", r"out_adapter"),
    (r"levels\.\d+\.down\.(\d)\.resize", r"down_blocks.\1.downsamplers.0.conv"),
    (r"levels\.\d+\.up\.(\d)\.resize\.conv", r"up_blocks.\1.upsamplers.0.conv"),
]
_BLOCK = re.compile(r"levels\.\d+\.(down\.\d|up\.\d|mid)\.(?:blocks\.(\d)|attention\.(\d)\.(\d))\.(.+)")
_PARTS = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "modulation": "time_emb_proj",
    "skip": "conv_shortcut",
    "norm": "attn1.group_norm",
    "qkv": "attn1.to_qkv",
    "text_norm": "attn2.norm_cross",
    "text_kv": "attn2.to_kv",
    "proj": "proj_out",
    "ffn_norm": "ff.group_norm",
    "ffn.0": "ff.linear_gelu.proj",
    "ffn.2": "ff.linear_out",
}


def export(source: Path, folder: Path, which: Literal["ema", "raw"] = "ema", dry_run: bool = False) -> Path:
    """Write the network of a weights or checkpoint folder as ``folder/unet/nesting_level_N`` -> that path.

    In diffusers: ``pipeline.unet = NestedUNet2DConditionModel.from_pretrained(folder, subfolder="unet/…")``, at level 0
    ``MatryoshkaUNet2DConditionModel``. Raises ValueError for a model that the pipeline cannot hold.
    """
    network = NestedUNet.from_pretrained(source, which)
    model = network.config
    if model not in (MODELS["64x64"], MODELS["256x256"], MODELS["1024x1024"]):
        raise ValueError(f"{source}: diffusers' pipeline holds the models 64x64, 256x256 and 1024x1024 only")
    target = folder / "unet" / f"nesting_level_{len(model.levels) - 1}"
    if target.exists():
        raise ValueError(f"{target} exists already: choose another folder, or remove it")
    if dry_run:
        return target
    weights = {rename(name, model): tensor for name, tensor in network.state_dict().items()}
    with whole_folder(target) as made:
        save_file(weights, made / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
        (made / "config.json").write_text(json.dumps(options(model), indent=2))
        if (source / "TERMS.txt").exists():
            shutil.copy(source / "TERMS.txt", made / "TERMS.txt")
    return target


def rename(name: str, model: Model) -> str:
    """Our parameter's name in the pipeline."""
    stem, _, kind = name.rpartition(".")  # kind: weight or bias
    top = len(model.levels) - 1
    place = re.match(r"(levels|adapters)\.(\d+)", stem)
    r = 0 if place is None else int(place[2]) + (place[1] == "adapters")  # an adapter belongs to the level around it
    return "inner_unet." * (top - r) + f"{_rename_in_level(stem)}.{kind}"


def _rename_in_level(stem: str) -> str:
    if match := _BLOCK.fullmatch(stem):
        place, block, attention, layer, part = match.groups()
        where = "mid_block" if place == "mid" else place.replace(".", "_blocks.")
        if block is not None:
            return f"{where}.resnets.{block}.{_PARTS[part]}"
        return f"{where}.attentions.{attention}.transformer_blocks.{layer}.{_PARTS[part]}"
    for pattern, theirs in _RENAMES:
        if re.fullmatch(pattern, stem):
            return re.sub(pattern, theirs, stem)
    raise ValueError(f"{stem} has no place in diffusers' pipeline")


def options(model: Model) -> dict[str, Any]:
    """The configuration with which the pipeline builds this model."""
    config: dict[str, Any] = {}
    for r, level in enumerate(model.levels):
        inside, config = config, _level_options(model, level)
        config |= {"nesting": r < len(model.levels) - 1}  # whether another level is around it
        if r > 0:
            config |= {"inner_config": inside, "skip_normalization": not level.normalize_input}
    name = "NestedUNet2DConditionModel" if len(model.levels) > 1 else "MatryoshkaUNet2DConditionModel"
    return {"_class_name": name, **config}


def _level_options(model: Model, level: Level) -> dict[str, Any]:
    assert model.text is not None  # export has seen to it
    innermost = level is model.levels[0]
    down = ["CrossAttnDownBlock2D" if n else "DownBlock2D" for n in level.num_attn_layers]
    config = {
        "sample_size": level.resolution,
        "block_out_channels": list(level.channels),
        "layers_per_block": list(level.num_res_blocks),
        "transformer_layers_per_block": list(level.num_attn_layers),
        "attention_head_dim": level.num_heads,  # that is what it takes this option for
        "use_attention_ffn": level.attention_ffn,
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if innermost else None,
        "cross_attention_dim": model.text.width,
        "masked_cross_attention": model.text.masked,
        "micro_conditioning_scale": level.resolution,
        "addition_embed_type": "matryoshka",
        "time_embedding_dim": model.emb_channels,
        "resnet_time_scale_shift": "scale_shift",
        "flip_sin_to_cos": False,
    }
    return config | ({"encoder_hid_dim": model.text.dim, "encoder_hid_dim_type": "text_proj"} if innermost else {})
