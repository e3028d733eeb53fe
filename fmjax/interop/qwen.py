"""Qwen 3 (dense)."""

from fmjax.interop.family import Family
from fmjax.interop.llama import BIASES, BUFFERS, ROTARY, SILU, TABLE, WINDOWS, sizes
from fmjax.interop.weights import Weight

QWEN3_TABLE = (
    *TABLE,
    Weight("stack/blocks/attention/q_norm/scale", "model.layers.{layer}.self_attn.q_norm.weight"),
    Weight("stack/blocks/attention/k_norm/scale", "model.layers.{layer}.self_attn.k_norm.weight"),
)


QWEN3 = Family(
    architectures=("Qwen3ForCausalLM", "Qwen3Model"),
    model_type="qwen3",
    model="qwen3",
    table=QWEN3_TABLE,
    keys=(*sizes(kv_heads=32, head_dim=128), ROTARY, SILU, WINDOWS, BIASES),
    prefix="model.",
    ignored=BUFFERS,
)

FAMILIES = (QWEN3,)
