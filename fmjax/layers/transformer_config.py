"""What a Transformer stack is made of: its shape, the kinds of its layers, what its backward pass recomputes."""

import dataclasses
from typing import Any

import jax

from fmjax.errors import ConfigError
from fmjax.layers.attention import BACKENDS
from fmjax.layers.checks import COMPUTE_DTYPES, check_choice, check_positive, check_rate
from fmjax.layers.dense import Init, product_p
from fmjax.layers.mlp import ACTIVATIONS
from fmjax.layers.norm import NORMS
from fmjax.layers.position import Rope

PLACEMENTS = ("pre", "post", "sandwich", "sub", "normed", "adaln")
REMAT_POLICIES = ("none", "full", "dots", "save_named:NAME,NAME,...")
# Activations inside a block that may be saved by name. Each is a tap.
BLOCK_TAPS = (
    "attention_in", "q", "k", "v", "attention_heads", "attention_out",
    "mlp_in", "mlp_gate", "mlp_up", "mlp_hidden", "mlp_out", "residual",
)  # fmt: skip
# What may be saved by name: the taps, and what the backward pass of a fused attention kernel reads of the forward pass.
SAVED_NAMES = (*BLOCK_TAPS, "attention_residuals")


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What may differ from layer to layer: the attention window, the rotary embedding (None for none), and another mask
    (as for `fmjax.layers.attention.attention`)."""

    window: int | None = None
    rope: Rope | None = None
    mask: Any = None


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape and composition of a stack. A model family is one way to fill this in.

    Attributes:
      num_layers: blocks, each of attention and an MLP.
      hidden_size: width of what goes from block to block.
      intermediate_size: width inside the MLP.
      num_heads: heads of queries.
      num_kv_heads: heads of keys and values, a divisor of num_heads: each serves num_heads / num_kv_heads of queries.
      head_dim: width of a head.
      pattern: kinds of the layers, repeated over the stack.
      norm, norm_epsilon: a kind of `fmjax.layers.norm.NORMS`.
      placement: where the norms are.
        "pre": before each half of a block, and after the stack;
        "post": after each residual sum, as in 2017;
        "sandwich": as "pre", and after each half before it is added (Gemma);
        "sub": as "pre", and before the last product of each half (Magneto's Sub-LN, Wang et al. 2022);
        "normed": as "pre", but attention's output is added to its normalised input, which goes on in place of what
        came in (a published image GPT: experiments/mnist_igpt);
        "adaln": as "pre", without parameters, scaled and shifted by the row's condition, which also gates what each
        half adds; no norm after the stack, where the model's own follows (adaLN-zero, Peebles & Xie 2023).
      final_norm: whether there is a norm after the stack, where the placement has one.
      activation: a key of `fmjax.layers.mlp.ACTIVATIONS`.
      qkv_bias, out_bias, mlp_bias: biases on the products of query, key and value; of attention's output; of the MLP.
      qk_norm: an RMSNorm over each head of queries and keys, before the rotary embedding (Qwen 3, Gemma 3); it is of
        kind `norm`.
      query_scale: what queries are multiplied by; None is 1 / sqrt(head_dim).
      causal: whether a token sees only itself and those before it.
      cross_attention: whether each block also attends to `memory`, between its two halves.
      dropout, attention_dropout: rates on the output of each half of a block, and on attention probabilities.
      qk_init, value_init, residual_init: how the kernels are drawn: of queries and keys; of values and the inner
        products of the MLP; of those that write to the residual stream.
      mlp_init: of the inner products of the MLP, where they differ from values; None is `value_init`.
      attention: attention backend; "auto" takes the fastest of the platform.
      dtype: compute dtype (float32, bfloat16); parameters are float32.
      remat: what the backward pass recomputes. "none" saves everything, "full" only each block's input, "dots" saves
        the products with weights that go through `fmjax.layers.dense.dense` and no others, "save_named:a,b" what has
        these names (`fmjax.layers.transformer_config.SAVED_NAMES`).
      unroll: layers per iteration of the scan; under remat at most half of the stack, since XLA merges what a program
        without a loop computes twice and then keeps it.
      scan_layers: one scan over stacked parameters `blocks` [layers, ...], or, False, a program as long as the stack is
        deep over parameters `blocks_0`, `blocks_1`, ..., which decoding with a cache needs. `unstack_layers` turns the
        one tree into the other.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    pattern: tuple[LayerKind, ...] = (LayerKind(),)
    norm: str = "rmsnorm"
    norm_epsilon: float = 1e-5
    placement: str = "pre"
    final_norm: bool = True
    activation: str = "swiglu"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    query_scale: float | None = None
    causal: bool = True
    cross_attention: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    qk_init: Init = Init()
    value_init: Init = Init()
    residual_init: Init = Init()
    mlp_init: Init | None = None
    attention: str = "auto"
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1
    scan_layers: bool = True

    def __post_init__(self):
        sizes = ("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim", "unroll")
        check_positive(**{name: getattr(self, name) for name in sizes})
        for kind in self.pattern:
            if kind.window is not None:
                check_positive(window=kind.window)
            if kind.rope is not None and self.head_dim % 2:
                raise ConfigError(f"head_dim={self.head_dim} must be even for rotary position embedding.")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}.")
        check_choice("norm", self.norm, NORMS)
        check_choice("placement", self.placement, PLACEMENTS)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("attention", self.attention, BACKENDS)
        check_choice("dtype", self.dtype, COMPUTE_DTYPES)
        check_rate("dropout", self.dropout)
        check_rate("attention_dropout", self.attention_dropout)
        remat_policy(self.remat)

    def kind(self, layer: int) -> LayerKind:
        """The kind of layer number `layer`."""
        return self.pattern[layer % len(self.pattern)]

    @property
    def period(self) -> int:
        """After how many layers the kinds of the stack begin again."""
        kinds = [self.kind(layer) for layer in range(self.num_layers)]
        return next(n for n in range(1, self.num_layers + 1) if kinds[n:] == kinds[: self.num_layers - n])

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The attention window of each layer."""
        return tuple(self.kind(layer).window for layer in range(self.num_layers))


