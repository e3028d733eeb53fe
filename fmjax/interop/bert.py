"""BERT and RoBERTa, with their masked-language-model heads or, for embeddings of texts, without one."""

from fmjax.interop.family import Family, published_word
from fmjax.interop.weights import Weight, linear, norm

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}
PUBLISHED_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}


def _encoder(root: str, tied: str) -> tuple[Weight, ...]:
    layer = f"{root}.encoder.layer.{{layer}}"
    return (
        Weight("token_embedding/embedding", f"{root}.embeddings.word_embeddings.weight", repeats=(tied,)),
        Weight("position_embedding/embedding", f"{root}.embeddings.position_embeddings.weight"),
        Weight("type_embedding/embedding", f"{root}.embeddings.token_type_embeddings.weight"),
        *norm("embedding_norm", f"{root}.embeddings.LayerNorm"),
        *linear("stack/blocks/attention/query", f"{layer}.attention.self.query"),
        *linear("stack/blocks/attention/key", f"{layer}.attention.self.key"),
        *linear("stack/blocks/attention/value", f"{layer}.attention.self.value"),
        *linear("stack/blocks/attention/out", f"{layer}.attention.output.dense"),
        *norm("stack/blocks/attention_norm", f"{layer}.attention.output.LayerNorm"),
        *linear("stack/blocks/mlp/up", f"{layer}.intermediate.dense"),
        *linear("stack/blocks/mlp/down", f"{layer}.output.dense"),
        *norm("stack/blocks/mlp_norm", f"{layer}.output.LayerNorm"),
        *linear("pooler", f"{root}.pooler.dense"),
    )


BERT_TABLE = (
    *_encoder("bert", "cls.predictions.decoder.weight"),
    *linear("head_transform", "cls.predictions.transform.dense"),
    *norm("head_norm", "cls.predictions.transform.LayerNorm"),
    Weight("head_bias", "cls.predictions.bias", repeats=("cls.predictions.decoder.bias",)),
    *linear("next_sentence_head", "cls.seq_relationship"),
)
ROBERTA_TABLE = (
    *_encoder("roberta", "lm_head.decoder.weight"),
    *linear("head_transform", "lm_head.dense"),
    *norm("head_norm", "lm_head.layer_norm"),
    Weight("head_bias", "lm_head.bias", repeats=("lm_head.decoder.bias",)),
)
OLD_NORMS = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
# A pooler without a next-sentence head is not used.
IGNORED = (r"embeddings\.position_ids", r"pooler\.dense\.(weight|bias)")


def _read(config, max_length, norm_eps):
    config.fixed(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    config.fixed(tie_word_embeddings=True)
    return {
        "num_layers": config.get("num_hidden_layers", int, 12),
        "hidden_size": config.get("hidden_size", int, 768),
        "intermediate_size": config.get("intermediate_size", int, 3072),
        "num_heads": config.get("num_attention_heads", int, 12),
        "vocab_size": config.get("vocab_size", int),
        "max_length": max_length,
        "num_token_types": config.get("type_vocab_size", int, 2),
        "dropout": config.get("hidden_dropout_prob", float, 0.1),
        "attention_dropout": config.get("attention_probs_dropout_prob", float, 0.1),
        "norm_eps": config.get("layer_norm_eps", float, norm_eps),
        "init_std": config.raw("initializer_range") or 0.02,
    }


def _write(module):
    return {
        "num_hidden_layers": module.num_layers,
        "hidden_size": module.hidden_size,
        "intermediate_size": module.transformer.intermediate_size,
        "num_attention_heads": module.num_heads,
        "vocab_size": module.vocab_size,
        "max_position_embeddings": module.max_length + module.position_offset,
        "type_vocab_size": module.num_token_types,
        "hidden_act": published_word("activation", module.activation, PUBLISHED_ACTIVATIONS),
        "hidden_dropout_prob": module.dropout,
        "attention_probs_dropout_prob": module.attention_dropout,
        "layer_norm_eps": module.norm_eps,
        "initializer_range": module.init_std,
    }


def _read_bert(config, names):
    return _read(config, config.get("max_position_embeddings", int, 512), 1e-12) | {
        "activation": config.choice("hidden_act", ACTIVATIONS, "gelu"),
        "next_sentence": "cls.seq_relationship.weight" in names,
    }


def _headless(read):
    """`read` for the class without a head. Its pooler is not used either."""
    return lambda config, names: read(config, names) | {"masked_lm_head": False, "next_sentence": False}


def _bert(architecture: str, read, table=BERT_TABLE) -> Family:
    return Family(
        architectures=(architecture,),
        model_type="bert",
        model="bert",
        table=table,
        read=read,
        write=_write,
        prefix="bert.",
        ignored=IGNORED,
        renamed=OLD_NORMS,
    )


BERT = _bert("BertForMaskedLM", _read_bert)
BERT_PRETRAINING = _bert(
    "BertForPreTraining", lambda config, names: _read_bert(config, names) | {"next_sentence": True}
)
BERT_HEADLESS = _bert("BertModel", _headless(_read_bert), _encoder("bert", "cls.predictions.decoder.weight"))


def _read_roberta(config, names):
    config.fixed(hidden_act="gelu")  # the class's output head knows no other
    # Positions are counted from the row after that of the padding token.
    offset = config.get("pad_token_id", int, 1) + 1
    max_length = config.get("max_position_embeddings", int, 512) - offset
    return _read(config, max_length, 1e-12) | {"position_offset": offset, "activation": "gelu", "next_sentence": False}


def _roberta(architecture: str, read, table=ROBERTA_TABLE) -> Family:
    return Family(
        architectures=(architecture,),
        model_type="roberta",
        model="roberta",
        table=table,
        read=read,
        write=lambda module: _write(module) | {"pad_token_id": module.position_offset - 1},
        prefix="roberta.",
        ignored=IGNORED,
        renamed=OLD_NORMS,
    )


ROBERTA = _roberta("RobertaForMaskedLM", _read_roberta)
ROBERTA_HEADLESS = _roberta("RobertaModel", _headless(_read_roberta), _encoder("roberta", "lm_head.decoder.weight"))

FAMILIES = (BERT, BERT_PRETRAINING, BERT_HEADLESS, ROBERTA, ROBERTA_HEADLESS)
