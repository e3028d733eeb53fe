"""Vector quantization (van den Oord et al. 2017): the nearest code, gradients past it, moving averages as codes.

The codebook of appendix A.1 is kept as the two averages that it is the quotient of: {"counts": float32 [K], "sums":
float32 [K, D]}, so that a code is sums / counts. What a batch says of it is two sums over its vectors, hence the same
however the batch is cut.
"""

import jax
import jax.numpy as jnp
from jax import lax


def nearest(vectors: jax.Array, codebook: jax.Array) -> jax.Array:
    """int32 [...]: of each vector [..., D] the index of the nearest code of [K, D]; of equally near ones the first."""
    products = jnp.einsum("...d,kd->...k", vectors, codebook, precision=lax.Precision.HIGHEST)
    return jnp.argmin((codebook**2).sum(-1) - 2 * products, axis=-1)


def straight_through(vectors: jax.Array, quantized: jax.Array) -> jax.Array:
    """`quantized`, whose gradient goes to `vectors` as it is (Bengio et al. 2013)."""
    return vectors + lax.stop_gradient(quantized - vectors)


def initial(codebook: jax.Array) -> dict[str, jax.Array]:
    """The averages of a codebook [K, D] as if each code had been used once a batch."""
    return {"counts": jnp.ones(len(codebook)), "sums": codebook}


def codes(averages: dict[str, jax.Array]) -> jax.Array:
    """The codebook float32 [K, D]."""
    return averages["sums"] / averages["counts"][:, None]


def usage(vectors: jax.Array, indices: jax.Array, weights: jax.Array, num_codes: int) -> dict[str, jax.Array]:
    """How often each code was nearest, and the sum of the vectors that it was nearest to; shapes as of the averages.

    Args:
      vectors: [B, N, D].
      indices: int32 [B, N].
      weights: of the rows, [B].
    """
    # A product with a fixed order of sums: adding rows to where they belong has none on an accelerator.
    used = jax.nn.one_hot(indices, num_codes) * weights[:, None, None]
    sums = jnp.einsum("bnk,bnd->kd", used, vectors, precision=lax.Precision.HIGHEST)
    return {"counts": used.sum((0, 1)), "sums": sums}


def moved(averages: dict[str, jax.Array], used: dict[str, jax.Array], decay: float) -> dict[str, jax.Array]:
    """The averages after a batch (equations 6 and 7): decay * average + (1 - decay) * what the batch used."""
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, averages, used)


def restarted(averages: dict[str, jax.Array], candidates: jax.Array, order: jax.Array, below: float):
    """The averages with codes that are hardly used put where vectors are, as if each had been used once a batch.

    Args:
      candidates: [B, D], vectors of the batch.
      order: [B], random numbers: dead codes, by their index, take the candidates of the least ones; a code that there
        is none for waits for the next batch. Candidates of an infinite number are not taken.
      below: a code is dead whose average count is less.
    """
    dead = averages["counts"] < below
    rank = jnp.cumsum(dead) - 1
    taken = dead & (rank < jnp.isfinite(order).sum())
    chosen = candidates[jnp.argsort(order)[jnp.clip(rank, 0, len(order) - 1)]]
    return {
        "counts": jnp.where(taken, 1.0, averages["counts"]),
        "sums": jnp.where(taken[:, None], chosen, averages["sums"]),
    }


def perplexity(counts: jax.Array) -> jax.Array:
    """exp of the entropy of codes used so often [K]: as many codes, equally used, would say as much; 1 for none."""
    shares = counts / jnp.maximum(counts.sum(), 1e-20)
    return jnp.exp(-jnp.where(shares > 0, shares * jnp.log(jnp.where(shares > 0, shares, 1.0)), 0.0).sum())


def reduced(sums) -> dict:
    """The means of (sum, weight) pairs by name; of "usage", how often each code was taken [K], the perplexity and the
    share of codes that were taken at all."""
    means = {name: total / jnp.maximum(weight, 1e-20) for name, (total, weight) in sums.items() if name != "usage"}
    counts = jnp.asarray(sums["usage"][0])
    return means | {"perplexity": perplexity(counts), "codes_used": (counts > 0).mean()}
