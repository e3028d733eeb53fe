"""LLaMA 1 to 3, Mistral, and Qwen 2, which differ in biases, windows and defaults."""

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
SILU = ("silu", "swish")
BUFFERS = (r".*rotary_emb\.(inv_freq|cos_cached|sin_cached)",)


def read_sizes(config, *, kv_heads=None, head_dim=None, tied=False):
    """The keys that LLaMA and its descendants share, with the defaults that differ by class."""
    config.raw("pretraining_tp")  # how products were split when training; not what they are
    return {
        "num_layers": config.get("num_hidden_layers", int),
        "hidden_size": config.get("hidden_size", int),
        "intermediate_size": config.get("intermediate_size", int),
        "num_heads": config.get("num_attention_heads", int),
        "num_kv_heads": config.get("num_key_value_heads", int, kv_heads, null=True),
        "head_dim": config.get("head_dim", int, head_dim, null=True),
        "vocab_size": config.get("vocab_size", int),
        "max_length": config.get("max_position_embeddings", int),
        "norm_eps": config.get("rms_norm_eps", float, 1e-6),
        "tie_embeddings": config.get("tie_word_embeddings", bool, tied),
        "init_std": config.raw("initializer_range") or 0.02,
    }


def write_sizes(module):
    """The keys that LLaMA and its descendants share."""
    stack = module.transformer
    return {
        "num_hidden_layers": module.num_layers,
        "hidden_size": module.hidden_size,
        "intermediate_size": stack.intermediate_size,
        "num_attention_heads": stack.num_heads,
        "num_key_value_heads": stack.num_kv_heads,
        "head_dim": stack.head_dim,
        "vocab_size": module.vocab_size,
        "max_position_embeddings": module.max_length,
        "rms_norm_eps": module.norm_eps,
        "tie_word_embeddings": module.tie_embeddings,
        "initializer_range": module.init_std,
    }


def read_rotary(config):
    """`rope_theta` and `rope_scaling`."""
    theta, scaling = read_rope(config, 10000.0)
    return {"rope_theta": theta, "rope_scaling": scaling}


def write_rotary(module):
    """The one rotary embedding of a module, in both ways of writing it."""
    section = write_rope(module.transformer.pattern[0].rope)
    return {"rope_parameters": section, **old_keys(section)}


def _read_llama(config, names):
    config.fixed(hidden_act=SILU)
    bias = config.get("attention_bias", bool, False)
    biases = {"qkv_bias": bias, "out_bias": bias, "mlp_bias": config.get("mlp_bias", bool, False)}
    return read_sizes(config) | read_rotary(config) | biases


def _write_llama(module):
    biases = {"attention_bias": module.qkv_bias, "mlp_bias": module.mlp_bias}
    return write_sizes(module) | write_rotary(module) | biases | {"hidden_act": "silu"}


LLAMA = Family(
    architectures=("LlamaForCausalLM", "LlamaModel"),
    model_type="llama",
    model="llama",
    table=TABLE,
    read=_read_llama,
    write=_write_llama,
    prefix="model.",
    ignored=BUFFERS,
)


def _read_mistral(config, names):
    config.fixed(hidden_act=SILU)
    window = config.get("sliding_window", int, 4096, null=True)
    return read_sizes(config, kv_heads=8) | read_rotary(config) | {"window": window}


def _write_mistral(module):
    return write_sizes(module) | write_rotary(module) | {"hidden_act": "silu", "sliding_window": module.window}


MISTRAL = Family(
    architectures=("MistralForCausalLM", "MistralModel"),
    model_type="mistral",
    model="llama",
    table=TABLE,
    read=_read_mistral,
    write=_write_mistral,
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


def write_windows(module) -> dict:
    """Windows as Qwen 2 and 3 write them."""
    types = ["full_attention" if window is None else "sliding_attention" for window in module.transformer.windows]
    return {
        "layer_types": types,
        "use_sliding_window": module.window is not None,
        "sliding_window": module.window,
        "max_window_layers": next((i for i, t in enumerate(types) if t != "full_attention"), module.num_layers),
    }


def read_windows(config, num_layers: int) -> dict:
    """Windows as Qwen 2 and 3 write them."""
    window = config.get("sliding_window", int, 4096, null=True)
    window = window if config.get("use_sliding_window", bool, False) else None
    first = config.get("max_window_layers", int, 28)
    local = [window is not None and layer >= first for layer in range(num_layers)]
    return read_layers(config, window, ["sliding_attention" if one else "full_attention" for one in local])


def _read_qwen2(config, names):
    config.fixed(hidden_act=SILU)
    sizes = read_sizes(config, kv_heads=32)
    return sizes | read_rotary(config) | read_windows(config, sizes["num_layers"]) | {"qkv_bias": True}


def _write_qwen2(module):
    return write_sizes(module) | write_rotary(module) | write_windows(module) | {"hidden_act": "silu"}


QWEN2 = Family(
    architectures=("Qwen2ForCausalLM", "Qwen2Model"),
    model_type="qwen2",
    model="llama",
    table=TABLE,
    read=_read_qwen2,
    write=_write_qwen2,
    prefix="model.",
    ignored=BUFFERS,
)

FAMILIES = (LLAMA, MISTRAL, QWEN2)
