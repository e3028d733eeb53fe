"""A family's fields as the configuration of its stack: what families share stands here, what differs in their files."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.layers.dense import Init
from fmjax.layers.transformer_config import TransformerConfig

LAYER_NORM = dict(norm="layernorm", out_bias=True, mlp_bias=True)
"""Of the families before LLaMA: LayerNorm, and biases on every product."""


class Stacked(nn.Module):
    """Base of the families with a Transformer stack: `transformer` says which; the fields, how it is computed.

    Attributes:
      dtype, remat, attention, unroll, scan_layers: as in TransformerConfig.
    """

    RESUME_FREE = ("remat", "attention", "unroll")  # the same function, computed in another way

    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"
    unroll: int = 1
    scan_layers: bool = True

    def __post_init__(self):
        super().__post_init__()
        self.transformer  # checks what it is made of

    @property
    def transformer(self) -> TransformerConfig:
        raise NotImplementedError


class TextStack(Stacked):
    """Base of the families of texts, which have the fields vocab_size and max_length."""

    def __post_init__(self):
        super().__post_init__()
        if self.max_length is not None:  # of a family whose data tell it
            check_positive(max_length=self.max_length)

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name, as small as it can be: enough to know the parameters."""
        return {"tokens": jax.ShapeDtypeStruct((1, 1), jnp.int32)}


def stack_config(module, **own) -> TransformerConfig:
    """The fields of a family that TransformerConfig has too, and `own`, in which the family differs.

    By themselves `norm_eps` is the norm's epsilon, an `intermediate_size` of None is 4 * hidden_size, a `num_kv_heads`
    num_heads, a `head_dim` hidden_size / num_heads; `dropout` is attention's too, and kernels are normal with standard
    deviation `init_std`.

    Raises ConfigError for a value that is not possible.
    """
    fields = {f.name: getattr(module, f.name) for f in dataclasses.fields(module)}
    init = Init(scale=fields.get("init_std", 0.02))
    rules = {
        "head_dim": resolved_head_dim(module.hidden_size, module.num_heads, fields.get("head_dim")),
        "intermediate_size": 4 * module.hidden_size,
        "num_kv_heads": module.num_heads,
        "norm_epsilon": fields.get("norm_eps"),
        "attention_dropout": module.dropout,
        **dict.fromkeys(("qk_init", "value_init", "residual_init"), init),
    }
    known = {f.name for f in dataclasses.fields(TransformerConfig)}
    given = {name: v for name, v in fields.items() if name in known and not (v is None and name in rules)}
    return TransformerConfig(**{**rules, **given, **own})


def resolved_head_dim(hidden_size: int, num_heads: int, head_dim: int | None) -> int:
    """head_dim, or hidden_size / num_heads where it is None. Raises ConfigError when that is not a whole number."""
    check_positive(hidden_size=hidden_size, num_heads=num_heads)
    if head_dim is not None:
        return head_dim
    if hidden_size % num_heads:
        raise ConfigError(
            f"hidden_size={hidden_size} is not a multiple of num_heads={num_heads}; change one of them or set head_dim."
        )
    return hidden_size // num_heads


def check_tokens(module, tokens) -> None:
    """Raises ConfigError for tokens that are not [B, T], or a module whose vocabulary is not known yet."""
    if tokens.ndim != 2:
        raise ConfigError(f"tokens must be [batch, length], got shape {tokens.shape}.")
    if module.vocab_size is None:
        name = type(module).__name__
        raise ConfigError(f"{name}.vocab_size is not set; set it or take it from the data's tokenizer.")
