"""One Transformer stack for every text family, scanned over its layers."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers import cache as kv_cache
from fmjax.layers.attention import BACKENDS, attention
from fmjax.layers.checks import COMPUTE_DTYPES, check_choice, check_positive, check_rate
from fmjax.layers.dense import Linear
from fmjax.layers.mlp import ACTIVATIONS, MLP
from fmjax.layers.norm import NORMS, Norm
from fmjax.layers.position import apply_rope, rope_table
from fmjax.layers.tap import tap

PLACEMENTS = ("pre", "post")
REMAT_POLICIES = ("none", "full", "dots", "save_named:NAME,NAME,...")
# Activations inside a block that may be saved by name. Each is a tap.
BLOCK_TAPS = (
    "attention_in", "q", "k", "v", "attention_heads", "attention_out",
    "mlp_in", "mlp_gate", "mlp_up", "mlp_hidden", "mlp_out", "residual",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape and composition of a stack. A model family is one way to fill this in.

    Attributes:
      num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim: sizes; query heads share key-value
        heads in groups of num_heads / num_kv_heads.
      norm, norm_epsilon: "layernorm" or "rmsnorm".
      placement: "pre" normalises the input of each half of a block and the stack's output; "post" normalises the sum
        after each residual connection, as in 2017.
      activation: a key of `fmjax.layers.mlp.ACTIVATIONS`.
      use_bias: biases on every product.
      rope_theta: base of rotary embeddings; None for none.
      causal, window: as for `attention`.
      dropout: rate on attention probabilities and on the output of each half of a block.
      stddev, residual_stddev: of the normal initialisation of kernels, and of those that write to the residual stream.
      attention: attention backend.
      dtype: compute dtype; parameters are float32.
      remat: what the backward pass recomputes. "none" saves everything, "full" only each block's input, "dots" the
        products with weights, "save_named:a,b" the named taps (BLOCK_TAPS).
      unroll: layers per iteration of the scan.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm: str = "rmsnorm"
    norm_epsilon: float = 1e-5
    placement: str = "pre"
    activation: str = "swiglu"
    use_bias: bool = False
    rope_theta: float | None = None
    causal: bool = True
    window: int | None = None
    dropout: float = 0.0
    stddev: float = 0.02
    residual_stddev: float = 0.02
    attention: str = "auto"
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1

    def __post_init__(self):
        check_positive(
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            unroll=self.unroll,
        )
        if self.window is not None:
            check_positive(window=self.window)
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}.")
        if self.rope_theta is not None and self.head_dim % 2:
            raise ConfigError(f"head_dim={self.head_dim} must be even for rotary position embedding.")
        check_choice("norm", self.norm, NORMS)
        check_choice("placement", self.placement, PLACEMENTS)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("attention", self.attention, BACKENDS)
        check_choice("dtype", self.dtype, COMPUTE_DTYPES)
        check_rate("dropout", self.dropout)
        remat_policy(self.remat)


def head_size(hidden_size: int, num_heads: int, head_dim: int | None) -> int:
    """head_dim, or hidden_size / num_heads where it is None. Raises ConfigError when that is not a whole number."""
    check_positive(hidden_size=hidden_size, num_heads=num_heads)
    if head_dim is not None:
        return head_dim
    if hidden_size % num_heads:
        raise ConfigError(
            f"hidden_size={hidden_size} is not a multiple of num_heads={num_heads}; change one of them or set head_dim."
        )
    return hidden_size // num_heads


def remat_policy(name: str):
    """(whether to rematerialise, policy for `jax.checkpoint`). Raises ConfigError for an unknown name."""
    if name.startswith("save_named:"):
        names = name.removeprefix("save_named:").split(",")
        for tap_name in names:
            check_choice("remat save_named", tap_name, BLOCK_TAPS)
        return True, jax.checkpoint_policies.save_only_these_names(*names)
    check_choice("remat", name, REMAT_POLICIES)
    policies = {
        "full": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }
    if name not in policies and name != "none":
        known = ", ".join(BLOCK_TAPS)
        raise ConfigError(f"remat={name!r}: put the names of activations after the colon. Known: {known}.")
    return name != "none", policies.get(name)


class Attention(nn.Module):
    """Multi-head attention with its four products."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x, *, segment_ids, rope, cache, train):
        """x [B, T, D] to ([B, T, D], cache); `cache` is a `fmjax.layers.cache.LayerView` or None."""
        c = self.config
        batch, length, _ = x.shape

        def heads(name, number, axis):
            kernel = Linear(number * c.head_dim, ("embed", axis), c.use_bias, c.stddev, c.dtype, name=name)
            return kernel(x).reshape(batch, length, number, c.head_dim)

        q = heads("query", c.num_heads, "heads")
        k = heads("key", c.num_kv_heads, "kv_heads")
        v = heads("value", c.num_kv_heads, "kv_heads")
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        q, k, v = (
            nn.with_logical_constraint(tap(self, name, y), ("batch", "length", "act_heads", None))
            for name, y in (("q", q), ("k", k), ("v", v))
        )
        positions = None
        if cache is not None:
            k, v, segment_ids, positions, cache = cache.extend(k, v)
        out = attention(
            q, k, v,
            segment_ids=segment_ids, positions=positions, causal=c.causal, window=c.window, backend=c.attention,
            dropout_rate=c.dropout if train else 0.0,
            dropout_key=self.make_rng("dropout") if train and c.dropout else None,
        )  # fmt: skip
        out = tap(self, "attention_heads", out.reshape(batch, length, c.num_heads * c.head_dim))
        out = Linear(c.hidden_size, ("heads", "embed"), c.use_bias, c.residual_stddev, c.dtype, name="out")(out)
        return out, cache


