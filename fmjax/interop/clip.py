"""CLIP: both towers in one space; and each tower by itself."""

from fmjax.errors import ConfigError
from fmjax.interop.config_keys import INIT_STD, Key, Rule, always, ignored
from fmjax.interop.family import Family, Part
from fmjax.interop.vit import side
from fmjax.interop.weights import LINEAR, Weight, conv, linear, norm, patches

ACTIVATIONS = {
    "quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "relu": "relu", "silu": "silu",
}  # fmt: skip


def blocks(layer: str = "encoder.layers.{layer}") -> tuple[Weight, ...]:
    """The stack's weights, as both towers of CLIP and of SigLIP have them."""
    return (
        *linear("stack/blocks/attention/query", f"{layer}.self_attn.q_proj"),
        *linear("stack/blocks/attention/key", f"{layer}.self_attn.k_proj"),
        *linear("stack/blocks/attention/value", f"{layer}.self_attn.v_proj"),
        *linear("stack/blocks/attention/out", f"{layer}.self_attn.out_proj"),
        *linear("stack/blocks/mlp/up", f"{layer}.mlp.fc1"),
        *linear("stack/blocks/mlp/down", f"{layer}.mlp.fc2"),
        *norm("stack/blocks/attention_norm", f"{layer}.layer_norm1"),
        *norm("stack/blocks/mlp_norm", f"{layer}.layer_norm2"),
    )


VISION_TABLE = (
    Weight("class_token", "embeddings.class_embedding"),
    Weight("position_embedding/embedding", "embeddings.position_embedding.weight"),
    *conv("patch_embedding", "embeddings.patch_embedding", lambda module: patches(module.patch_size)),
    *norm("embedding_norm", "pre_layrnorm"),
    *blocks(),
    *norm("stack/final_norm", "post_layernorm"),
)
TEXT_TABLE = (
    Weight("token_embedding/embedding", "embeddings.token_embedding.weight"),
    Weight("position_embedding/embedding", "embeddings.position_embedding.weight"),
    *blocks(),
    *norm("stack/final_norm", "final_layer_norm"),
)
POSITION_IDS = r"embeddings\.position_ids"
"""A buffer of older files."""


def sizes(hidden_size: int, intermediate_size: int, heads: int, norm_eps: float, activation: str) -> tuple:
    """The keys of either tower, with what absent ones are."""
    return (
        Key("num_hidden_layers", "num_layers", default=12),
        Key("hidden_size", "hidden_size", default=hidden_size),
        Key("intermediate_size", "intermediate_size", default=intermediate_size),
        Key("num_attention_heads", "num_heads", default=heads),
        Key("hidden_act", "activation", default=activation, words=ACTIVATIONS),
        Key("layer_norm_eps", "norm_eps", float, norm_eps),
        Key("attention_dropout", "attention_dropout", float, 0.0),
        ignored("initializer_factor", "projection_dim", "dropout"),
    )


def image_tower_keys(epsilon: float, activation: str, patch_size: int) -> tuple:
    """Of a vision_config, with the class's defaults."""
    return (
        *sizes(768, 3072, 12, epsilon, activation),
        Key("num_channels", "num_channels", default=3),
        side("image_size", "image_size", 224),
        side("patch_size", "patch_size", patch_size),
        INIT_STD,
    )


LEGACY_EOS = 2
"""Configs with this end token mean the largest id of a text, whatever it is."""


def _read_end(config, names, fields):
    end = config.get("eos_token_id", int, 49407)
    return {"pooling": "largest_id"} if end == LEGACY_EOS else {"pooling": "first_eos", "eos_id": end}


def _write_end(module):
    if module.pooling == "largest_id":
        return {"eos_token_id": LEGACY_EOS}
    if module.pooling != "first_eos" or module.eos_id == LEGACY_EOS:
        raise ConfigError(
            f"it pools a text at its first end token, whose id is not {LEGACY_EOS}, or at the largest id: set "
            "model.text.pooling to 'first_eos' or 'largest_id'"
        )
    return {"eos_token_id": module.eos_id}


CLIP_VISION = Family(
    architectures=("CLIPVisionModel",),
    model_type="clip_vision_model",
    model="vit",
    table=VISION_TABLE,
    keys=(
        *image_tower_keys(1e-5, "quick_gelu", patch_size=32),
        always(num_classes=0, patch_bias=False, embedding_norm=True),
    ),
    prefix="vision_model.",
    is_bare=True,
    ignored=(POSITION_IDS,),
    processor="CLIPImageProcessor",
)
CLIP_TEXT = Family(
    architectures=("CLIPTextModel",),
    model_type="clip_text_model",
    model="text_tower",
    table=TEXT_TABLE,
    keys=(
        *sizes(512, 2048, 8, 1e-5, "quick_gelu"),
        Key("vocab_size", "vocab_size", default=49408),
        Key("max_position_embeddings", "max_length", default=77),
        Rule(_read_end, _write_end),
        always(causal=True),
    ),
    prefix="text_model.",
    is_bare=True,
    ignored=(POSITION_IDS,),
)


def _read_older(config, names, fields):
    """Older files have the towers' configs twice; the second counts."""
    for tower in ("text_config", "vision_config"):
        first, second = config.raw(tower) or {}, config.raw(f"{tower}_dict") or {}
        for key, value in second.items():
            if first.get(key) != value:
                config.refuse(f"{tower}_dict", {key: value}, f"{tower} has {first.get(key)!r} there; make them equal")
    return {}


CLIP = Family(
    architectures=("CLIPModel",),
    model_type="clip",
    model="clip",
    table=(
        Weight("log_scale", "logit_scale"),
        Weight("image_projection/kernel", "visual_projection.weight", LINEAR),
        Weight("text_projection/kernel", "text_projection.weight", LINEAR),
    ),
    keys=(
        Key("projection_dim", "projection_size", default=512),
        Key("logit_scale_init_value", "initial_scale", float, 2.6592),
        Rule(_read_older),
        ignored("initializer_factor"),
    ),
    parts=(
        Part("vision", CLIP_VISION, key="vision_config", prefix="vision_model.", field="vision"),
        Part("text", CLIP_TEXT, key="text_config", prefix="text_model.", field="text"),
    ),
    objective={"name": "contrastive"},
    processor="CLIPImageProcessor",
)

FAMILIES = (CLIP, CLIP_VISION, CLIP_TEXT)
