"""Vision Transformers, with a head of classes or, for embeddings of images, without one."""

from fmjax.interop.bert import ACTIVATIONS
from fmjax.interop.config_keys import INIT_STD, Key, Rule, always, ignored
from fmjax.interop.family import Family
from fmjax.interop.preprocessor import default_labels
from fmjax.interop.weights import ROW, Layout, Weight, conv, linear, norm, patches

FIRST_TOKEN = Layout(lambda shape: (1, 1, *shape), lambda x: x[0, 0])
"""A token's vector, [1, 1, D] in the files."""


def blocks(stack: str, layer: str) -> tuple[Weight, ...]:
    """The blocks of the stack at a path, whose layers' names begin with `layer`."""
    return (
        *linear(f"{stack}/blocks/attention/query", f"{layer}.attention.attention.query"),
        *linear(f"{stack}/blocks/attention/key", f"{layer}.attention.attention.key"),
        *linear(f"{stack}/blocks/attention/value", f"{layer}.attention.attention.value"),
        *linear(f"{stack}/blocks/attention/out", f"{layer}.attention.output.dense"),
        *linear(f"{stack}/blocks/mlp/up", f"{layer}.intermediate.dense"),
        *linear(f"{stack}/blocks/mlp/down", f"{layer}.output.dense"),
        *norm(f"{stack}/blocks/attention_norm", f"{layer}.layernorm_before"),
        *norm(f"{stack}/blocks/mlp_norm", f"{layer}.layernorm_after"),
    )


def encoder(root: str) -> tuple[Weight, ...]:
    """A "vit" whose tensors' names begin with `root`."""
    return (
        Weight("class_token", f"{root}embeddings.cls_token", FIRST_TOKEN),
        Weight("position_embedding/embedding", f"{root}embeddings.position_embeddings", ROW),
        *conv(
            "patch_embedding",
            f"{root}embeddings.patch_embeddings.projection",
            lambda module: patches(module.patch_size),
        ),
        *blocks("stack", f"{root}encoder.layer.{{layer}}"),
        *norm("stack/final_norm", f"{root}layernorm"),
        *linear("pooler", f"{root}pooler.dense"),
    )


def side(key: str, field: str, default: int) -> Rule:
    """A number of pixels, which some configs have once for each axis."""

    def read(config, names, fields):
        value = config.raw(key)
        sides = value if isinstance(value, list) and value else [default if value is None else value]
        if set(sides) != {sides[0]} or type(sides[0]) is not int:
            config.refuse(key, value, "expected one number of pixels for both axes")
        return {field: sides[0]}

    return Rule(read, lambda module: {key: getattr(module, field)})


def _read_classes(config, names, fields):
    labels = config.get("id2label", dict, None)
    return {"num_classes": config.get("num_labels", int, 2) if labels is None else len(labels)}


CLASSES = Rule(_read_classes, lambda module: default_labels(module.num_classes))
"""The classes of a head, by number or with their names."""

KEYS = (
    ignored("encoder_stride"),
    Key("num_hidden_layers", "num_layers", default=12),
    Key("hidden_size", "hidden_size", default=768),
    Key("intermediate_size", "intermediate_size", default=3072),
    Key("num_attention_heads", "num_heads", default=12),
    Key("num_channels", "num_channels", default=3),
    side("image_size", "image_size", 224),
    side("patch_size", "patch_size", 16),
    Key("hidden_act", "activation", default="gelu", words=ACTIVATIONS),
    Key("qkv_bias", "qkv_bias", bool, True),
    Key("hidden_dropout_prob", "dropout", float, 0.0),
    Key("attention_probs_dropout_prob", "attention_dropout", float, 0.0),
    Key("layer_norm_eps", "norm_eps", float, 1e-12),
    INIT_STD,
)
VIT = Family(
    architectures=("ViTForImageClassification",),
    model_type="vit",
    model="vit",
    table=(*encoder("vit."), *linear("head", "classifier")),
    keys=(
        *KEYS,
        ignored("pooler_act", "pooler_output_size"),
        CLASSES,
        always(use_pooler=False),
    ),
    prefix="vit.",
    ignored=(r"pooler\.dense\.(weight|bias)",),
    objective={"name": "classification"},
    processor="ViTImageProcessor",
)


def _read_pooler(config, names, fields):
    config.fixed(pooler_act="tanh", pooler_output_size=(None, fields["hidden_size"]))
    return {"num_classes": 0, "use_pooler": not names or "pooler.dense.weight" in names}


VIT_HEADLESS = Family(
    architectures=("ViTModel",),
    model_type="vit",
    model="vit",
    table=encoder(""),
    keys=(*KEYS, Rule(_read_pooler)),
    prefix="vit.",
    is_bare=True,
    processor="ViTImageProcessor",
)

FAMILIES = (VIT, VIT_HEADLESS)
