"""Arrays in whole blocks, for kernels that want them so."""

import jax
import jax.numpy as jnp


def pad(x: jax.Array, axis: int, multiple: int, **how) -> jax.Array:
    """`x` with its axis lengthened at the end to a multiple of `multiple`, with zeros or as `how` tells `jnp.pad`."""
    missing = -x.shape[axis] % multiple
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)], **how) if missing else x
