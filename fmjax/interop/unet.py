"""U-Nets as diffusers publishes them: `UNet2DModel` and `UNet2DConditionModel`.

`attention_head_dim` of the conditional class is the number of heads (diffusers' issue 2011), that of the other one
their width. A `_null_class` of true, which diffusers passes over, says that the last of `num_class_embeds` stands for
no class.
"""

from fmjax.data.codecs.image import ImageCodec
from fmjax.errors import ConfigError
from fmjax.interop import scheduler
from fmjax.interop.config_keys import Constant, Expected, Key, Rule, always, ignored
from fmjax.interop.family import Family, part_in_folder
from fmjax.interop.weights import LINEAR, Weight, conv, linear, norm, packed_linear, part, patches

OLD_ATTENTION = tuple(
    (f".{old}.{kind}", f".{new}.{kind}")
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
    for kind in ("weight", "bias")
)
"""Names of attention over places in files that diffusers wrote before its version 0.17."""


def block(path: str, name: str) -> tuple[Weight, ...]:
    """A residual block."""
    return (
        *norm(f"{path}/norm_1", f"{name}.norm1"),
        *conv(f"{path}/conv_1", f"{name}.conv1"),
        *linear(f"{path}/time", f"{name}.time_emb_proj"),
        *norm(f"{path}/norm_2", f"{name}.norm2"),
        *conv(f"{path}/conv_2", f"{name}.conv2"),
        *conv(f"{path}/shortcut", f"{name}.conv_shortcut"),
    )


