"""Sums over what products with weights are given, for calibration: made where the product is, so that no activation is
kept.

    _, state = module.apply({"params": p}, tokens, mutable=["gram"])
    state["gram"]["stack"]["blocks"]["attention"]["query"]["inputs"]        # [layers, in, in]

Two collections may be asked for, each a tree like that of the parameters whose leaves lie at "inputs":
    gram       the sum of x x^T, float32 [in, in]
    channels   a dict of "count" [], and of each input the sums "absolute" and "square" and the largest magnitude
               "largest", float32 [in]
over all rows x of the product's input [..., in], or those that the collection `counted` tells of it, bool [...] under
"rows". Under a scan each leaf has a leading layer axis. When neither is asked for nothing is in the compiled program.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

COLLECTIONS = ("gram", "channels")


def observe(module: nn.Module, x: jax.Array) -> None:
    """Adds the input x [..., in] of `module`'s product to the collections that are asked for."""
    if module.is_initializing():
        return
    for name, sums in (("gram", _gram), ("channels", _channels)):
        if module.is_mutable_collection(name):
            rows = x.astype(jnp.float32)
            if module.has_variable("counted", "rows"):
                counted = module.get_variable("counted", "rows")[..., None]
            else:
                counted = jnp.ones((*x.shape[:-1], 1), bool)
            own = sums(jnp.where(counted, rows, 0.0).reshape(-1, x.shape[-1]), counted)
            module.sow(name, "inputs", own, init_fn=lambda: None, reduce_fn=added)


def _gram(x, counted):
    return jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST)


def _channels(x, counted):
    size = jnp.abs(x)
    return {
        "count": jnp.sum(counted, dtype=jnp.float32), "absolute": size.sum(0), "square": (size * size).sum(0),
        "largest": size.max(0),
    }  # fmt: skip


def added(before, new):
    """Two observations of one product as one: sums, and the largest of both; `before` may be None."""
    if before is None:
        return new
    return jax.tree_util.tree_map_with_path(
        lambda path, a, b: jnp.maximum(a, b) if path[-1:] == (LARGEST,) else a + b, before, new
    )


LARGEST = jax.tree_util.DictKey("largest")
