"""GPT-2, GPT (2018) and GPT-Neo, whose alternating dense and local layers are those of GPT-3."""

from fmjax.interop.config_keys import INIT_STD, Constant, Expected, Key, Rates, Rule, always, ignored
from fmjax.interop.family import Family
from fmjax.interop.weights import SAME, Weight, linear, norm, part

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}


def conv1d_blocks(root: str) -> tuple[Weight, ...]:
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
    *conv1d_blocks("transformer.h.{layer}"),
    *norm("stack/final_norm", "transformer.ln_f"),
)


SIZES = (
    ignored("n_ctx", "n_special"),
    Key("n_layer", "num_layers", default=12),
    Key("n_embd", "hidden_size", default=768),
    Key("n_head", "num_heads", default=12),
    Key("vocab_size", "vocab_size"),
    Key("n_positions", "max_length"),
    Rates(("resid_pdrop", "embd_pdrop", "attn_pdrop"), "dropout", 0.1),
    Key("layer_norm_epsilon", "norm_eps", float, 1e-5),
    INIT_STD,
)
GPT2_KEYS = (
    *SIZES,
    Key("n_inner", "intermediate_size", default=None),
    Key("activation_function", "activation", default="gelu_new", words=ACTIVATIONS),
    Constant(tie_word_embeddings=True),
    Expected(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False),
    Expected(reorder_and_upcast_attn=(False, True)),  # about precision
)

GPT2 = Family(
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    model_type="gpt2",
    model="gpt",
    table=GPT2_TABLE,
    keys=GPT2_KEYS,
    prefix="transformer.",
    ignored=(r"h\.\d+\.attn\.(bias|masked_bias)",),
)


GPT1_TABLE = (
    Weight("token_embedding/embedding", "transformer.tokens_embed.weight", repeats=("lm_head.weight",)),
    Weight("position_embedding/embedding", "transformer.positions_embed.weight"),
    *conv1d_blocks("transformer.h.{layer}"),
)


GPT1_KEYS = (
    *SIZES,
    # What this class calls "gelu" is the approximation by tanh.
    Key("afn", "activation", default="gelu", words={"gelu": "gelu_tanh", "relu": "relu", "silu": "silu"}),
    Expected(tie_word_embeddings=True),
    always(placement="post", position_init_std=0.02, scale_residual_init=False),
)

GPT1 = Family(
    architectures=("OpenAIGPTLMHeadModel", "OpenAIGPTModel"),
    model_type="openai-gpt",
    model="gpt",
    table=GPT1_TABLE,
    keys=GPT1_KEYS,
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


def _read_layers(config, names, fields):
    num_layers = fields["num_layers"]
    types = config.get("attention_types", list, [[["global", "local"], 12]])
    pattern = [word for words, count in types for _ in range(count) for word in words]
    if len(pattern) != num_layers or set(pattern) - {"global", "local"}:
        config.refuse("attention_types", types, f"expected 'global' or 'local' for each of {num_layers} layers")
    config.fixed(attention_layers=pattern)
    window = config.get("window_size", int, 256)
    return {"window": window if "local" in pattern else None, "layer_pattern": pattern}


def _write_layers(module):
    kinds = ["global" if window is None else "local" for window in module.transformer.windows]
    period = next(n for n in range(1, len(kinds) + 1) if len(kinds) % n == 0 and kinds == kinds[:n] * (len(kinds) // n))
    return {
        "attention_types": [[kinds[:period], len(kinds) // period]],
        "window_size": 256 if module.window is None else module.window,
    }


GPT_NEO_KEYS = (
    Key("num_layers", "num_layers", default=24),
    Key("hidden_size", "hidden_size", default=2048),
    Key("intermediate_size", "intermediate_size", default=None),
    Key("num_heads", "num_heads", default=16),
    Key("vocab_size", "vocab_size"),
    Key("max_position_embeddings", "max_length", default=2048),
    Key("activation_function", "activation", default="gelu_new", words=ACTIVATIONS),
    Rule(_read_layers, _write_layers),
    Rates(("resid_dropout", "embed_dropout", "attention_dropout"), "dropout", 0.0),
    Key("layer_norm_epsilon", "norm_eps", float, 1e-5),
    INIT_STD,
    Constant(tie_word_embeddings=True),
    always(qkv_bias=False, query_scale=1.0),
)

GPT_NEO = Family(
    architectures=("GPTNeoForCausalLM", "GPTNeoModel"),
    model_type="gpt_neo",
    model="gpt",
    table=GPT_NEO_TABLE,
    keys=GPT_NEO_KEYS,
    prefix="transformer.",
    ignored=(r"h\.\d+\.attn\.attention\.(bias|masked_bias)",),
)

FAMILIES = (GPT2, GPT1, GPT_NEO)
