"""GPT-2, GPT (2018) and GPT-Neo, whose alternating dense and local layers are those of GPT-3."""

from fmjax.interop.family import Family, published_word
from fmjax.interop.weights import SAME, Weight, linear, norm, part

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}
PUBLISHED_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu", "silu": "silu"}


def _conv1d_blocks(root: str) -> tuple[Weight, ...]:
    """The blocks of GPT and GPT-2, whose products are stored as [in, out], query, key and value side by side."""
    return (
        *linear("stack/blocks/attention/query", f"{root}.attn.c_attn", part(0, 3)),
        *linear("stack/blocks/attention/key", f"{root}.attn.c_attn", part(1, 3)),
        *linear("stack/blocks/attention/value", f"{root}.attn.c_attn", part(2, 3)),
        *linear("stack/blocks/attention/out", f"{root}.attn.c_proj", SAME),
        *linear("stack/blocks/mlp/up", f"{root}.mlp.c_fc", SAME),
        *linear("stack/blocks/mlp/down", f"{root}.mlp.c_proj", SAME),
        *norm("stack/blocks/attention_norm", f"{root}.ln_1"),
        *norm("stack/blocks/mlp_norm", f"{root}.ln_2"),
    )


GPT2_TABLE = (
    Weight("token_embedding/embedding", "transformer.wte.weight", repeats=("lm_head.weight",)),
    Weight("position_embedding/embedding", "transformer.wpe.weight"),
    *_conv1d_blocks("transformer.h.{layer}"),
    *norm("stack/final_norm", "transformer.ln_f"),
)


