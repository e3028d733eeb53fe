"""Marian, the translation models that follow the Transformer of 2017."""

from fmjax.interop.config_keys import Constant, Expected, Key, Rule, always, ignored
from fmjax.interop.family import Family
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


def _read_layers(config, names, fields):
    return {
        "num_layers": config.get("encoder_layers", int, 12),
        "num_decoder_layers": config.get("decoder_layers", int, 12),
    }


def _write_layers(module):
    encoder, decoder = (module.stack_config(decoder=part).num_layers for part in (False, True))
    return {"encoder_layers": encoder, "decoder_layers": decoder, "num_hidden_layers": encoder}


def _read_rest(config, names, fields):
    config.fixed(decoder_vocab_size=(None, fields["vocab_size"]))
    if "scale_embedding" not in config:
        config.refuse("scale_embedding", False, "supported: True")
    return {"use_head_bias": not names or "final_logits_bias" in names}


def _write_rest(module):
    return {"decoder_vocab_size": module.vocab_size, "is_encoder_decoder": True}


KEYS = (
    Rule(_read_layers, _write_layers),
    Key("d_model", "hidden_size", default=1024),
    Key(("encoder_ffn_dim", "decoder_ffn_dim"), "intermediate_size", default=4096),
    Key(("encoder_attention_heads", "decoder_attention_heads"), "num_heads", default=16),
    Key("vocab_size", "vocab_size", default=58101),
    Key("max_position_embeddings", "max_length", default=1024),
    Key("activation_function", "activation", default="gelu", words=ACTIVATIONS),
    Key("decoder_start_token_id", "start_id", default=58100),
    Key("dropout", "dropout", float, 0.1),
    Key("attention_dropout", "attention_dropout", float, 0.0),
    Constant(share_encoder_decoder_embeddings=True, tie_word_embeddings=True, scale_embedding=True),
    Expected(normalize_before=False, normalize_embedding=False, add_final_layer_norm=False),
    Expected(static_position_embeddings=True),
    Rule(_read_rest, _write_rest),
    ignored("add_bias_logits", "extra_pos_embeddings", "num_hidden_layers"),
    always(interleaved_positions=False),
)

MARIAN = Family(
    architectures=("MarianMTModel",),
    model_type="marian",
    model="transformer",
    table=TABLE,
    keys=KEYS,
    ignored=(r"embed_positions\.weight",),
)

FAMILIES = (MARIAN,)
