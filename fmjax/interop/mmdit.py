"""The joint-attention Diffusion Transformer as diffusers publishes it: `SD3Transformer2DModel`, Stable Diffusion 3's.

Files hold the queries of the last block's text, which nothing reads: they are parameters here too. Blocks that attend
to the image twice (`dual_attention_layers`, Stable Diffusion 3.5 medium) are not known.
"""

import numpy as np

from fmjax.errors import ConfigError
from fmjax.interop.config_keys import Constant, Key, Rule, always
from fmjax.interop.family import Family
from fmjax.interop.weights import Fixed, Weight, conv, linear, patches
from fmjax.layers.image_positions import centred_sinusoids


def _streams(path: str) -> tuple[Weight, ...]:
    """One block's lines, at `path`."""
    name = "transformer_blocks.{layer}"
    pairs = {
        "modulation/linear": "norm1.linear", "text_modulation/linear": "norm1_context.linear",
        "attention/query": "attn.to_q", "attention/key": "attn.to_k", "attention/value": "attn.to_v",
        "attention/text_query": "attn.add_q_proj", "attention/text_key": "attn.add_k_proj",
        "attention/text_value": "attn.add_v_proj", "attention/out": "attn.to_out.0",
        "attention/text_out": "attn.to_add_out", "mlp/up": "ff.net.0.proj", "mlp/down": "ff.net.2",
        "text_mlp/up": "ff_context.net.0.proj", "text_mlp/down": "ff_context.net.2",
    }  # fmt: skip
    norms = {"q_norm": "norm_q", "k_norm": "norm_k", "text_q_norm": "norm_added_q", "text_k_norm": "norm_added_k"}
    return (
        *(line for ours, theirs in pairs.items() for line in linear(f"{path}/{ours}", f"{name}.{theirs}")),
        *(Weight(f"{path}/attention/{ours}/scale", f"{name}.attn.{theirs}.weight") for ours, theirs in norms.items()),
    )


TABLE = (
    *conv("patch_embedding", "pos_embed.proj", lambda module: patches(module.patch_size)),
    *linear("time/inner", "time_text_embed.timestep_embedder.linear_1"),
    *linear("time/outer", "time_text_embed.timestep_embedder.linear_2"),
    *linear("vector_inner", "time_text_embed.text_embedder.linear_1"),
    *linear("vector_outer", "time_text_embed.text_embedder.linear_2"),
    *linear("text_embedding", "context_embedder"),
    *_streams("stack/blocks"),
    *_streams("stack/last_{layer}"),
    *linear("final_modulation/linear", "norm_out.linear"),
    *linear("head", "proj_out"),
)


def _read_heads(config, names, fields):
    heads, width = config.get("num_attention_heads", int, 18), config.get("attention_head_dim", int, 64)
    projected = config.get("caption_projection_dim", int, 1152)
    if projected != heads * width:
        config.refuse("caption_projection_dim", projected, f"{heads} heads of {width} are {heads * width} wide")
    return {"num_heads": heads, "hidden_size": heads * width}


def _write_heads(module):
    width = module.hidden_size
    return {
        "num_attention_heads": module.num_heads, "attention_head_dim": width // module.num_heads,
        "caption_projection_dim": width,
    }  # fmt: skip


def _read_outputs(config, names, fields):
    outputs = config.get("out_channels", int, 16, null=True)
    return {"out_channels": None if outputs == fields["num_channels"] else outputs}


def _read_vector(config, names, fields):
    return {"vector_size": config.get("pooled_projection_dim", int, 2048)}


def _write_vector(module):
    if not module.vector_size:
        raise ConfigError("it has no model without a vector of the text (vector_size = 0)")
    return {"pooled_projection_dim": module.vector_size}


def _read_norm(config, names, fields):
    config.fixed(qk_norm=(None, "rms_norm"))
    return {"qk_norm": config.raw("qk_norm") is not None}


def _positions(module) -> np.ndarray | None:
    """[1, N, D] of the whole grid; None where files have none."""
    grid = module.position_grid
    if grid is None:
        return None
    base = module.image_size // module.patch_size
    return np.asarray(centred_sinusoids(grid, grid, module.hidden_size, grid, base))[None]


MMDIT = Family(
    architectures=("SD3Transformer2DModel",),
    model_type="",
    model="mmdit",
    table=TABLE,
    keys=(
        Rule(_read_heads, _write_heads),
        Key("num_layers", "num_layers", default=18),
        Key("in_channels", "num_channels", default=16),
        Rule(_read_outputs, lambda module: {"out_channels": module.out_channels or module.num_channels}),
        Key("sample_size", "image_size", default=128),
        Key("patch_size", "patch_size", default=2),
        Key("joint_attention_dim", "memory_size", default=4096),
        Rule(_read_vector, _write_vector),
        Key("pos_embed_max_size", "position_grid", default=96, null=True),
        Rule(_read_norm, lambda module: {"qk_norm": "rms_norm" if module.qk_norm else None}),
        Constant(dual_attention_layers=[]),
        always(intermediate_size=None, dropout=0.0),
    ),
    fixed=(Fixed("pos_embed.pos_embed", _positions),),
)

FAMILIES = (MMDIT,)
