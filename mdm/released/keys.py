"""Reader of the authors' released networks: their option names -> ``Model``, their key names -> ours.

The mapping is of facts (names, shapes, order); see THIRD_PARTY.md for whose they are.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mdm.config import Level, Model, Text

# What a level of theirs calls a thing -> what ours calls it; {r} is the level's number, {r_inside} the next one's in.
_RENAMES = [
    (r"temb_layer([12])", r"levels.{r}.time.fc\1"),
    (r"cond_layers\.(\w+)\.0", r"levels.{r}.micro.embeddings.\1.fc1"),
    (r"cond_layers\.(\w+)\.1", r"levels.{r}.micro.embeddings.\1.fc2"),
    (r"(conv_in|norm_out|conv_out)", r"levels.{r}.\1"),
    (r"cond_emb", r"text.pool"),
    (r"lm_proj", r"text.proj"),
    (r"lm_head\.(\d+)\.attn\.(norm|qkv)", r"text.layers.\1.\2"),
    (r"lm_head\.(\d+)\.attn\.proj_out", r"text.layers.\1.proj"),
    (r"lm_head\.(\d+)\.mlp\.main\.(\d)", r"text.layers.\1.mlp.\2"),
    (r"in_adapter", r"adapters.{r_inside}.down"),
    (r"out_adapter", r"adapters.{r_inside}.up"),
    (r"(down|up)_blocks\.(\d+)\.resnets\.(\d+)\.(\w+)", r"levels.{r}.\1.\2.blocks.\3.\4"),
    (r"mid_blocks\.(\d+)\.resnets\.0\.(\w+)", r"levels.{r}.mid.blocks.\1.\2"),
    (r"mid_blocks\.0\.attn\.0\.(.+)", r"levels.{r}.mid.attention.0.0.\1"),
    (r"down_blocks\.(\d+)\.resample", r"levels.{r}.down.\1.resize"),
    (r"up_blocks\.(\d+)\.resample", r"levels.{r}.up.\1.resize.conv"),
]
_ATTENTION = re.compile(r"(down|up)_blocks\.(\d+)\.attn\.(\d+)\.(.+)")
_PARTS = {
    "conv3": "skip",
    "time_layer": "modulation",
    "norm_cond": "text_norm",
    "kv_cond": "text_kv",
    "proj_out": "proj",
    "ffn.0": "ffn_norm",
    "ffn.1": "ffn.0",
    "ffn.3": "ffn.2",
}
# Options that change no output: initialisation and training switches, and our own way of nesting.
_IGNORED = {"initialize_inner_with_pretrained", "freeze_inner_unet", "nesting", "interp_conditioning"}
_LEVEL_OPTIONS = {
    "attention_levels",
    "conditioning_feature_dim",
    "conditioning_feature_proj_dim",
    "inner_config",
    "masked_cross_attention",
    "micro_conditioning",
    "num_attention_layers",
    "num_lm_head_layers",
    "num_resnets_per_resolution",
    "resnet_config",
    "resolution_channels",
    "skip_cond_emb",
    "skip_inner_unet_input",
    "skip_mid_blocks",
    "skip_normalization",
    "temporal_dim",
}
_VIDEO = ("temporal_mode", "temporal_spatial_ds", "temporal_positional_encoding", "num_temporal_attention_layers")


def model_from_options(config: Mapping[str, Any], resolutions: list[int], text_dim: int) -> Model:
    """The ``Model`` that a released configuration describes (outermost level first, as they write it).

    Raises ValueError naming the option that is unknown or that this project cannot build.
    """
    nests = [config]
    while nests[-1].get("inner_config"):
        nests.append(nests[-1]["inner_config"])
    if len(nests) != len(resolutions):
        raise ValueError(f"resolutions: {len(resolutions)} given for {len(nests)} nested levels")
    for nest in nests:
        unknown = set(nest) - _LEVEL_OPTIONS - _IGNORED - set(_VIDEO)
        if unknown:
            raise ValueError(f"unknown option {sorted(unknown)[0]!r}")
        for name in _VIDEO:
            if nest.get(name):
                raise ValueError(f"option {name!r}: video levels are not built here yet")
    innermost = nests[-1]
    widths = {nest.get("temporal_dim") or 4 * nest["resolution_channels"][0] for nest in nests}
    if len(widths) != 1:
        raise ValueError(f"temporal_dim: levels share one embedding, so it must be one width, got {sorted(widths)}")
    text = None
    if text_dim > 0:
        text = Text(
            dim=text_dim,
            proj_dim=max(0, innermost.get("conditioning_feature_proj_dim", -1)),
            num_layers=innermost.get("num_lm_head_layers", 0),
            masked=bool(innermost.get("masked_cross_attention", 1)),
        )
    levels = [_level(nest, px) for nest, px in zip(nests, resolutions, strict=True)]
    return Model(levels=tuple(reversed(levels)), text=text, emb_channels=widths.pop())


def _level(nest: Mapping[str, Any], resolution: int) -> Level:
    resnet = nest.get("resnet_config", {})
    attention = [n if i in nest["attention_levels"] else 0 for i, n in enumerate(nest["num_attention_layers"])]
    micro = nest.get("micro_conditioning")
    pairs = [pair.split(":") for pair in micro.split(",")] if micro else []
    return Level(
        resolution=resolution,
        channels=tuple(nest["resolution_channels"]),
        num_res_blocks=tuple(nest["num_resnets_per_resolution"]),
        num_attn_layers=tuple(attention),
        attention_ffn=resnet.get("use_attention_ffn", False),
        mid_block=not nest.get("skip_mid_blocks", False),
        inner_input=not nest.get("skip_inner_unet_input", False),
        normalize_input="inner_config" in nest and not nest.get("skip_normalization", False),
        norm_groups=resnet.get("num_groups_norm", 32),
        dropout=resnet.get("dropout", 0.0),
        micro=tuple((name, float(default)) for name, default in pairs),
    )


def convert_keys(weights: Mapping[str, Tensor], model: Model, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Released parameters, renamed and reshaped (1x1 convolutions that are linear layers here).

    ``expected`` is our state dict. Raises ValueError listing missing, unexpected and misshapen keys by name.
    """
    converted, problems, top = {}, [], len(model.levels) - 1
    missing = dict.fromkeys(expected)
    for key, tensor in weights.items():
        depth = key.count("inner_unet.")
        name = None if depth > top else _rename(key.replace("inner_unet.", ""), top - depth, model)
        if name is None or name not in expected:
            if not _is_dead(key.replace("inner_unet.", ""), is_outer=depth < top):
                problems.append(f"unexpected {key}")
            continue
        missing.pop(name, None)
        shape = expected[name].shape
        if tensor.shape != shape and tensor.shape != (*shape, 1, 1):
            problems.append(f"misshapen {key}: {tuple(tensor.shape)}, need {tuple(shape)}")
            continue
        converted[name] = tensor.reshape(shape)
    problems += [f"missing {name}" for name in missing]
    if problems:
        shown = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise ValueError(f"{len(problems)} keys do not fit the model: {shown}")
    return converted


