"""Gemma 3, the text model."""

from fmjax.interop.config_keys import Constant, Expected, Rule
from fmjax.interop.family import Family
from fmjax.interop.llama import ATTENTION_AND_MLP, BIASES, BUFFERS, ENDS, layer_types, read_layers, sizes
from fmjax.interop.rope import old_keys, read_scaling, write_rope
from fmjax.interop.weights import Weight
from fmjax.layers.position import Rope

TABLE = (
    *ENDS,
    *ATTENTION_AND_MLP,
    Weight("stack/blocks/attention/q_norm/scale", "model.layers.{layer}.self_attn.q_norm.weight"),
    Weight("stack/blocks/attention/k_norm/scale", "model.layers.{layer}.self_attn.k_norm.weight"),
    Weight("stack/blocks/attention_norm/scale", "model.layers.{layer}.input_layernorm.weight"),
    Weight("stack/blocks/attention_post_norm/scale", "model.layers.{layer}.post_attention_layernorm.weight"),
    Weight("stack/blocks/mlp_norm/scale", "model.layers.{layer}.pre_feedforward_layernorm.weight"),
    Weight("stack/blocks/mlp_post_norm/scale", "model.layers.{layer}.post_feedforward_layernorm.weight"),
)


def _read_windows(config, names, fields):
    every = config.get("sliding_window_pattern", int, config.get("_sliding_window_pattern", int, 6))
    default = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(fields["num_layers"])]
    return read_layers(config, config.get("sliding_window", int, 4096, null=True), default)


def _write_windows(module):
    return {"sliding_window": module.window, "layer_types": layer_types(module)}


def _read_scale(config, names, fields):
    return {"query_scale": config.get("query_pre_attn_scalar", float, 256.0) ** -0.5}


def _write_scale(module):
    scale = module.transformer.query_scale
    return {"query_pre_attn_scalar": module.transformer.head_dim if scale is None else round(scale**-2)}


def _read_rotary(config, names, fields):
    """Bases and scaling: `rope_parameters` by kind of layer, or rope_theta, rope_scaling and rope_local_base_freq."""
    nested = config.raw("rope_parameters") or {}
    full, local = (dict(nested.get(kind) or {}) for kind in ("full_attention", "sliding_attention"))
    stray = [key for key in nested if key not in ("full_attention", "sliding_attention")]
    if stray:
        config.refuse("rope_parameters", nested, "expected the sections full_attention and sliding_attention")
    scaling = read_scaling(config, full or config.raw("rope_scaling") or {})
    if config.raw("rope_scaling") and read_scaling(config, config.raw("rope_scaling")) != scaling:
        config.refuse("rope_scaling", config.raw("rope_scaling"), "rope_parameters says something else")
    if read_scaling(config, local) is not None:
        config.refuse("rope_parameters.sliding_attention", local, "the rotary embedding of local layers is not scaled")
    return {
        "rope_theta": float(full.get("rope_theta", config.get("rope_theta", float, 1e6))),
        "local_rope_theta": float(local.get("rope_theta", config.get("rope_local_base_freq", float, 10000.0))),
        "rope_scaling": scaling,
    }


def _write_rotary(module):
    full = write_rope(Rope(module.rope_theta, module.rope_scaling))
    local = {"rope_type": "default", "rope_theta": module.local_rope_theta}
    return {
        "rope_parameters": {"full_attention": full, "sliding_attention": local},
        **old_keys(full),
        "rope_local_base_freq": module.local_rope_theta,
    }


KEYS = (
    *sizes(kv_heads=4, head_dim=256, tied=True),
    Rule(_read_windows, _write_windows),
    Rule(_read_rotary, _write_rotary),
    Rule(_read_scale, _write_scale),
    BIASES,
    Constant(hidden_activation="gelu_pytorch_tanh"),
    Expected(use_bidirectional_attention=(False, None), attn_logit_softcapping=None, final_logit_softcapping=None),
)

GEMMA3 = Family(
    architectures=("Gemma3ForCausalLM", "Gemma3TextModel"),
    model_type="gemma3_text",
    model="gemma3",
    table=TABLE,
    keys=KEYS,
    prefix="model.",
    ignored=BUFFERS,
)

FAMILIES = (GEMMA3,)
