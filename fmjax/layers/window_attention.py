"""Attention within windows of an image, every second time shifted, with biases by relative place (Liu et al. 2021)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.errors import ConfigError
from fmjax.layers.attention.reference import MASKED
from fmjax.layers.checks import COMPUTE_DTYPES, check_choice, check_positive, check_rate
from fmjax.layers.dense import Init, Linear
from fmjax.layers.mlp import ACTIVATIONS, GATED, MLP
from fmjax.layers.norm import Norm
from fmjax.layers.tap import LAYERED, tap
from fmjax.layers.transformer_config import remat_policy
from fmjax.parallel.logical import constrain


@dataclasses.dataclass(frozen=True)
class WindowConfig:
    """What the blocks of one stage share.

    Attributes:
      depth: blocks; the first, third, ... have plain windows, the others windows shifted by half their side.
      side: places along each side of the map.
      window: places along each side of a window; divides `side`. With one window there is no shift.
      hidden_size, intermediate_size, num_heads: of a block; all heads together are hidden_size wide.
      activation: a key of `fmjax.layers.mlp.ACTIVATIONS` with one input.
      qkv_bias: biases on the products of query, key and value. All others have one.
      norm_epsilon: of LayerNorm.
      dropout, attention_dropout: rates on the output of each half of a block, and on attention probabilities.
      drops: of each block, how likely a row goes without either half in training (stochastic depth, Huang et al. 2016);
        what a half adds else is scaled up. () is 0 for all.
      init: how kernels are drawn; biases by place start at 0.
      dtype: of the products.
      remat: as in TransformerConfig.
    """

    depth: int
    side: int
    window: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    activation: str = "gelu"
    qkv_bias: bool = True
    norm_epsilon: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drops: tuple[float, ...] = ()
    init: Init = Init()
    dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self):
        sizes = ("depth", "side", "window", "hidden_size", "intermediate_size", "num_heads")
        check_positive(**{name: getattr(self, name) for name in sizes})
        if self.side % self.window:
            raise ConfigError(f"windows of {self.window}x{self.window} do not divide a map of {self.side}x{self.side}")
        if self.hidden_size % self.num_heads:
            raise ConfigError(f"hidden_size={self.hidden_size} is not a multiple of num_heads={self.num_heads}")
        check_choice("activation", self.activation, set(ACTIVATIONS) - set(GATED))
        check_choice("dtype", self.dtype, COMPUTE_DTYPES)
        check_rate("dropout", self.dropout)
        check_rate("attention_dropout", self.attention_dropout)
        for drop in self.drops:
            check_rate("drops", drop)
        if self.drops and len(self.drops) != self.depth:
            raise ConfigError(f"drops={self.drops}: expected one rate for each of {self.depth} blocks")
        remat_policy(self.remat)

    @property
    def shifts(self) -> np.ndarray:
        """int32 [depth]: by how many places each block's windows are moved down and right."""
        shift = 0 if self.window == self.side else self.window // 2
        return np.where(np.arange(self.depth) % 2, shift, 0).astype(np.int32)


class WindowAttention(nn.Module):
    """Multi-head attention of the places of each window to one another: softmax(q k^T / sqrt(d) + bias) v, where a head
    has a learned bias for each of the (2 window - 1)^2 ways in which a key lies to its query."""

    config: WindowConfig

    @nn.compact
    def __call__(self, x: jax.Array, shift: jax.Array, train: bool = False) -> jax.Array:
        """[B, side^2, D] to the same; `shift` int32 []: 0, or window // 2, when what meets in a window only because the
        map is rolled does not attend to each other."""
        c = self.config
        batch, head_dim, can_shift = x.shape[0], c.hidden_size // c.num_heads, c.window < c.side
        x = x.reshape(batch, c.side, c.side, c.hidden_size)
        x = to_windows(jnp.roll(x, (-shift, -shift), (1, 2)) if can_shift else x, c.window)

        def heads(name):
            made = Linear(c.hidden_size, ("embed", "heads"), c.qkv_bias, c.init, c.dtype, name=name)(x)
            made = tap(self, name[0], made.reshape(*x.shape[:3], c.num_heads, head_dim))
            return constrain(made, ("batch", None, None, "act_heads", None))

        q, k, v = map(heads, ("query", "key", "value"))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, (None, None))
        table = self.param("place_bias", zeros, ((2 * c.window - 1) ** 2, c.num_heads), jnp.float32)
        logits = jnp.einsum("bnqhd,bnkhd->bnhqk", q, k, preferred_element_type=jnp.float32) * head_dim**-0.5
        logits += jnp.moveaxis(table[relative_places(c.window)], -1, 0)
        if can_shift:
            allowed = (shift == 0) | shifted_mask(c.side, c.window)
            logits = jnp.where(allowed[:, None], logits, MASKED)
        shares = nn.Dropout(c.attention_dropout, deterministic=not train)(jax.nn.softmax(logits))
        out = jnp.einsum("bnhqk,bnkhd->bnqhd", shares.astype(v.dtype), v).reshape(*x.shape)
        out = Linear(c.hidden_size, ("heads", "embed"), True, c.init, c.dtype, name="out")(out)
        out = from_windows(out, c.side)
        out = jnp.roll(out, (shift, shift), (1, 2)) if can_shift else out
        return out.reshape(batch, c.side**2, c.hidden_size)


