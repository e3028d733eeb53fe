"""The logit-Laplace distribution of pixels (Ramesh et al. 2021, https://arxiv.org/abs/2102.12092, appendix A.3): of
numbers between 0 and 1 whose logits have the Laplace distribution."""

import jax
import jax.numpy as jnp

EDGE = 0.1
"""How far pixels are kept from 0 and 1, where the density ends."""


def to_open(images: jax.Array) -> jax.Array:
    """Numbers in [-1, 1] to [EDGE, 1 - EDGE]."""
    return (1 - 2 * EDGE) * (images + 1) / 2 + EDGE


def to_images(values: jax.Array) -> jax.Array:
    """What `to_open` made numbers of: [EDGE, 1 - EDGE] to [-1, 1], and what lies beyond to the nearest end."""
    return jnp.clip((values - EDGE) / (1 - 2 * EDGE), 0, 1) * 2 - 1


def nats(values: jax.Array, location: jax.Array, log_scale: jax.Array) -> jax.Array:
    """-log of the density at numbers between 0 and 1 (equation 2), float32 of their shape.

    location, log_scale: of the logits' Laplace distribution.
    """
    apart = jnp.abs(jnp.log(values) - jnp.log1p(-values) - location)
    return jnp.log(2 * values * (1 - values)) + log_scale + apart * jnp.exp(-log_scale)
