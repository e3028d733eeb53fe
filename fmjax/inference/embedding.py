"""Embeddings of texts: the last layer's output pooled over each text, many texts packed into rows of constant shape."""

import functools
from collections import defaultdict
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fmjax.errors import InputError
from fmjax.inference import counted
from fmjax.inference.rows import bucket, check_lengths, lay, pack_rows, packed_batches, pass_tokens
from fmjax.layers.checks import check_choice
from fmjax.parallel import watch
from fmjax.parallel.placement import whole

POOLINGS = ("mean", "first", "last")
TRACES: dict[str, int] = defaultdict(int)
"""How often the program was traced; tests hold it to one compilation a row length."""


@functools.partial(jax.jit, static_argnames=("module", "pooling", "count"))
def pooled(module: nn.Module, params, tokens, segment_ids, positions, owners, *, pooling: str, count: int) -> jax.Array:
    """Float32 [count, D], one vector a text.

    Args:
      tokens, segment_ids, positions: int32 [B, T], packed rows.
      owners: int32 [B, T], the text each token belongs to; -1, which is the last place, for padding.
      pooling: see `embed`.
    """
    TRACES["embed"] += 1
    hidden = module.apply(
        {"params": params}, tokens, segment_ids=segment_ids, positions=positions, method="hidden"
    ).astype(jnp.float32)
    hidden, owners, positions = hidden.reshape(-1, hidden.shape[-1]), owners.reshape(-1), positions.reshape(-1)
    lengths = jnp.zeros(count + 1, jnp.int32).at[owners].add(1)
    if pooling == "mean":
        weights = 1.0 / jnp.maximum(lengths[owners], 1)
    else:
        wanted = 0 if pooling == "first" else lengths[owners] - 1
        weights = (positions == wanted).astype(jnp.float32)
    return whole(jnp.zeros((count + 1, hidden.shape[-1])).at[owners].add(hidden * weights[:, None])[:count])


def embed(
    module: nn.Module,
    params,
    texts: Sequence[Sequence[int]],
    *,
    pooling: str = "mean",
    normalize: bool = False,
    tokens_per_batch: int | None = None,
    progress: str | None = None,
) -> np.ndarray:
    """Vectors of texts: float32 [N, D].

    Args:
      module: a model with the method `hidden(tokens, segment_ids, positions)`, [B, T, D].
      texts: token ids, at least one each and at most `module.max_length`; special tokens are up to the caller.
      pooling: "mean" over a text's tokens, its "first" (BERT's [CLS]) or its "last" (decoders).
      normalize: whether to scale each vector to length 1.
      tokens_per_batch: tokens of one forward pass, padding included; None goes by the platform.
      progress: label of a progress bar over the texts; None shows none.

    Raises InputError for a model without `hidden`, and for an empty or too long text.
    """
    check_choice("pooling", pooling, POOLINGS)
    context = getattr(module, "max_length", None)
    _check(module, texts, context)
    counted.read(map(len, texts))
    found: np.ndarray | None = None
    with tqdm(total=len(texts), desc=progress, disable=progress is None, unit=" texts", dynamic_ncols=True) as bar:
        for length, group in _by_length(texts, context):
            packed = pack_rows([len(texts[i]) for i in group], length)
            for part, height in packed_batches(packed, length, tokens_per_batch or pass_tokens()):
                watch.at("a batch of embeddings")
                part = [[group[i] for i in row] for row in part]
                for indices, vectors in _pieces(module, params, texts, part, (height, length), pooling):
                    found = np.zeros((len(texts), vectors.shape[1]), np.float32) if found is None else found
                    found[indices] = vectors
                    bar.update(len(indices))
    watch.at("what follows the embeddings", limited=False)
    if found is None:
        return np.zeros((0, module.hidden_size), np.float32)
    if normalize:
        found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return found


def _check(module, texts, context) -> None:
    if not hasattr(module, "hidden"):
        raise InputError(
            f"{type(module).__name__} gives no embeddings: it has no method hidden(tokens, segment_ids, ...)"
        )
    for index, text in enumerate(texts):
        if not len(text):
            raise InputError(f"text {index} has no tokens, so there is nothing to embed")
    check_lengths(texts, context, "shorten or split it")


def _by_length(texts, context):
    """(row length, indices): short texts share short rows, so that attention does not pay for the longest."""
    groups = defaultdict(list)
    for index in sorted(range(len(texts)), key=lambda i: len(texts[i])):
        groups[bucket(max(len(texts[index]), 256), high=None if context is None else max(context, 1))].append(index)
    yield from groups.items()


def _pieces(module, params, texts, packed, shape, pooling):
    """Runs packed rows; texts beyond a fixed number a call, which very short texts may exceed, go to another call."""
    count = bucket(max(1, shape[0] * shape[1] // 16), low=1)
    members = [(r, i) for r, row in enumerate(packed) for i in row]
    for begin in range(0, len(members), count):
        rows, indices = zip(*members[begin : begin + count])
        arrays = lay([texts[i] for i in indices], rows, shape)
        vectors = pooled(module, params, *arrays, pooling=pooling, count=count)
        yield list(indices), np.asarray(vectors)[: len(indices)]
