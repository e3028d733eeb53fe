"""SigLIP, and SigLIP 2 of fixed sizes, which has the same classes: both towers in one space; and each by itself. And
SigLIP 2 of any proportions (NaFlex), which has classes of its own.

Where a text_config says no pad_token_id it is 1, the class's default; but 0 of a tower with Gemma's vocabulary, SigLIP
2's, whose tokenizer fills up with that. One that reads another padding than its tokenizer's is refused when it reads
texts, with what to write (`fmjax.models.dual_encoder.other_padding`).
"""

import dataclasses

from fmjax.errors import ConfigError
from fmjax.interop.clip import POSITION_IDS, TEXT_TABLE, blocks, image_tower_keys, sizes
from fmjax.interop.config_keys import INIT_STD, Constant, Key, Rule, always, ignored
from fmjax.interop.family import Family, Part
from fmjax.interop.vit import FIRST_TOKEN, side
from fmjax.interop.weights import Layout, Weight, conv, linear, norm, packed_linear, part, patches

ONE = Layout(lambda shape: (1, *shape), lambda x: x.reshape(()))
HEAD = "attention_pooling"


def _packed(name: str, index: int) -> tuple[Weight, Weight]:
    """One of query, key and value, which lie in one tensor."""
    path = f"{HEAD}/attention/{name}"
    return (
        Weight(f"{path}/kernel", "head.attention.in_proj_weight", packed_linear(index, 3)),
        Weight(f"{path}/bias", "head.attention.in_proj_bias", part(index, 3)),
    )


TOWER_TABLE = (
    Weight("position_embedding/embedding", "embeddings.position_embedding.weight"),
    *blocks(),
    *norm("stack/final_norm", "post_layernorm"),
    Weight(f"{HEAD}/probe", "head.probe", FIRST_TOKEN),
    *(weight for index, name in enumerate(("query", "key", "value")) for weight in _packed(name, index)),
    *linear(f"{HEAD}/attention/out", "head.attention.out_proj"),
    *norm(f"{HEAD}/mlp_norm", "head.layernorm"),
    *linear(f"{HEAD}/mlp/up", "head.mlp.fc1"),
    *linear(f"{HEAD}/mlp/down", "head.mlp.fc2"),
)
VISION_TABLE = (
    *conv("patch_embedding", "embeddings.patch_embedding", lambda module: patches(module.patch_size)),
    *TOWER_TABLE,
)


GEMMA_VOCAB = 256_000
"""Tokens of SigLIP 2's text towers."""


def _read_rest(config, names, fields):
    size = config.get("projection_size", int, None)
    pad_id = config.get("pad_token_id", int, 0 if fields["vocab_size"] == GEMMA_VOCAB else 1)
    return {"projection_size": fields["hidden_size"] if size is None else size, "pad_id": pad_id}


def _write_rest(module):
    if module.projection_size is None or module.pad_id is None:
        raise ConfigError("it has a product behind its text tower (projection_size), which reads padding (pad_id)")
    return {"projection_size": module.projection_size, "pad_token_id": module.pad_id}


SIGLIP_VISION = Family(
    architectures=("SiglipVisionModel",),
    model_type="siglip_vision_model",
    model="vit",
    table=VISION_TABLE,
    keys=(
        *image_tower_keys(1e-6, "gelu_pytorch_tanh", patch_size=16),
        Constant(vision_use_head=True),
        always(num_classes=0, use_class_token=False, pooling="attention"),
    ),
    prefix="vision_model.",
    is_bare=True,
    ignored=(POSITION_IDS,),
    processor="SiglipImageProcessor",
)
SIGLIP_TEXT = Family(
    architectures=("SiglipTextModel",),
    model_type="siglip_text_model",
    model="text_tower",
    table=(*TEXT_TABLE, *linear("projection", "head")),
    keys=(
        *sizes(768, 3072, 12, 1e-6, "gelu_pytorch_tanh"),
        Key("vocab_size", "vocab_size", default=32000),
        Key("max_position_embeddings", "max_length", default=64),
        Rule(_read_rest, _write_rest),
        always(causal=False, pooling="last"),
    ),
    prefix="text_model.",
    is_bare=True,
    ignored=(POSITION_IDS,),
)
SIGLIP = Family(
    architectures=("SiglipModel",),
    model_type="siglip",
    model="siglip",
    table=(Weight("log_scale", "logit_scale", ONE), Weight("bias", "logit_bias", ONE)),
    keys=(ignored("initializer_factor"), always(projection_size=None)),
    parts=(
        Part("vision", SIGLIP_VISION, key="vision_config", prefix="vision_model.", field="vision"),
        Part("text", SIGLIP_TEXT, key="text_config", prefix="text_model.", field="text"),
    ),
    objective={"name": "contrastive", "loss": "sigmoid"},
    processor="SiglipImageProcessor",
)


def _write_positions(module):
    if not hasattr(module, "num_patches"):
        raise ConfigError("it reads images of any proportions, as the model 'naflex_vit' does")
    return {"num_patches": module.num_patches}


SIGLIP2_VISION = Family(
    architectures=("Siglip2VisionModel",),
    model_type="siglip2_vision_model",
    model="naflex_vit",
    table=(*linear("patch_embedding", "embeddings.patch_embedding"), *TOWER_TABLE),
    keys=(
        *sizes(768, 3072, 12, 1e-6, "gelu_pytorch_tanh"),
        Key("num_channels", "num_channels", default=3),
        side("patch_size", "patch_size", 16),
        Rule(lambda config, names, fields: {"num_patches": config.get("num_patches", int, 256)}, _write_positions),
        Constant(vision_use_head=True),
        INIT_STD,
        ignored("image_size"),
    ),
    prefix="vision_model.",
    is_bare=True,
    processor="Siglip2ImageProcessor",
)
SIGLIP2_TEXT = dataclasses.replace(SIGLIP_TEXT, architectures=("Siglip2TextModel",), model_type="siglip2_text_model")
SIGLIP2 = dataclasses.replace(
    SIGLIP,
    architectures=("Siglip2Model",),
    model_type="siglip2",
    parts=(
        Part("vision", SIGLIP2_VISION, key="vision_config", prefix="vision_model.", field="vision"),
        Part("text", SIGLIP2_TEXT, key="text_config", prefix="text_model.", field="text"),
    ),
    processor="Siglip2ImageProcessor",
)

FAMILIES = (SIGLIP, SIGLIP_VISION, SIGLIP_TEXT, SIGLIP2, SIGLIP2_VISION, SIGLIP2_TEXT)
