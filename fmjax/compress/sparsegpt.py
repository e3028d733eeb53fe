"""SparseGPT (Frantar & Alistarh 2023, https://arxiv.org/abs/2301.00774): inputs of each output are removed, and those
that come later make up for them."""

import functools

import jax
import jax.numpy as jnp

from fmjax.compress.importance import Pattern
from fmjax.compress.sweep import BLOCK, factor, product_error, sweep


@functools.partial(jax.jit, static_argnames=("pattern", "block", "damping"))
def sparsegpt(
    kernel: jax.Array, gram: jax.Array, pattern: Pattern, block: int = BLOCK, damping: float = 0.01
) -> tuple[jax.Array, jax.Array]:
    """A kernel [in, out] with zeros, for inputs whose sum of x x^T is `gram` [in, in] (algorithm 1).

    Of `block` inputs at a time, as the ones before have left them, those weights become zero whose removal costs least,
    w^2 over the squared diagonal of the factor: a share of all that are in the block, whichever output they are of; or,
    of a pattern n:m, all but n of every m inputs of each output. What is removed is made up for by the later inputs,
    within the block and after it.

    Args:
      block: where it does not divide `in`, the largest divisor of `in` below it is taken.
      damping: of the mean of the diagonal.

    Returns: (float32 [in, out], the share of the product that is lost: `fmjax.compress.sweep.product_error`; NaN where
      the damped gram has no Cholesky factor). An input that was never other than 0 is removed whole.
    """
    kernel = jnp.where((jnp.diagonal(gram) == 0)[:, None], 0.0, kernel.astype(jnp.float32))
    if pattern.group is None:
        block = max(d for d in range(1, min(len(kernel), block) + 1) if len(kernel) % d == 0)
    else:
        block = pattern.group

    def kept(rows, diagonal):
        return pattern.kept((rows / diagonal[:, None]) ** 2, across=True)

    keep = lambda row, _, kept: jnp.where(kept, row, 0.0)
    pruned, _ = sweep(kernel, factor(gram, damping), keep, decide=kept, size=block)
    return pruned, product_error(kernel, pruned, gram)