def layer_kinds(
    window: int | None, layer_pattern: tuple[str, ...], rope: Rope | None = None, local_rope: Rope | None = None
) -> tuple[LayerKind, ...]:
    """The pattern of a stack in the words of its config.

    Args:
      window: attention window of the "local" layers.
      layer_pattern: "global" or "local" a layer, repeated over the stack; empty: every layer is local where there is a
        window, global where there is none.
      rope, local_rope: rotary embedding of global and of local layers; None for local ones is `rope`.

    Raises ConfigError for other words, a "local" without window, or a window that no layer has.
    """
    if not layer_pattern:
        layer_pattern = ("global" if window is None else "local",)
    for word in layer_pattern:
        check_choice("layer_pattern", word, ("global", "local"))
    if ("local" in layer_pattern) != (window is not None):
        raise ConfigError(
            f"layer_pattern={layer_pattern} and window={window} do not fit: local layers have the window."
        )
    kinds = {"global": LayerKind(None, rope), "local": LayerKind(window, local_rope or rope)}
    return tuple(kinds[word] for word in layer_pattern)


def remat_policy(name: str):
    """(whether to rematerialise, policy for `jax.checkpoint`). Raises ConfigError for an unknown name."""
    if name.startswith("save_named:"):
        names = name.removeprefix("save_named:").split(",")
        for tap_name in names:
            check_choice("remat save_named", tap_name, SAVED_NAMES)
        return True, jax.checkpoint_policies.save_only_these_names(*names)
    check_choice("remat", name, REMAT_POLICIES)
    policies = {
        "full": jax.checkpoint_policies.nothing_saveable,
        "dots": lambda primitive, *_, **__: primitive is product_p,
    }
    if name not in policies and name != "none":
        known = ", ".join(SAVED_NAMES)
        raise ConfigError(f"remat={name!r}: put the names of activations after the colon. Known: {known}.")
    return name != "none", policies.get(name)
