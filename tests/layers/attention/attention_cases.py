"""The cases that every attention backend is tested with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.layers.attention import attention
from fmjax.layers.attention.image_masks import ImageMask


def normal(drawn: np.random.Generator, shape) -> jax.Array:
    """As `jax.random.normal`, which each shape would compile."""
    return jnp.asarray(drawn.normal(size=shape), jnp.float32)


@dataclasses.dataclass(frozen=True)
class Case:
    length: int = 24
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 8
    causal: bool = True
    window: int | None = None
    packed: bool = False
    keys: int | None = None
    rows: int = 2
    mask: ImageMask | None = None

    def arrays(self):
        s, drawn = self.keys or self.length, np.random.default_rng(0)
        draw = lambda length, heads: normal(drawn, (self.rows, length, heads, self.head_dim))
        return draw(self.length, self.heads), draw(s, self.kv_heads), draw(s, self.kv_heads), self.segment_ids()

    def segment_ids(self):
        """Two documents and, in every other row, some padding; of keys too, where there are others."""
        if not self.packed:
            return None

        def ids(length):
            bounds = np.array([[length // 3, length - 4], [length // 2, length]] * self.rows)[: self.rows]
            index = np.arange(length)[None]
            ids = 1 + (index >= bounds[:, :1])
            return jnp.asarray(np.where(index >= bounds[:, 1:], 0, ids), jnp.int32)

        return ids(self.length) if self.keys is None else (ids(self.length), ids(self.keys))

    def run(self, backend, q, k, v, ids):
        masks = dict(segment_ids=ids, causal=self.causal, window=self.window, mask=self.mask)
        return attention(q, k, v, **masks, backend=backend)

    def outputs_and_gradients(self, backend, q, k, v, ids, dtype=None):
        """(output, gradients to q, k and v of a weighted sum of it)."""
        weight = normal(np.random.default_rng(9), q.shape)

        def weighted(q, k, v):
            out = self.run(backend, *(x.astype(dtype or x.dtype) for x in (q, k, v)), ids)
            return jnp.sum(out * weight), out

        gradients, out = jax.jit(jax.grad(weighted, argnums=(0, 1, 2), has_aux=True))(q, k, v)
        return out, gradients


CASES = {
    "causal": Case(),
    "bidirectional": Case(causal=False),
    "odd": Case(length=37, head_dim=5),
    "packed": Case(length=37, packed=True),
    "packed_bidirectional": Case(packed=True, causal=False),
    "grouped": Case(kv_heads=2, packed=True),
    "multi_query": Case(kv_heads=1, head_dim=40),
    "window": Case(length=37, window=6, kv_heads=2),
    "window_packed": Case(length=37, window=6, packed=True, head_dim=96),
    "window_of_one": Case(window=1),
    "banded": Case(length=37, window=6, causal=False),
    "banded_packed": Case(length=37, window=6, causal=False, packed=True, kv_heads=2),
    "cross": Case(causal=False, keys=19, kv_heads=2),
    "cross_packed": Case(length=37, causal=False, keys=51, packed=True),
    "image_row": Case(length=30, kv_heads=2, mask=ImageMask("row", 5, 5)),
    "image_column": Case(length=29, packed=True, mask=ImageMask("column", 7, 5)),
    "image_convolution": Case(length=40, mask=ImageMask("convolution", 4, 6, 3)),
}


def assert_same(found, expected, tolerance):
    """Arrays, or trees of them, agree absolutely."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), found, expected)
