"""Marian, the translation models that follow the Transformer of 2017."""

from fmjax.interop.family import Family, published_word
from fmjax.interop.weights import ROW, Weight, linear, norm


def _attention(path: str, name: str) -> tuple[Weight, ...]:
    return (
        *linear(f"{path}/query", f"{name}.q_proj"),
        *linear(f"{path}/key", f"{name}.k_proj"),
        *linear(f"{path}/value", f"{name}.v_proj"),
        *linear(f"{path}/out", f"{name}.out_proj"),
    )


def _stack(path: str, name: str) -> tuple[Weight, ...]:
    return (
        *_attention(f"{path}/attention", f"{name}.self_attn"),
        *norm(f"{path}/attention_norm", f"{name}.self_attn_layer_norm"),
        *linear(f"{path}/mlp/up", f"{name}.fc1"),
        *linear(f"{path}/mlp/down", f"{name}.fc2"),
        *norm(f"{path}/mlp_norm", f"{name}.final_layer_norm"),
    )


TABLE = (
    Weight(
        "token_embedding/embedding",
        "model.shared.weight",
        repeats=("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"),
    ),
    Weight("head_bias", "final_logits_bias", ROW),
    *_stack("encoder/blocks", "model.encoder.layers.{layer}"),
    *_stack("decoder/blocks", "model.decoder.layers.{layer}"),
    *_attention("decoder/blocks/cross_attention", "model.decoder.layers.{layer}.encoder_attn"),
    *norm("decoder/blocks/cross_norm", "model.decoder.layers.{layer}.encoder_attn_layer_norm"),
)
ACTIVATIONS = {"swish": "silu", "silu": "silu", "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh"}
PUBLISHED_ACTIVATIONS = {"silu": "swish", "relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new"}


def _read(config, names):
    heads = config.get("encoder_attention_heads", int, 16)
    width = config.get("encoder_ffn_dim", int, 4096)
    vocab_size = config.get("vocab_size", int, 58101)
    config.fixed(decoder_attention_heads=heads, decoder_ffn_dim=width, decoder_vocab_size=(None, vocab_size))
    config.fixed(share_encoder_decoder_embeddings=True, tie_word_embeddings=True)
    config.fixed(normalize_before=False, normalize_embedding=False, add_final_layer_norm=False)
    config.fixed(static_position_embeddings=True, scale_embedding=True)
    if "scale_embedding" not in config:
        config.refuse("scale_embedding", False, "supported: True")
    for key in ("add_bias_logits", "extra_pos_embeddings", "num_hidden_layers"):
        config.raw(key)
    return {
        "num_layers": config.get("encoder_layers", int, 12),
        "num_decoder_layers": config.get("decoder_layers", int, 12),
        "hidden_size": config.get("d_model", int, 1024),
        "intermediate_size": width,
        "num_heads": heads,
        "vocab_size": vocab_size,
        "max_length": config.get("max_position_embeddings", int, 1024),
        "activation": config.choice("activation_function", ACTIVATIONS, "gelu"),
        "interleaved_positions": False,
        "use_head_bias": not names or "final_logits_bias" in names,
        "start_id": config.get("decoder_start_token_id", int, 58100),
        "dropout": config.get("dropout", float, 0.1),
        "attention_dropout": config.get("attention_dropout", float, 0.0),
    }


def _write(module):
    encoder, decoder = module.stack_config(decoder=False), module.stack_config(decoder=True)
    return {
        "encoder_layers": encoder.num_layers,
        "decoder_layers": decoder.num_layers,
        "num_hidden_layers": encoder.num_layers,
        "d_model": module.hidden_size,
        "encoder_ffn_dim": module.intermediate_size,
        "decoder_ffn_dim": module.intermediate_size,
        "encoder_attention_heads": module.num_heads,
        "decoder_attention_heads": module.num_heads,
        "vocab_size": module.vocab_size,
        "decoder_vocab_size": module.vocab_size,
        "max_position_embeddings": module.max_length,
        "activation_function": published_word("activation", module.activation, PUBLISHED_ACTIVATIONS),
        "decoder_start_token_id": module.start_id,
        "dropout": module.dropout,
        "attention_dropout": module.attention_dropout,
        "scale_embedding": True,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
    }


MARIAN = Family(
    architectures=("MarianMTModel",),
    model_type="marian",
    model="transformer",
    table=TABLE,
    read=_read,
    write=_write,
    ignored=(r"embed_positions\.weight",),
)

FAMILIES = (MARIAN,)