def _read_gpt2(config, names):
    config.fixed(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    config.fixed(tie_word_embeddings=True, reorder_and_upcast_attn=(False, True))  # the last is about precision
    return _sizes(config) | {
        "intermediate_size": config.get("n_inner", int, None),
        "activation": config.choice("activation_function", ACTIVATIONS, "gelu_new"),
    }


def _sizes(config):
    """The keys that GPT and GPT-2 share."""
    for key in ("n_ctx", "n_special"):
        config.raw(key)
    rates = {key: config.get(key, float, 0.1) for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    return {
        "num_layers": config.get("n_layer", int, 12),
        "hidden_size": config.get("n_embd", int, 768),
        "num_heads": config.get("n_head", int, 12),
        "vocab_size": config.get("vocab_size", int),
        "max_length": config.get("n_positions", int),
        "dropout": config.one_rate(rates),
        "norm_eps": config.get("layer_norm_epsilon", float, 1e-5),
        "init_std": config.raw("initializer_range") or 0.02,
    }


def _write_gpt2(module):
    return {
        **_write_sizes(module),
        "n_inner": module.transformer.intermediate_size,
        "activation_function": published_word("activation", module.activation, PUBLISHED_ACTIVATIONS),
        "tie_word_embeddings": True,
    }


def _write_sizes(module):
    return {
        "n_layer": module.num_layers,
        "n_embd": module.hidden_size,
        "n_head": module.num_heads,
        "vocab_size": module.vocab_size,
        "n_positions": module.max_length,
        "resid_pdrop": module.dropout,
        "embd_pdrop": module.dropout,
        "attn_pdrop": module.dropout,
        "layer_norm_epsilon": module.norm_eps,
        "initializer_range": module.init_std,
    }


GPT2 = Family(
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    model_type="gpt2",
    model="gpt",
    table=GPT2_TABLE,
    read=_read_gpt2,
    write=_write_gpt2,
    prefix="transformer.",
    ignored=(r"h\.\d+\.attn\.(bias|masked_bias)",),
)


GPT1_TABLE = (
    Weight("token_embedding/embedding", "transformer.tokens_embed.weight", repeats=("lm_head.weight",)),
    Weight("position_embedding/embedding", "transformer.positions_embed.weight"),
    *_conv1d_blocks("transformer.h.{layer}"),
)


def _read_gpt1(config, names):
    config.fixed(tie_word_embeddings=True)
    # What this class calls "gelu" is the approximation by tanh.
    activations = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu"}
    return _sizes(config) | {
        "placement": "post",
        "activation": config.choice("afn", activations, "gelu"),
        "position_init_std": 0.02,
        "scale_residual_init": False,
    }


def _write_gpt1(module):
    words = {"gelu_tanh": "gelu", "relu": "relu", "silu": "silu"}
    return _write_sizes(module) | {"afn": published_word("activation", module.activation, words)}


GPT1 = Family(
    architectures=("OpenAIGPTLMHeadModel", "OpenAIGPTModel"),
    model_type="openai-gpt",
    model="gpt",
    table=GPT1_TABLE,
    read=_read_gpt1,
    write=_write_gpt1,
    prefix="transformer.",
    ignored=(r"h\.\d+\.attn\.bias", r"position_ids"),
)


GPT_NEO_TABLE = (
    Weight("token_embedding/embedding", "transformer.wte.weight", repeats=("lm_head.weight",)),
    Weight("position_embedding/embedding", "transformer.wpe.weight"),
    *linear("stack/blocks/attention/query", "transformer.h.{layer}.attn.attention.q_proj"),
    *linear("stack/blocks/attention/key", "transformer.h.{layer}.attn.attention.k_proj"),
    *linear("stack/blocks/attention/value", "transformer.h.{layer}.attn.attention.v_proj"),
    *linear("stack/blocks/attention/out", "transformer.h.{layer}.attn.attention.out_proj"),
    *linear("stack/blocks/mlp/up", "transformer.h.{layer}.mlp.c_fc"),
    *linear("stack/blocks/mlp/down", "transformer.h.{layer}.mlp.c_proj"),
    *norm("stack/blocks/attention_norm", "transformer.h.{layer}.ln_1"),
    *norm("stack/blocks/mlp_norm", "transformer.h.{layer}.ln_2"),
    *norm("stack/final_norm", "transformer.ln_f"),
)


def _read_gpt_neo(config, names):
    config.fixed(tie_word_embeddings=True)
    num_layers = config.get("num_layers", int, 24)
    types = config.get("attention_types", list, [[["global", "local"], 12]])
    pattern = [word for words, count in types for _ in range(count) for word in words]
    if len(pattern) != num_layers or set(pattern) - {"global", "local"}:
        config.refuse("attention_types", types, f"expected 'global' or 'local' for each of {num_layers} layers")
    config.fixed(attention_layers=pattern)
    window = config.get("window_size", int, 256)
    rates = {key: config.get(key, float, 0.0) for key in ("resid_dropout", "embed_dropout", "attention_dropout")}
    return {
        "num_layers": num_layers,
        "hidden_size": config.get("hidden_size", int, 2048),
        "intermediate_size": config.get("intermediate_size", int, None),
        "num_heads": config.get("num_heads", int, 16),
        "vocab_size": config.get("vocab_size", int),
        "max_length": config.get("max_position_embeddings", int, 2048),
        "activation": config.choice("activation_function", ACTIVATIONS, "gelu_new"),
        "window": window if "local" in pattern else None,
        "layer_pattern": pattern,
        "qkv_bias": False,
        "query_scale": 1.0,
        "dropout": config.one_rate(rates),
        "norm_eps": config.get("layer_norm_epsilon", float, 1e-5),
    }


def _write_gpt_neo(module):
    kinds = ["global" if window is None else "local" for window in module.transformer.windows]
    period = next(n for n in range(1, len(kinds) + 1) if len(kinds) % n == 0 and kinds == kinds[:n] * (len(kinds) // n))
    return {
        "num_layers": module.num_layers,
        "hidden_size": module.hidden_size,
        "intermediate_size": module.transformer.intermediate_size,
        "num_heads": module.num_heads,
        "vocab_size": module.vocab_size,
        "max_position_embeddings": module.max_length,
        "activation_function": published_word("activation", module.activation, PUBLISHED_ACTIVATIONS),
        "attention_types": [[kinds[:period], len(kinds) // period]],
        "window_size": 256 if module.window is None else module.window,
        "resid_dropout": module.dropout,
        "embed_dropout": module.dropout,
        "attention_dropout": module.dropout,
        "layer_norm_epsilon": module.norm_eps,
        "initializer_range": module.init_std,
        "tie_word_embeddings": True,
    }


GPT_NEO = Family(
    architectures=("GPTNeoForCausalLM", "GPTNeoModel"),
    model_type="gpt_neo",
    model="gpt",
    table=GPT_NEO_TABLE,
    read=_read_gpt_neo,
    write=_write_gpt_neo,
    prefix="transformer.",
    ignored=(r"h\.\d+\.attn\.attention\.(bias|masked_bias)",),
)

FAMILIES = (GPT2, GPT1, GPT_NEO)
