"""Positions: where they start in packed rows, sinusoids, and rotary embedding with its published scalings."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fmjax.errors import ConfigError
from fmjax.registry import Registry

ROPE_SCALINGS = Registry(
    "rope_scaling",
    {
        "linear": "fmjax.layers.position:LinearScaling",
        "llama3": "fmjax.layers.position:Llama3Scaling",
        "yarn": "fmjax.layers.position:YarnScaling",
    },
)


def positions_from_segments(segment_ids: jax.Array) -> jax.Array:
    """Positions that restart at 0 where a new segment begins; int32 [B, T] from int32 [B, T]."""
    index = lax.broadcasted_iota(jnp.int32, segment_ids.shape, 1)
    begins = jnp.concatenate(
        [jnp.ones_like(segment_ids[:, :1], bool), segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1
    )
    return index - lax.cummax(jnp.where(begins, index, 0), axis=1)


def default_positions(tokens: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
    """0..T-1, restarting with every segment where there are any; int32 [1 or B, T]."""
    return jnp.arange(tokens.shape[1])[None] if segment_ids is None else positions_from_segments(segment_ids)


def sinusoids(positions: jax.Array, features: int, interleaved: bool = True, shift: float = 0.0) -> jax.Array:
    """Sinusoidal position encoding (Vaswani et al. 2017, section 3.5): float32 [..., features] from int32 [...].

    Pair i has sin and cos of positions / 10000**(2i / features), at the places 2i and 2i + 1, or, not `interleaved`, i
    and i + features / 2 as in tensor2tensor and Marian. `shift` is taken off the number of pairs in the exponent: with
    1 the last frequency is 1 / 10000, as in tensor2tensor and DDPM.
    """
    pairs = features // 2
    frequency = 10000.0 ** (-np.arange(pairs) / (pairs - shift))
    angle = positions[..., None].astype(jnp.float32) * frequency.astype(np.float32)
    parts = [jnp.sin(angle), jnp.cos(angle)]
    if interleaved:
        return jnp.stack(parts, axis=-1).reshape(*angle.shape[:-1], features)
    return jnp.concatenate(parts, axis=-1)


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Position interpolation (Chen et al. 2023): positions are divided by `factor`."""

    factor: float  # how much longer the context becomes

    def __post_init__(self):
        _check_factor(self.factor)

    def scale(self, frequency: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        """(frequencies [D / 2] after scaling, factor on cosines and sines)."""
        return frequency / self.factor, 1.0


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """LLaMA 3.1's scaling: long waves are stretched by `factor`, short ones kept, those between blended.

    A wave is short when it is shorter than original_max_length / high_freq_factor, and long when it is longer than
    original_max_length / low_freq_factor.
    """

    factor: float = 8.0  # by how much long waves are stretched
    low_freq_factor: float = 1.0  # long waves are longer than original_max_length / low_freq_factor
    high_freq_factor: float = 4.0  # short waves are shorter than original_max_length / high_freq_factor
    original_max_length: int = 8192  # the context that the model was trained with before

    def __post_init__(self):
        _check_factor(self.factor)
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"rope_scaling: low_freq_factor={self.low_freq_factor} must be above 0 and below "
                f"high_freq_factor={self.high_freq_factor}."
            )

    def scale(self, frequency: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        """See `LinearScaling.scale`."""
        turns = self.original_max_length * frequency / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(kept, 0.0, 1.0)
        return frequency * (kept + (1 - kept) / self.factor), 1.0


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, https://arxiv.org/abs/2309.00071).

    Attributes:
      factor: how much longer than `original_max_length` the context is.
      original_max_length: the context that the model was trained with before.
      beta_fast, beta_slow: pairs that turn more often than beta_fast within the original context are kept, those that
        turn less often than beta_slow are stretched by `factor`, those between blended linearly by index.
      attention_factor: on cosines and sines; None is the paper's 0.1 ln(factor) + 1.
      truncate: round the two borders outwards to whole indices, as the published code does.
    """

    factor: float
    original_max_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self):
        _check_factor(self.factor)

    def scale(self, frequency: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        """See `LinearScaling.scale`."""
        pairs = len(frequency)

        def index_of(turns: float) -> float:
            return pairs * math.log(self.original_max_length / (turns * 2 * math.pi)) / math.log(theta)

        low, high = index_of(self.beta_fast), index_of(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * pairs - 1)
        stretched = np.clip((np.arange(pairs) - low) / max(high - low, 0.001), 0.0, 1.0)
        factor = self.attention_factor
        if factor is None:
            factor = 0.1 * math.log(self.factor) + 1.0
        return frequency * (1 - stretched + stretched / self.factor), factor


def _check_factor(factor: float) -> None:
    if not factor >= 1.0:
        raise ConfigError(f"rope_scaling: factor={factor!r}: expected a number of at least 1.")


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding: base of the wavelengths, and how they are stretched for longer contexts."""

    theta: float = 10000.0
    scaling: LinearScaling | Llama3Scaling | YarnScaling | None = None

    def table(self, positions: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
        """Cosines and sines (Su et al. 2021, eq. 15): float32 [..., T, head_dim / 2] each.

        Args:
          positions: int32 [..., T].
          head_dim: even size of a head; pair i turns by positions / theta**(2i / head_dim).
        """
        frequency = self.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        factor = 1.0
        if self.scaling is not None:
            frequency, factor = self.scaling.scale(frequency, self.theta)
        angle = positions[..., None].astype(jnp.float32) * frequency.astype(np.float32)
        return jnp.cos(angle) * factor, jnp.sin(angle) * factor


def apply_rope(x: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates x [B, T, H, D] by a `Rope.table` of shape [B or 1, T, D / 2] or [T, D / 2].

    Dimension i is paired with i + D/2 ("half rotation"), the convention of published LLaMA weights in Hugging Face
    format; the paper pairs neighbours, which is the same map after a permutation of the kernel's columns.
    """
    cos, sin = (t[..., None, :] for t in table)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