class WindowBlock(nn.Module):
    """Window attention and an MLP, each pre-norm with a residual connection."""

    config: WindowConfig

    @nn.compact
    def __call__(self, x: jax.Array, shift: jax.Array, drop: jax.Array, train: bool):
        """One block, the body of a scan: [B, side^2, D] to (the same, None); `shift` and `drop` are its own."""
        c = self.config
        dropout = nn.Dropout(c.dropout, deterministic=not train)

        def kept(y):
            if not (train and any(c.drops)):
                return y
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - drop, (y.shape[0], 1, 1))
            return jnp.where(keep, y / (1.0 - drop).astype(y.dtype), 0)

        norm = lambda name, x: Norm("layernorm", c.norm_epsilon, name=name)(x)
        x = x + kept(dropout(WindowAttention(c, name="attention")(norm("attention_norm", x), shift, train)))
        mlp = MLP(c.intermediate_size, c.activation, True, c.init, c.init, dtype=c.dtype, name="mlp")
        x = x + kept(dropout(mlp(norm("mlp_norm", x))))
        return tap(self, "residual", constrain(x, ("batch", None, "act_embed"))), None


class WindowStage(nn.Module):
    """The blocks of a stage, with stacked parameters `blocks` [depth, ...]."""

    config: WindowConfig

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, side, side, D] to the same."""
        c = self.config
        block, (rematerialise, policy) = WindowBlock, remat_policy(c.remat)
        if rematerialise:
            block = nn.remat(block, policy=policy, prevent_cse=False, static_argnums=(4,))
        blocks = nn.scan(
            block,
            variable_axes=LAYERED,
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, 0, nn.broadcast),
            length=c.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, name="blocks")
        drops = jnp.asarray(c.drops or (0.0,) * c.depth, jnp.float32)
        y, _ = blocks(x.reshape(x.shape[0], -1, c.hidden_size).astype(c.dtype), jnp.asarray(c.shifts), drops, train)
        return y.reshape(x.shape)


def to_windows(x: jax.Array, window: int) -> jax.Array:
    """[B, H, W, D] to [B, windows, window^2, D], both row by row."""
    batch, height, width, size = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, size)
    return x.swapaxes(2, 3).reshape(batch, -1, window**2, size)


def from_windows(x: jax.Array, side: int) -> jax.Array:
    """What `to_windows` made of a square map, as it was: [B, side, side, D]."""
    batch, _, places, size = x.shape
    window = round(places**0.5)
    x = x.reshape(batch, side // window, side // window, window, window, size)
    return x.swapaxes(2, 3).reshape(batch, side, side, size)


def relative_places(window: int) -> np.ndarray:
    """int32 [window^2, window^2]: the number of the way in which a key (second axis) lies to its query."""
    places = np.stack(np.divmod(np.arange(window**2), window), 1)
    down, right = np.moveaxis(places[:, None] - places[None] + window - 1, -1, 0)
    return (down * (2 * window - 1) + right).astype(np.int32)


def shifted_mask(side: int, window: int) -> np.ndarray:
    """bool [windows, window^2, window^2]: which places of a shifted window were neighbours in the map, and may attend
    to each other; the others came from its opposite edge."""
    wrapped = np.arange(side) >= side - window // 2
    regions = (2 * wrapped[:, None] + wrapped[None])[None, ..., None]
    regions = np.asarray(to_windows(regions, window))[0, ..., 0]
    return regions[:, :, None] == regions[:, None, :]


def window_flops(config: WindowConfig) -> float:
    """FLOPs of a stage's blocks over one image, forward and backward, by the convention of `fmjax.layers.flops`."""
    c, places = config, config.side**2
    products = places * c.hidden_size * (4 * c.hidden_size + 2 * c.intermediate_size)
    plain = places * c.window**2
    shifted = int(shifted_mask(c.side, c.window).sum())
    pairs = sum(shifted if shift else plain for shift in c.shifts)
    return 6.0 * (c.depth * products + 2 * pairs * c.hidden_size)
