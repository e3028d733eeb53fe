"""BERT and RoBERTa, with their masked-language-model heads or, for embeddings of texts, without one."""

from fmjax.interop.config_keys import INIT_STD, Expected, Key, Rule, always
from fmjax.interop.family import Family
from fmjax.interop.weights import Weight, linear, norm

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}


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


KEYS = (
    Expected(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False, tie_word_embeddings=True),
    Key("num_hidden_layers", "num_layers", default=12),
    Key("hidden_size", "hidden_size", default=768),
    Key("intermediate_size", "intermediate_size", default=3072),
    Key("num_attention_heads", "num_heads", default=12),
    Key("vocab_size", "vocab_size"),
    Key("hidden_act", "activation", default="gelu", words=ACTIVATIONS),
    Key("type_vocab_size", "num_token_types", default=2),
    Key("hidden_dropout_prob", "dropout", float, 0.1),
    Key("attention_probs_dropout_prob", "attention_dropout", float, 0.1),
    Key("layer_norm_eps", "norm_eps", float, 1e-12),
    INIT_STD,
)
HEADLESS = always(masked_lm_head=False, next_sentence=False)
"""Of a class without a head. Its pooler is not used either."""


def _bert(architecture: str, heads: Rule, table=BERT_TABLE) -> Family:
    return Family(
        architectures=(architecture,),
        model_type="bert",
        model="bert",
        table=table,
        keys=(*KEYS, Key("max_position_embeddings", "max_length", default=512), heads),
        prefix="bert.",
        ignored=IGNORED,
        renamed=OLD_NORMS,
    )


BERT = _bert(
    "BertForMaskedLM", Rule(lambda config, names, fields: {"next_sentence": "cls.seq_relationship.weight" in names})
)
BERT_PRETRAINING = _bert("BertForPreTraining", always(next_sentence=True))
BERT_HEADLESS = _bert("BertModel", HEADLESS, _encoder("bert", "cls.predictions.decoder.weight"))


def _read_positions(config, names, fields):
    # Positions are counted from the row after that of the padding token.
    offset = config.get("pad_token_id", int, 1) + 1
    return {"position_offset": offset, "max_length": config.get("max_position_embeddings", int, 512) - offset}


def _write_positions(module):
    offset = module.position_offset
    return {"pad_token_id": offset - 1, "max_position_embeddings": module.max_length + offset}


def _roberta(architecture: str, heads: Rule, table=ROBERTA_TABLE) -> Family:
    return Family(
        architectures=(architecture,),
        model_type="roberta",
        model="roberta",
        table=table,
        keys=(
            Expected(hidden_act="gelu"),  # the class's output head knows no other
            *KEYS,
            Rule(_read_positions, _write_positions),
            heads,
        ),
        prefix="roberta.",
        ignored=IGNORED,
        renamed=OLD_NORMS,
    )


ROBERTA = _roberta("RobertaForMaskedLM", always(next_sentence=False))
ROBERTA_HEADLESS = _roberta("RobertaModel", HEADLESS, _encoder("roberta", "lm_head.decoder.weight"))

FAMILIES = (BERT, BERT_PRETRAINING, BERT_HEADLESS, ROBERTA, ROBERTA_HEADLESS)
