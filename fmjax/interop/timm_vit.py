"""Vision Transformers as timm lays them out: queries, keys and values fused, sizes told by the architecture's name."""

import math
import re

from fmjax.data.codecs.image import CroppedImageCodec, ImageCodec
from fmjax.errors import ConfigError
from fmjax.interop.config_keys import Rule, always, ignored
from fmjax.interop.family import Family
from fmjax.interop.weights import ROW, Layout, Weight, conv, linear, norm, patches

SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
"""Width, layers and heads."""
NAMES = tuple(
    f"vit_{size}_patch{patch}_{image}"
    for size in ("base", "tiny", "small", "large")
    for patch in (16, 32)
    for image in (224, 384)
    if (size, patch) != ("tiny", 32)
)
ARGUMENTS = {
    "img_size": "image_size", "patch_size": "patch_size", "in_chans": "num_channels", "embed_dim": "hidden_size",
    "depth": "num_layers", "num_heads": "num_heads", "qkv_bias": "qkv_bias",
}  # fmt: skip
"""Of `model_args`, beside our fields."""


def _third(index: int) -> tuple[Layout, Layout]:
    """(kernel, bias) of queries, keys or values, whose rows lie one after the other in one tensor."""
    rows = lambda x: x[index * (len(x) // 3) : (index + 1) * (len(x) // 3)]
    kernel = Layout(lambda shape: (3 * shape[1], shape[0]), lambda x: rows(x).T)
    return kernel, Layout(lambda shape: (3 * shape[0],), rows)


def _product(name: str, index: int) -> tuple[Weight, Weight]:
    path, fused = f"stack/blocks/attention/{name}", "blocks.{layer}.attn.qkv"
    kernel, bias = _third(index)
    return Weight(f"{path}/kernel", f"{fused}.weight", kernel), Weight(f"{path}/bias", f"{fused}.bias", bias)


def _read(config, names, fields):
    name = config.raw("architecture")
    size, patch, image = re.fullmatch(r"vit_(\w+)_patch(\d+)_(\d+)", name).groups()
    width, layers, heads = SIZES[size]
    found = dict(hidden_size=width, num_layers=layers, num_heads=heads, patch_size=int(patch), image_size=int(image))
    arguments = dict(config.get("model_args", dict, {}))
    ratio = arguments.pop("mlp_ratio", 4.0)
    for key, value in arguments.items():
        if key not in ARGUMENTS:
            config.refuse("model_args", arguments, f"known: {', '.join(ARGUMENTS)}, mlp_ratio")
        found[ARGUMENTS[key]] = value
    found["intermediate_size"] = round(ratio * found["hidden_size"])
    config.fixed(num_features=(found["hidden_size"], None), global_pool=("token", None))
    return {"num_channels": 3, "qkv_bias": True, **found, "num_classes": config.get("num_classes", int, 1000)}


def _write(module):
    """The architecture that the module is, or, with `model_args`, one that it becomes by them."""
    fields = {key: getattr(module, ours) for key, ours in ARGUMENTS.items()}
    sizes = (module.hidden_size, module.num_layers, module.num_heads)
    size = next((name for name, known in SIZES.items() if known == sizes), "base")
    name = f"vit_{size}_patch{module.patch_size}_{module.image_size}"
    plain = (module.num_channels, module.qkv_bias, module.intermediate_size) == (3, True, 4 * module.hidden_size)
    found = {"num_classes": module.num_classes, "num_features": module.hidden_size, "global_pool": "token"}
    if name in NAMES and plain and SIZES[size] == sizes:
        return {"architecture": name, **found}
    ratio = module.intermediate_size / module.hidden_size
    return {"architecture": NAMES[0], **found, "model_args": {**fields, "mlp_ratio": ratio}}


def read_codec(values, module, source: str) -> ImageCodec | None:
    """How images are prepared, from `pretrained_cfg`; None where there is none."""
    told = values.get("pretrained_cfg")
    if not told:
        return None
    if told.get("crop_mode", "center") != "center" or told.get("interpolation", "bicubic") not in FILTERED:
        raise ConfigError(
            f"{source}: pretrained_cfg = {told}: expected crop_mode 'center' and interpolation one of {FILTERED}"
        )
    side = module.image_size
    edge = math.floor(side / told.get("crop_pct", 0.875))
    mean, std = (tuple(told.get(key, (0.5,) * 3)) for key in ("mean", "std"))
    return CroppedImageCodec(
        side, side, module.num_channels, mean, std, resample=told.get("interpolation", "bicubic"), shortest_edge=edge
    )


FILTERED = ("bicubic", "bilinear")


def write_codec(codec: ImageCodec) -> dict:
    """The key `pretrained_cfg` of a codec."""
    edge = getattr(codec, "shortest_edge", codec.height)
    rows = {name: list(getattr(codec, name)) for name in ("mean", "std")}
    numbers = {name: row * (codec.channels // len(row)) for name, row in rows.items()}
    shape = [codec.channels, codec.height, codec.width]
    share = codec.height / (edge + 0.5)  # read again it is rounded down, and half a pixel more leaves `edge`
    told = {"input_size": shape, "interpolation": codec.resample, "crop_pct": share, "crop_mode": "center"}
    return {"pretrained_cfg": told | numbers}


TIMM = Family(
    architectures=NAMES,
    model_type="timm",
    model="vit",
    table=(
        Weight("class_token", "cls_token", Layout(lambda shape: (1, 1, *shape), lambda x: x[0, 0])),
        Weight("position_embedding/embedding", "pos_embed", ROW),
        *conv("patch_embedding", "patch_embed.proj", lambda module: patches(module.patch_size)),
        *_product("query", 0),
        *_product("key", 1),
        *_product("value", 2),
        *linear("stack/blocks/attention/out", "blocks.{layer}.attn.proj"),
        *linear("stack/blocks/mlp/up", "blocks.{layer}.mlp.fc1"),
        *linear("stack/blocks/mlp/down", "blocks.{layer}.mlp.fc2"),
        *norm("stack/blocks/attention_norm", "blocks.{layer}.norm1"),
        *norm("stack/blocks/mlp_norm", "blocks.{layer}.norm2"),
        *norm("stack/final_norm", "norm"),
        *linear("head", "head"),
    ),
    keys=(
        ignored("label_names", "label_descriptions", "pretrained_cfg"),
        Rule(_read, _write),
        always(norm_eps=1e-6),
    ),
    objective={"name": "classification"},
    names_itself=True,
    read_codec=read_codec,
    write_codec=write_codec,
)
FAMILIES = (TIMM,)
