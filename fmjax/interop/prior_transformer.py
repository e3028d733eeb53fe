"""DALL-E 2's prior as diffusers publishes it (`PriorTransformer`), in the shape of the paper: text told by states and a
vector, the answer read off a token of its own."""

from fmjax.interop.config_keys import Constant, Key, Rule, always
from fmjax.interop.family import Family
from fmjax.interop.weights import ROW, Layout, Weight, linear, norm
from fmjax.models.prior_transformer import ADDED

BLOCK = "transformer_blocks.{layer}"
TOKEN = Layout(lambda shape: (1, 1, *shape), lambda x: x[0, 0])

TABLE = (
    *linear("time/inner", "time_embedding.linear_1"),
    *linear("time/outer", "time_embedding.linear_2"),
    *linear("embedding", "proj_in"),
    *linear("vector_embedding", "embedding_proj"),
    *linear("text_embedding", "encoder_hidden_states_proj"),
    Weight("position_embedding/embedding", "positional_embedding", ROW),
    Weight("answer", "prd_embedding", TOKEN),
    *norm("stack/blocks/attention_norm", f"{BLOCK}.norm1"),
    *linear("stack/blocks/attention/query", f"{BLOCK}.attn1.to_q"),
    *linear("stack/blocks/attention/key", f"{BLOCK}.attn1.to_k"),
    *linear("stack/blocks/attention/value", f"{BLOCK}.attn1.to_v"),
    *linear("stack/blocks/attention/out", f"{BLOCK}.attn1.to_out.0"),
    *norm("stack/blocks/mlp_norm", f"{BLOCK}.norm3"),
    *linear("stack/blocks/mlp/up", f"{BLOCK}.ff.net.0.proj"),
    *linear("stack/blocks/mlp/down", f"{BLOCK}.ff.net.2"),
    *norm("stack/final_norm", "norm_out"),
    *linear("head", "proj_to_clip_embeddings"),
    Weight("embedding_mean", "clip_mean", ROW),
    Weight("embedding_std", "clip_std", ROW),
)


def _read_heads(config, names, fields):
    heads, width = config.get("num_attention_heads", int, 32), config.get("attention_head_dim", int, 64)
    return {"num_heads": heads, "hidden_size": heads * width}


def _write_heads(module):
    return {"num_attention_heads": module.num_heads, "attention_head_dim": module.hidden_size // module.num_heads}


def _read_widths(config, names, fields):
    width, inner = fields["embedding_size"], fields["hidden_size"]
    config.fixed(embedding_proj_dim=(None, width), clip_embed_dim=(None, width), time_embed_dim=(None, inner))
    return {}


PRIOR = Family(
    architectures=("PriorTransformer",),
    model_type="",
    model="prior_transformer",
    table=TABLE,
    keys=(
        Rule(_read_heads, _write_heads),
        Key("num_layers", "num_layers", default=20),
        Key("embedding_dim", "embedding_size", default=768),
        Key("num_embeddings", "max_length", default=77),
        Key("dropout", "dropout", float, 0.0),
        Rule(_read_widths, lambda module: dict.fromkeys(("embedding_proj_dim", "clip_embed_dim", "time_embed_dim"))),
        Constant(additional_embeddings=ADDED, added_emb_type="prd", encoder_hid_proj_type="linear"),
        Constant(time_embed_act_fn="silu", norm_in_type=None, embedding_proj_norm_type=None),
        always(intermediate_size=None, norm_eps=1e-5),
    ),
)

FAMILIES = (PRIOR,)
