"""LLaMA 1 to 3, Mistral, and Qwen 2, which differ in biases, windows and defaults."""

from fmjax.interop.config_keys import INIT_STD, Constant, Key, Rule, always, ignored
from fmjax.interop.family import Family
from fmjax.interop.rope import old_keys, read_rope, write_rope
from fmjax.interop.weights import LINEAR, Weight, linear

ATTENTION_AND_MLP = (
    *linear("stack/blocks/attention/query", "model.layers.{layer}.self_attn.q_proj"),
    *linear("stack/blocks/attention/key", "model.layers.{layer}.self_attn.k_proj"),
    *linear("stack/blocks/attention/value", "model.layers.{layer}.self_attn.v_proj"),
    *linear("stack/blocks/attention/out", "model.layers.{layer}.self_attn.o_proj"),
    *linear("stack/blocks/mlp/gate", "model.layers.{layer}.mlp.gate_proj"),
    *linear("stack/blocks/mlp/up", "model.layers.{layer}.mlp.up_proj"),
    *linear("stack/blocks/mlp/down", "model.layers.{layer}.mlp.down_proj"),
)
ENDS = (
    Weight("token_embedding/embedding", "model.embed_tokens.weight", repeats=("lm_head.weight",)),
    Weight("stack/final_norm/scale", "model.norm.weight"),
    Weight("head", "lm_head.weight", LINEAR),
)
TABLE = (
    *ENDS,
    *ATTENTION_AND_MLP,
    Weight("stack/blocks/attention_norm/scale", "model.layers.{layer}.input_layernorm.weight"),
    Weight("stack/blocks/mlp_norm/scale", "model.layers.{layer}.post_attention_layernorm.weight"),
)
BUFFERS = (r".*rotary_emb\.(inv_freq|cos_cached|sin_cached)",)


def sizes(kv_heads: int | None = None, head_dim: int | None = None, tied: bool = False) -> tuple:
    """The keys that LLaMA and its descendants share, with the defaults that differ by class."""
    return (
        ignored("pretraining_tp"),  # how products were split when training
        Key("num_hidden_layers", "num_layers"),
        Key("hidden_size", "hidden_size"),
        Key("intermediate_size", "intermediate_size"),
        Key("num_attention_heads", "num_heads"),
        Key("num_key_value_heads", "num_kv_heads", default=kv_heads, null=True),
        Key("head_dim", "head_dim", default=head_dim, null=True),
        Key("vocab_size", "vocab_size"),
        Key("max_position_embeddings", "max_length"),
        Key("rms_norm_eps", "norm_eps", float, 1e-6),
        Key("tie_word_embeddings", "tie_embeddings", bool, tied),
        INIT_STD,
    )


def _read_rotary(config, names, fields):
    theta, scaling = read_rope(config, 10000.0)
    return {"rope_theta": theta, "rope_scaling": scaling}


def _write_rotary(module):
    section = write_rope(module.transformer.pattern[0].rope)
    return {"rope_parameters": section, **old_keys(section)}


ROTARY = Rule(_read_rotary, _write_rotary)
"""The one rotary embedding of a module, written in both ways."""
SILU = Constant(hidden_act=("silu", "swish"))
BIASES = Key("attention_bias", ("qkv_bias", "out_bias"), bool, False)

LLAMA = Family(
    architectures=("LlamaForCausalLM", "LlamaModel"),
    model_type="llama",
    model="llama",
    table=TABLE,
    keys=(*sizes(), ROTARY, SILU, BIASES, Key("mlp_bias", "mlp_bias", bool, False)),
    prefix="model.",
    ignored=BUFFERS,
)


MISTRAL = Family(
    architectures=("MistralForCausalLM", "MistralModel"),
    model_type="mistral",
    model="llama",
    table=TABLE,
    keys=(*sizes(kv_heads=8), ROTARY, SILU, Key("sliding_window", "window", default=4096, null=True)),
    prefix="model.",
    ignored=BUFFERS,
)


def read_layers(config, window: int | None, default: list[str]) -> dict:
    """`window` and `layer_pattern` of a class with `layer_types`.

    Args:
      default: the kind of each layer where config.json does not say it.
    """
    words = {"full_attention": "global", "sliding_attention": "local"}
    types = config.get("layer_types", list, None) or default
    for word in types:
        if word not in words:
            config.refuse("layer_types", word, f"known: {', '.join(words)}")
    if len(types) != len(default):
        config.refuse("layer_types", types, f"expected one for each of {len(default)} layers")
    pattern = [words[word] for word in types]
    if "local" in pattern and window is None:
        config.refuse("sliding_window", window, "layer_types has sliding attention")
    return {"window": window if "local" in pattern else None, "layer_pattern": pattern}


def layer_types(module) -> list[str]:
    """The kind of each layer, in the words of `layer_types`."""
    return ["full_attention" if window is None else "sliding_attention" for window in module.transformer.windows]


def _read_windows(config, names, fields):
    window = config.get("sliding_window", int, 4096, null=True)
    window = window if config.get("use_sliding_window", bool, False) else None
    first = config.get("max_window_layers", int, 28)
    local = [window is not None and layer >= first for layer in range(fields["num_layers"])]
    return read_layers(config, window, ["sliding_attention" if one else "full_attention" for one in local])


def _write_windows(module):
    types = layer_types(module)
    return {
        "layer_types": types,
        "use_sliding_window": module.window is not None,
        "sliding_window": module.window,
        "max_window_layers": next((i for i, t in enumerate(types) if t != "full_attention"), module.num_layers),
    }


WINDOWS = Rule(_read_windows, _write_windows)
"""Windows as Qwen 2 and 3 write them."""

QWEN2 = Family(
    architectures=("Qwen2ForCausalLM", "Qwen2Model"),
    model_type="qwen2",
    model="llama",
    table=TABLE,
    keys=(*sizes(kv_heads=32), ROTARY, SILU, WINDOWS, always(qkv_bias=True)),
    prefix="model.",
    ignored=BUFFERS,
)

FAMILIES = (LLAMA, MISTRAL, QWEN2)
