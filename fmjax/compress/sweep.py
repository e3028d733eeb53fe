"""Kernels changed an input at a time, while what that costs is made up for by the inputs that come later: the algorithm
that GPTQ and SparseGPT share (Frantar et al. 2022, https://arxiv.org/abs/2210.17323, algorithm 1; Frantar & Alistarh
2023, https://arxiv.org/abs/2301.00774, algorithm 1).

A kernel is [in, out], the transpose of the papers' W; what is wanted of its change is that it lowers
|X kernel - X changed|^2 over calibration inputs X, of which the sum of x x^T [in, in] is all there is to know.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular

BLOCK = 128
"""Inputs between two updates of all that come later, as in the papers: it changes the time, not the result."""


def factor(gram: jax.Array, damping: float = 0.01) -> jax.Array:
    """What a sweep goes by: upper triangular U [in, in] with U^T U the inverse of the damped sum of x x^T.

    Args:
      gram: float32 [in, in], the sum of x x^T. An input that was never other than 0 gets 1 on the diagonal.
      damping: of the mean of the diagonal, what is added to it.

    Returns float32; NaN where the damped sum has no Cholesky factor.
    """
    diagonal = jnp.diagonal(gram)
    filled = gram + jnp.diag(jnp.where(diagonal == 0, 1.0, 0.0))
    damped = filled + damping * jnp.mean(jnp.diagonal(filled)) * jnp.eye(len(gram), dtype=gram.dtype)
    # Of the matrix turned end to end, so that its one factor, turned back, is upper triangular: no inverse is factored.
    lower = jnp.linalg.cholesky(damped[::-1, ::-1])
    return solve_triangular(lower[::-1, ::-1], jnp.eye(len(gram), dtype=gram.dtype), lower=False)


def sweep(
    kernel: jax.Array, upper: jax.Array, rounded: Callable, told: Any = None, decide: Callable | None = None,
    size: int | None = None,
) -> tuple[jax.Array, Any]:  # fmt: skip
    """A kernel, changed from its first input to its last.

    Args:
      kernel: float32 [in, out].
      upper: from `factor`.
      rounded: (row [out], what is told of it, what was decided of it) -> the row as it will be.
      told: what is told of each row, a pytree of arrays [in, ...]; None for nothing.
      decide: (rows [size, out] as they are by then, the diagonal [size] of `upper`) -> what is decided of each, a
        pytree of arrays [size, ...], asked once for every `size` rows, which divide `in`; None for nothing.

    Returns: (the kernel changed [in, out], what was decided of its rows).
    """
    decided = None
    if decide is not None:
        of_some = jax.eval_shape(decide, kernel[:size], jnp.diagonal(upper)[:size])
        decided = jax.tree.map(lambda x: jnp.zeros((len(kernel), *x.shape[1:]), x.dtype), of_some)
    decision = None if decide is None else (decide, size)
    changed, _, decided = _part(kernel, upper, told, decided, _sizes(len(kernel), size), rounded, decision)
    return changed, decided


def _sizes(rows: int, size: int | None) -> list[int]:
    """How many inputs go together, level by level, each a divisor of the one before."""
    largest = lambda n: max(d for d in range(1, min(n, BLOCK) + 1) if n % d == 0)
    if size is None:
        return [largest(rows)]
    if size > BLOCK:
        return [size, largest(size)]
    outer = max(n for n in range(size, max(BLOCK, size) + 1, size) if rows % n == 0)
    return [outer, size] if outer > size else [size]


def _part(rows, upper, told, decided, sizes, rounded, decision):
    """(rows changed, their errors over the diagonal, what was decided) of rows [n, out] that nothing else changes."""
    if not sizes:
        return *_one_by_one(rows, upper, told, decided, rounded), decided
    n, step = len(rows), sizes[0]
    place = jnp.arange(n)

    def one(i, state):
        rows, errors, decided = state
        start = i * step
        cut = lambda x: lax.dynamic_slice_in_dim(x, start, step)
        put = lambda x, part: lax.dynamic_update_slice_in_dim(x, part, start, 0)
        own, square = cut(rows), lax.dynamic_slice(upper, (start, start), (step, step))
        if decision is not None and step == decision[1]:
            words = decision[0](own, jnp.diagonal(square))
        else:
            words = jax.tree.map(cut, decided)
        changed, error, words = _part(
            own, square, jax.tree.map(cut, told), words, sizes[1:], rounded, decision
        )  # fmt: skip
        # What later rows make up for; earlier ones, and these, are done with.
        onto = jnp.where(place[None] >= start + step, cut(upper), 0.0)
        rows = rows - jnp.matmul(onto.T, error, precision=lax.Precision.HIGHEST)
        return put(rows, changed), put(errors, error), jax.tree.map(put, decided, words)

    return lax.fori_loop(0, n // step, one, (rows, jnp.zeros_like(rows), decided))


def _one_by_one(rows, upper, told, decided, rounded):
    place = jnp.arange(len(rows))

    def one(i, state):
        rows, errors = state
        changed = rounded(rows[i], *jax.tree.map(lambda x: x[i], (told, decided)))
        error = (rows[i] - changed) / upper[i, i]
        rows = rows - jnp.where(place > i, upper[i], 0.0)[:, None] * error[None]
        return rows.at[i].set(changed), errors.at[i].set(error)

    return lax.fori_loop(0, len(rows), one, (rows, jnp.zeros_like(rows)))


def product_loss(kernel: jax.Array, changed: jax.Array, gram: jax.Array) -> jax.Array:
    """|X kernel - X changed|^2 over calibration inputs X, from their sum of x x^T [in, in]."""
    change = kernel - changed
    return jnp.sum(change * jnp.matmul(gram, change, precision=lax.Precision.HIGHEST))


def product_error(kernel: jax.Array, changed: jax.Array, gram: jax.Array) -> jax.Array:
    """|X kernel - X changed|^2 over |X kernel|^2, from the sum of x x^T: what is lost of a product. 0 where there is
    nothing to lose."""
    lost, whole = product_loss(kernel, changed, gram), product_loss(kernel, 0.0, gram)
    return jnp.where(whole > 0, lost / jnp.where(whole > 0, whole, 1.0), lost)