def _rename(key: str, r: int, model: Model) -> str | None:
    stem, _, kind = key.rpartition(".")  # kind: weight or bias
    match = _ATTENTION.fullmatch(stem)
    if match:
        way, block, place, part = match.groups()
        level = model.levels[r]
        index = int(block) if way == "down" else len(level.channels) - 1 - int(block)
        per_block = level.num_attn_layers[index] if 0 <= index < len(level.channels) else 0
        if per_block == 0:
            return None
        a, b = divmod(int(place), per_block)
        return f"levels.{r}.{way}.{block}.attention.{a}.{b}.{_PARTS.get(part, part)}.{kind}"
    for pattern, name in _RENAMES:
        if re.fullmatch(pattern, stem):
            name = re.sub(pattern, name, stem).replace("{r}", str(r)).replace("{r_inside}", str(r - 1))
            for theirs, ours in _PARTS.items():
                if name.endswith("." + theirs):
                    name = name.removesuffix(theirs) + ours
                    break
            return f"{name}.{kind}"
    return None


def _is_dead(key: str, is_outer: bool) -> bool:
    """Parameters that their forward pass never reads: the outer levels' middle and text layers, interpolation."""
    return key.startswith("interp_layer") or (
        is_outer and key.startswith(("mid_blocks.", "cond_emb.", "lm_proj.", "lm_head."))
    )
