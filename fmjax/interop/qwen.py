"""Qwen 3 (dense)."""

from fmjax.interop.family import Family
from fmjax.interop.llama import (
    BUFFERS,
    SILU,
    TABLE,
    read_rotary,
    read_sizes,
    read_windows,
    write_rotary,
    write_sizes,
    write_windows,
)
from fmjax.interop.weights import Weight

QWEN3_TABLE = (
    *TABLE,
    Weight("stack/blocks/attention/q_norm/scale", "model.layers.{layer}.self_attn.q_norm.weight"),
    Weight("stack/blocks/attention/k_norm/scale", "model.layers.{layer}.self_attn.k_norm.weight"),
)


def _read(config, names):
    config.fixed(hidden_act=SILU)
    sizes = read_sizes(config, kv_heads=32, head_dim=128)
    bias = config.get("attention_bias", bool, False)
    windows = read_windows(config, sizes["num_layers"])
    return sizes | read_rotary(config) | windows | {"qkv_bias": bias, "out_bias": bias}


def _write(module):
    keys = write_sizes(module) | write_rotary(module) | write_windows(module)
    return keys | {"attention_bias": module.qkv_bias, "hidden_act": "silu"}


QWEN3 = Family(
    architectures=("Qwen3ForCausalLM", "Qwen3Model"),
    model_type="qwen3",
    model="qwen3",
    table=QWEN3_TABLE,
    read=_read,
    write=_write,
    prefix="model.",
    ignored=BUFFERS,
)

FAMILIES = (QWEN3,)
