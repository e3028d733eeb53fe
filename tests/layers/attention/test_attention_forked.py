"""Attention of segments that fork against the definition, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import ConfigError
from fmjax.layers.attention import attention
from fmjax.layers.attention import forked as attention_forked
from fmjax.layers.attention.reference import Forked

# Two rows: (segment id, branch) of each run of tokens, and its length.
ROWS = [
    [((1, 0), 5), ((1, 1), 3), ((1, 2), 4), ((2, 0), 4), ((2, 1), 2), ((2, 2), 1), ((0, 0), 2)],
    [((1, 0), 9), ((2, 0), 1), ((2, 1), 5), ((2, 2), 6)],
]


def forked_rows() -> Forked:
    rows = []
    for runs in ROWS:
        trunk, columns = 0, []
        for (segment, branch), length in runs:
            first = trunk if branch else 0
            trunk = trunk if branch else length
            columns += [(segment, branch, first + i) for i in range(length)]
        rows.append(columns)
    return Forked(*(jnp.asarray(part, jnp.int32) for part in np.moveaxis(np.asarray(rows), -1, 0)))


def by_hand(q, k, v, forked, window):
    """Each branch after its trunk as a sequence of its own, float64."""
    q, k, v, ids, branches, _ = (np.asarray(x) for x in (q, k, v, *forked))
    out = np.zeros(q.shape)
    for b in range(q.shape[0]):
        for segment in set(ids[b]) - {0}:
            for branch in set(branches[b][ids[b] == segment]):
                (line,) = np.nonzero((ids[b] == segment) & np.isin(branches[b], [0, branch]))
                for i, t in enumerate(line):
                    keys = line[max(0, i + 1 - (window or len(line))) : i + 1]
                    for h in range(q.shape[2]):
                        head = h // (q.shape[2] // k.shape[2])
                        logits = k[b, keys, head].astype(float) @ q[b, t, h] / np.sqrt(q.shape[3])
                        weights = np.exp(logits - logits.max())
                        out[b, t, h] = weights @ v[b, keys, head] / weights.sum()
    return out


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("window, kv_heads", [(None, 2), (4, 4)])
def test_a_branch_attends_its_beginning_and_itself(monkeypatch, backend, window, kv_heads):
    monkeypatch.setitem(attention_forked.BLOCK, "cpu", 8)
    forked = forked_rows()
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (2, 21, heads, 8)) for key, heads in zip(keys, (4, kv_heads, kv_heads)))
    out = attention(q, k, v, segment_ids=forked, window=window, backend=backend)
    expected = by_hand(q, k, v, forked, window)
    real = np.asarray(forked.segment_ids > 0)
    np.testing.assert_allclose(np.asarray(out)[real], expected[real], atol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(backend="splash"), "'splash' has no masks of segments that fork"),
        (dict(causal=False), "causal=False"),
        (dict(dropout_rate=0.1), "dropout_rate=0.1"),
        (dict(positions=jnp.zeros((2, 21), jnp.int32)), "positions given"),
    ],
)
def test_what_forked_attention_cannot_do_is_said(options, message):
    x = jnp.zeros((2, 21, 1, 8))
    with pytest.raises(ConfigError, match=message):
        attention(x, x, x, segment_ids=forked_rows(), **options)