class Block(nn.Module):
    """Attention and MLP, each with a residual connection."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, carry, layer, segment_ids, rope, train):
        """One layer; the signature is that of a scan body.

        Args:
          carry: (x [B, T, D], cache or None).
          layer: index of this layer in the cache.
          segment_ids: int32 [B, T] or None.
          rope: table of `rope_table`, or None.
          train: whether dropout is on.

        Returns: (carry, None).
        """
        c = self.config
        x, cache = carry
        dropout = nn.Dropout(c.dropout, deterministic=not train)

        def half(x, norm_name, tap_name, function):
            norm = Norm(c.norm, c.norm_epsilon, name=norm_name)
            y = norm(x) if c.placement == "pre" else x
            y = function(tap(self, f"{tap_name}_in", y))
            x = x + dropout(tap(self, f"{tap_name}_out", y))
            x = norm(x) if c.placement == "post" else x
            return nn.with_logical_constraint(x, ("batch", "length", "act_embed"))

        def attend(y):
            nonlocal cache
            view = None if cache is None else cache.layer(layer)
            y, view = Attention(c, name="attention")(y, segment_ids=segment_ids, rope=rope, cache=view, train=train)
            cache = None if view is None else view.whole()
            return y

        mlp = MLP(c.intermediate_size, c.activation, c.use_bias, c.stddev, c.residual_stddev, c.dtype, name="mlp")
        x = half(x, "attention_norm", "attention", attend)
        x = half(x, "mlp_norm", "mlp", mlp)
        return (tap(self, "residual", x), cache), None


class Transformer(nn.Module):
    """`num_layers` blocks with stacked parameters [layers, ...], and the final norm where the placement has one."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x, *, segment_ids=None, positions=None, cache=None, train=False):
        """Runs the stack.

        Args:
          x: [B, T, D] embedded inputs.
          segment_ids: int32 [B, T], 0 = padding, or None for one segment without padding.
          positions: int32 [B, T]; None is 0..T-1. Used by rotary embedding and by the cache.
          cache: None, or the pytree of `fmjax.layers.cache.init_cache`.
          train: whether dropout is on (then the rng `dropout` is needed).

        Returns: ([B, T, D] in the compute dtype, updated cache or None).
        """
        c = self.config
        x = x.astype(c.dtype)
        rope = None
        if c.rope_theta is not None:
            index = jnp.arange(x.shape[1])[None] if positions is None else positions
            rope = rope_table(index, c.head_dim, c.rope_theta)
        state = None
        if cache is not None:
            state = kv_cache.begin(cache, positions, segment_ids, c.window)
        rematerialise, policy = remat_policy(c.remat)
        block = Block
        if rematerialise:
            # Inside a scan nothing can be merged across iterations, so the barriers against it would only cost time.
            block = nn.remat(Block, policy=policy, prevent_cse=False, static_argnums=(5,))
        blocks = nn.scan(
            block,
            variable_axes={"params": 0, "reads": 0, "edits": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=c.num_layers,
            unroll=c.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, name="blocks")
        (x, state), _ = blocks((x, state), jnp.arange(c.num_layers), segment_ids, rope, train)
        if c.placement == "pre":
            x = Norm(c.norm, c.norm_epsilon, name="final_norm")(x)
        return tap(self, "final", x), None if state is None else state.tree()
