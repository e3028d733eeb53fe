"""Positions: where they start in packed rows, and rotary embedding."""

import jax
import jax.numpy as jnp
from jax import lax


def positions_from_segments(segment_ids: jax.Array) -> jax.Array:
    """Positions that restart at 0 where a new segment begins; int32 [B, T] from int32 [B, T]."""
    index = lax.broadcasted_iota(jnp.int32, segment_ids.shape, 1)
    begins = jnp.concatenate(
        [jnp.ones_like(segment_ids[:, :1], bool), segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1
    )
    return index - lax.cummax(jnp.where(begins, index, 0), axis=1)


def rope_table(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of rotary position embedding (Su et al. 2021, eq. 15).

    Args:
      positions: int32 [..., T].
      head_dim: even size of a head.
      theta: base of the wavelengths; pair i turns by positions / theta**(2i / head_dim).

    Returns: (cos, sin), float32 [..., T, head_dim / 2] each.
    """
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def apply_rope(x: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates x [B, T, H, D] by a `rope_table` of shape [B or 1, T, D / 2] or [T, D / 2].

    Dimension i is paired with i + D/2 ("half rotation"), the convention of published LLaMA weights in Hugging Face
    format; the paper pairs neighbours, which is the same map after a permutation of the kernel's columns.
    """
    cos, sin = (t[..., None, :] for t in table)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
