"""Random keys whose numbers take few operations: most of what compiles in the initialisation of a small module is
threefry, once for each parameter, and the tests that begin with random parameters are not about its numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl

ODD = np.uint32(2654435761), np.uint32(2246822519), np.uint32(3266489917)


def _mixed(x):
    """uint32 numbers, each mixed within itself (the end of xxHash32)."""
    x = (x ^ (x >> 15)) * ODD[1]
    x = (x ^ (x >> 13)) * ODD[2]
    return x ^ (x >> 16)


def _numbered(key, count, salt):
    """`count` words of uint32, of a key of two words."""
    return _mixed(jax.lax.iota(jnp.uint32, count) * ODD[0] + _mixed(key[0] + np.uint32(salt)) + key[1])


def _random_bits(key, bit_width, shape):
    bits = _numbered(key, int(np.prod(shape)), 1)
    return bits.reshape(shape).astype(f"uint{bit_width}")


def _split(key, shape):
    count = int(np.prod(shape))
    return jnp.stack([_numbered(key, count, 2), _numbered(key, count, 3)], axis=-1).reshape(*shape, 2)


def _fold_in(key, data):
    return jnp.stack([_mixed(key[0] + jnp.uint32(data) * ODD[0]), _mixed(key[1] ^ jnp.uint32(data) + ODD[1])])


QUICK = define_prng_impl(
    key_shape=(2,), seed=lambda seed: jnp.stack([_mixed(seed.astype(jnp.uint32) + ODD[0]), jnp.uint32(7)]),
    split=_split, random_bits=_random_bits, fold_in=_fold_in, name="quick",
)  # fmt: skip


def quick_key(seed: int) -> jax.Array:
    """A key for `module.init`."""
    return jax.random.key(seed, impl=QUICK)
