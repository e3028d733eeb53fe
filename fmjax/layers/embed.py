"""Token embedding, learned positions and the output head."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.layers.dense import dense, weight_param
from fmjax.layers.derivatives import with_backward
from fmjax.layers.quantized import QTensor
from fmjax.parallel.logical import constrain


class Embedding(nn.Module):
    """A table [num, features], an array or of few bits, looked up by integer. An index outside the table gives NaN
    rather than a wrong row.

    Attributes:
      num, features: shape of the table.
      names: logical names of its axes.
      stddev: of its normal initialisation.
      dtype: of the rows that are looked up.
    """

    num: int
    features: int
    names: tuple[str, str] = ("vocab", "embed")
    stddev: float = 0.02
    dtype: str = "float32"

    def setup(self):
        init = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), self.names)
        self.embedding = weight_param(self, "embedding", init, (self.num, self.features))

    def __call__(self, index: jax.Array) -> jax.Array:
        """int32 [...] to [..., features]."""
        # Negative numbers would count from the end of the table.
        index = jnp.where(index < 0, self.num, index)
        if isinstance(self.embedding, QTensor):
            return self.embedding.rows(index).astype(self.dtype)

        def with_all_columns(table):
            # A table split both ways cannot be looked up without XLA copying everything.
            return constrain(table, (self.names[0], None))

        def look_up(table, index):
            return (jnp.take(with_all_columns(table.astype(self.dtype)), index, axis=0, mode="fill"),)

        def gradient(args, rows, cotangents):
            """Summed in the table's dtype, not in that of the rows."""
            table, index = args
            total = jnp.zeros_like(table).at[index].add(cotangents[0].astype(table.dtype), mode="drop")
            return (with_all_columns(total),)

        return with_backward(look_up, gradient)(self.embedding, index)[0]


def output_logits(hidden: jax.Array, head: dict) -> jax.Array:
    """Logits of an output head: float32 [..., V] from hidden [..., D].

    Args:
      hidden: in the compute dtype, in which the product is taken; it is accumulated in float32.
      head: {"kernel": [D, V]}, or {"embedding": [V, D]} when tied to the input's table, and optionally {"bias": [V]}.
    """
    tied = "embedding" in head
    weight = head["embedding" if tied else "kernel"]
    return dense(hidden, weight, head.get("bias"), dtype=hidden.dtype, transpose=tied, out_dtype=jnp.float32)