def _attention(path: str, name: str) -> tuple[Weight, ...]:
    pairs = {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
    return tuple(one for ours, theirs in pairs.items() for one in linear(f"{path}/{ours}", f"{name}.{theirs}"))


def place_attention(path: str, name: str) -> tuple[Weight, ...]:
    """Attention over places."""
    return *norm(f"{path}/norm", f"{name}.group_norm"), *_attention(f"{path}/attention", name)


def place_transformer(path: str, name: str) -> tuple[Weight, ...]:
    """A Transformer over places that attends to a text."""
    ends = lambda module: LINEAR if module.linear_projection else patches(1)  # else convolutions 1x1
    blocks, theirs = f"{path}/stack/blocks", f"{name}.transformer_blocks.{{layer}}"
    halves = [
        weight
        for index, gate in enumerate(("up", "gate"))
        for weight in (
            Weight(f"{blocks}/mlp/{gate}/kernel", f"{theirs}.ff.net.0.proj.weight", packed_linear(index, 2)),
            Weight(f"{blocks}/mlp/{gate}/bias", f"{theirs}.ff.net.0.proj.bias", part(index, 2)),
        )
    ]
    return (
        *norm(f"{path}/norm", f"{name}.norm"),
        *conv(f"{path}/inner", f"{name}.proj_in", ends),
        *norm(f"{blocks}/attention_norm", f"{theirs}.norm1"),
        *_attention(f"{blocks}/attention", f"{theirs}.attn1"),
        *norm(f"{blocks}/cross_norm", f"{theirs}.norm2"),
        *_attention(f"{blocks}/cross_attention", f"{theirs}.attn2"),
        *norm(f"{blocks}/mlp_norm", f"{theirs}.norm3"),
        *halves,
        *linear(f"{blocks}/mlp/down", f"{theirs}.ff.net.2"),
        *conv(f"{path}/outer", f"{name}.proj_out", ends),
    )


def way(ours: str, theirs: str, resizer: str, *attentions) -> tuple[Weight, ...]:
    """The levels of one way: the lines of `attentions`, and how a level changes size."""
    path, name = f"{ours}_{{level}}", f"{theirs}.{{level}}"
    resize = f"{path}_resize", f"{name}.{resizer}.0"
    places = f"{path}_attention_{{place}}", f"{name}.attentions.{{place}}"
    return (
        *block(f"{path}_block_{{place}}", f"{name}.resnets.{{place}}"),
        *(line for lines in attentions for line in lines(*places)),
        *conv(f"{resize[0]}/conv", f"{resize[1]}.conv"),
        *block(*resize),
    )


def middle(ours: str, theirs: str, *attentions) -> tuple[Weight, ...]:
    """What lies between the two ways."""
    blocks = block(f"{ours}_block_{{place}}", f"{theirs}.resnets.{{place}}")
    path, name = f"{ours}_attention_{{place}}", f"{theirs}.attentions.{{place}}"
    return *blocks, *(line for lines in attentions for line in lines(path, name))


def _table(attention) -> tuple[Weight, ...]:
    return (
        *conv("start", "conv_in"),
        *linear("time/inner", "time_embedding.linear_1"),
        *linear("time/outer", "time_embedding.linear_2"),
        Weight("label/embedding", "class_embedding.weight"),
        *way("down", "down_blocks", "downsamplers", attention),
        *middle("mid", "mid_block", attention),
        *way("up", "up_blocks", "upsamplers", attention),
        *norm("last_norm", "conv_norm_out"),
        *conv("head", "conv_out"),
    )


NAMES = {
    "conv": {"none": "DownBlock2D", "self": "AttnDownBlock2D", "cross": "CrossAttnDownBlock2D"},
    "block": {"none": "ResnetDownsampleBlock2D", "self": "AttnDownBlock2D"},
}
KINDS = {name: kind for names in NAMES.values() for kind, name in names.items()}


def _up(name: str) -> str:
    return name.replace("Downsample", "Upsample").replace("Down", "Up")


def _read_types(defaults):
    """The rule of the types of blocks, whose defaults are those of the class."""

    def read(config, names, fields):
        down = config.get("down_block_types", list, list(defaults))
        up = config.get("up_block_types", list, [_up(name) for name in reversed(defaults)])
        resnet = {key: config.get(key, str, "conv") == "resnet" for key in ("downsample_type", "upsample_type")}
        for name in down:
            if name not in KINDS:
                config.refuse("down_block_types", name, f"known: {', '.join(KINDS)}")
        kinds = [KINDS[name] for name in down]
        ways = (down, "downsample_type"), (up, "upsample_type")
        # The last level of a way does not change size.
        resized = {
            "block" if name.startswith("Resnet") or (name.startswith("Attn") and resnet[key]) else "conv"
            for types, key in ways
            for name in types[:-1]
        }
        mirrored = [[_up(n) for n, kind in KINDS.items() if kind == wanted] for wanted in reversed(kinds)]
        if len(resized) > 1 or len(up) != len(down) or any(name not in known for name, known in zip(up, mirrored)):
            config.refuse("up_block_types", up, f"the mirror image of {down} is, with one way of changing size for all")
        return {"attention": tuple(kinds), "resize": resized.pop() if resized else "conv"}

    return read


def _write_types(module):
    down = [NAMES[module.resize].get(kind) for kind in module.attention]
    if None in down:
        raise ConfigError(f"it has no attention {module.attention} with resize {module.resize!r}")
    found = {"down_block_types": down, "up_block_types": [_up(name) for name in reversed(down)]}
    resnet = "resnet" if module.resize == "block" else "conv"
    return found | ({} if "cross" in module.attention else {"downsample_type": resnet, "upsample_type": resnet})


def _read_mid(config, names, fields):
    mid = config.get("mid_block_type", str, "UNetMidBlock2D", null=True)
    attends = config.get("add_attention", bool, True)
    if mid not in (None, "UNetMidBlock2D"):
        config.refuse("mid_block_type", mid, "supported: 'UNetMidBlock2D', None")
    scaled = config.values.get("resnet_time_scale_shift", "default") != "default"
    groups = config.get("attn_norm_num_groups", int, None)
    normal = config.values.get("norm_num_groups", 32)
    groups = (0 if scaled else normal) if groups is None else groups  # the class's rule
    mid = "absent" if mid is None else "self" if attends else "none"
    return {"mid": mid, "mid_norm_groups": None if groups == normal or mid != "self" else groups}


def _write_mid(module):
    if module.mid == "cross" or "cross" in module.attention:
        raise ConfigError("it has no attention 'cross'")
    groups = module.norm_groups if module.mid_norm_groups is None else module.mid_norm_groups
    scaled = module.time_shift == "scale_shift"
    if groups == 0 and not scaled and module.mid == "self":
        raise ConfigError("it has a norm before the attention of mid (mid_norm_groups = 0)")
    mid = None if module.mid == "absent" else "UNetMidBlock2D"
    written = None if groups == (0 if scaled else module.norm_groups) else groups
    return {"mid_block_type": mid, "add_attention": module.mid == "self", "attn_norm_num_groups": written}


def _read_classes(config, names, fields):
    classes, null = config.get("num_class_embeds", int, None), config.raw("_null_class") is True
    return {"num_classes": 0} if classes is None else {"num_classes": classes - null, "null_class": null}


def _write_classes(module):
    if not module.num_classes:
        return {"num_class_embeds": None}
    classes = {"num_class_embeds": module.num_classes + module.null_class}
    return classes | ({"_null_class": True} if module.null_class else {})


def _read_outputs(config, names, fields):
    outputs = config.get("out_channels", int, fields["num_channels"])
    return {"out_channels": None if outputs == fields["num_channels"] else outputs}


def _a_level(key: str, field: str, default: int) -> Rule:
    """A number a level, or one for all."""

    def read(config, names, fields):
        value = config.raw(key)
        value = default if value is None else value
        value = [value] * len(fields["widths"]) if isinstance(value, int) else value
        if not isinstance(value, list) or not all(isinstance(one, int) for one in value):
            config.refuse(key, value, "a number, or one a level")
        return {field: tuple(value)}

    def write(module):
        values = list(getattr(module, field))
        return {key: values[0] if len(set(values)) == 1 else values}

    return Rule(read, write)


def _keys(channels: int, widths: tuple[int, ...], types: tuple[str, ...]) -> tuple:
    """Keys that both classes have, with the defaults of one."""
    return (
        Key("sample_size", "image_size", default=None),
        Key("in_channels", "num_channels", default=channels),
        Rule(_read_outputs, lambda module: {"out_channels": module.out_channels or module.num_channels}),
        Rule(
            lambda config, names, fields: {"widths": tuple(config.get("block_out_channels", list, list(widths)))},
            lambda module: {"block_out_channels": list(module.widths)},
        ),
        Key("layers_per_block", "num_blocks", default=2),
        Rule(_read_types(types), _write_types),
        Key("flip_sin_to_cos", "cosines_first", bool, True),
        Key("freq_shift", "frequency_shift", float, 0.0),
        Key("norm_num_groups", "norm_groups", default=32),
        Key("norm_eps", "norm_eps", float, 1e-5),
        Key("dropout", "dropout", float, 0.0),
        Key(
            "resnet_time_scale_shift", "time_shift", str, "default",
            words={"default": "add", "scale_shift": "scale_shift"},
        ),
        Rule(
            lambda config, names, fields: {"padding": 1 if config.get("downsample_padding", int, 1) else "SAME"},
            lambda module: {"downsample_padding": 1 if module.padding == 1 else 0},
        ),
        Rule(_read_classes, _write_classes),
        Constant(act_fn=("silu", "swish"), center_input_sample=False, mid_block_scale_factor=1),
        Expected(time_embedding_type="positional", class_embed_type=None, time_embedding_dim=None),
    )  # fmt: skip


UNET_2D = Family(
    architectures=("UNet2DModel",),
    model_type="",
    model="unet",
    table=_table(place_attention),
    keys=(
        *_keys(3, (224, 448, 672, 896), ("DownBlock2D", *["AttnDownBlock2D"] * 3)),
        Key("attention_head_dim", "head_dim", default=8, null=True),
        Rule(_read_mid, _write_mid),
        ignored("num_train_timesteps"),
    ),
    renamed=OLD_ATTENTION,
)


def _write_cross(module):
    if module.mid != "cross" or "self" in module.attention:
        raise ConfigError("its mid has attention 'cross', and no level 'self'")
    return {"mid_block_type": "UNetMidBlock2DCrossAttn"}


def _read_cross(config, names, fields):
    config.fixed(mid_block_type="UNetMidBlock2DCrossAttn")
    if "self" in fields["attention"]:
        config.refuse("down_block_types", config.raw("down_block_types"), "CrossAttnDownBlock2D and DownBlock2D are")
    return {"mid": "cross"}


UNET_2D_CONDITION = Family(
    architectures=("UNet2DConditionModel",),
    model_type="",
    model="unet",
    table=_table(place_transformer),
    keys=(
        *_keys(4, (320, 640, 1280, 1280), (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")),
        Rule(_read_cross, _write_cross),
        _a_level("attention_head_dim", "num_heads", 8),
        _a_level("transformer_layers_per_block", "num_layers", 1),
        Key("cross_attention_dim", "memory_size", default=1280),
        Key("use_linear_projection", "linear_projection", bool, False),
        Constant(only_cross_attention=False, dual_cross_attention=False),
        Expected(
            num_attention_heads=None, reverse_transformer_layers_per_block=None, encoder_hid_dim=None,
            encoder_hid_dim_type=None, addition_embed_type=None, upcast_attention=(False, True, None),
            resnet_skip_time_act=False, resnet_out_scale_factor=1.0, time_embedding_act_fn=None,
            timestep_post_act=None, time_cond_proj_dim=None, conv_in_kernel=3, conv_out_kernel=3,
            attention_type="default", class_embeddings_concat=False, mid_block_only_cross_attention=(None, False),
            cross_attention_norm=None,
        ),
        ignored("addition_time_embed_dim", "projection_class_embeddings_input_dim", "addition_embed_type_num_heads"),
        always(head_dim=None),
    ),
    renamed=OLD_ATTENTION,
)  # fmt: skip


def _pixels(values, module, source) -> ImageCodec | None:
    """Of the images that a pipeline makes."""
    side, channels = module.image_size, module.num_channels
    return None if side is None or channels not in (1, 3) else ImageCodec(side, side, channels)


def _label_dropout(values) -> dict:
    """A net that has learnt nothing of rows without a class has no row for them either."""
    net = values.get("unet", {})
    return {} if net.get("num_class_embeds") is None or net.get("_null_class") is True else {"label_dropout": 0.0}


DDPM_PIPELINE = Family(
    architectures=("DDPMPipeline", "DDIMPipeline"),
    model_type="",
    model="unet",
    parts=(part_in_folder("unet", UNET_2D, field=""),),
    in_folders=True,
    objective={"name": "diffusion"},
    objective_beside=_label_dropout,
    objective_keys=scheduler.KEYS,
    objective_class="DDPMScheduler",
    objective_part="scheduler",
    read_codec=_pixels,
)

FAMILIES = (UNET_2D, UNET_2D_CONDITION, DDPM_PIPELINE)
