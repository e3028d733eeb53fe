"""Models that decode with a cache, decoders and encoder-decoders, behind three functions.

A module takes part by having

    init_cache(batch_size, max_length) -> cache     a pytree whose leaves have the batch's rows first
    apply(variables, tokens [B, 1], segment_ids=active [B, 1], cache=cache) -> (logits [B, 1, V], cache)
        appends a token to every row whose segment id is 1
    apply(variables, tokens [N, P], segment_ids=, positions=, cache=cache, slots=rows [N, P]) -> (logits, cache)
        packed prompts become the content of the rows that `slots` names; segment id 0 is padding

and, if it has them, `features` (`fmjax.models.decoder.Decoder`), so that logits are computed only where they are
wanted, and `unrolled(params) -> (module, params)`, the form to decode with. An encoder-decoder has `prefill` and
`decode` instead of that `apply` (`fmjax.models.transformer.EncoderDecoder`), and its prompts are sources.

What a draft proposes (`fmjax.inference.drafts`) can be read by one that also has

    init_cache(batch_size, max_length, spare) -> cache
        with "lengths" int32 [B]: `features` of tokens [B, T], T at most spare + 1, appends those whose segment id is 1
    rewound(cache, lengths) -> cache
        takes back all but the first of the tokens that the last pass appended to a row
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.errors import InputError
from fmjax.inference.kinds import has_cache, reads_source
from fmjax.inference.rows import bucket, lay
from fmjax.layers.embed import output_logits
from fmjax.layers.kv_cache import CacheStep, in_few_bits
from fmjax.layers.weights import Turned, as_computed
from fmjax.parallel.sharding import path_name


class Packed(NamedTuple):
    """Prompts packed into one row of length P.

    Attributes:
      tokens, segment_ids, positions, slots: int32 [1, P]; prompt i has segment id i + 1 and goes to the row `slots`.
      last: int32 [R], where the last token of each prompt is; 0 beyond the last prompt.
      rows: int32 [R], the row of each; beyond the last prompt one that does not exist.
    """

    tokens: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    last: np.ndarray
    rows: np.ndarray


def check_can_generate(module: nn.Module) -> None:
    """Raises InputError for a module without a cache."""
    if not has_cache(module):
        raise InputError(
            f"{type(module).__name__} cannot generate: it has no init_cache(batch_size, max_length), which the "
            "engine decodes with; decoder language models such as 'gpt' and 'llama' have it"
        )


class Weights(NamedTuple):
    """What decoding reads: parameters, and the output head where it is not taken from them as they are."""

    params: Any
    head: dict | None = None


def prepare(module: nn.Module, params) -> tuple[nn.Module, Weights]:
    """The form to decode with: without a scan over layers where the module has one.

    On one CPU, in float32, the kernels of a Transformer's blocks are `Turned`, as is an output head that is tied to the
    embedding, which lies like that as it is. What is in this form already stays where it is.
    """
    check_can_generate(module)
    params = as_computed(params)
    if hasattr(module, "unrolled"):
        module, params = module.unrolled(params)
    if jax.default_backend() != "cpu":
        return module, Weights(params)
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    del params
    for index, (path, leaf) in enumerate(leaves):
        turns = _is_whole(leaf) and is_turned(path_name(path), leaf.shape, leaf.dtype)
        leaves[index] = Turned(_transposed(leaf)) if turns else leaf
    params = structure.unflatten(leaves)
    if reads_source(module) or not (hasattr(module, "features") and hasattr(module, "head")):
        return module, Weights(params)
    head = module.apply({"params": params}, method="head")
    embedding = head.pop("embedding", None)
    if not _is_whole(embedding) or embedding.dtype != jnp.float32:
        return module, Weights(params)
    return module, Weights(params, head | {"kernel": Turned(embedding)})


def is_turned(path: str, shape: tuple[int, ...], dtype) -> bool:
    """Whether `prepare` turns the parameter at a path such as "stack/blocks_0/mlp/up/kernel"."""
    *parents, name = path.split("/")
    while name == "base":  # of a kernel with adapters
        *parents, name = parents
    inside = any(parent.startswith("blocks_") for parent in parents)
    fits = len(shape) == 2 and jnp.dtype(dtype) == jnp.float32
    return jax.default_backend() == "cpu" and inside and name == "kernel" and fits


def _is_whole(leaf) -> bool:
    """Whether a parameter lies on one device."""
    return isinstance(leaf, jax.Array) and len(leaf.devices()) == 1


@jax.jit
def _transposed(table):
    return table.T


def places(length: int, high: int | None = None) -> int:
    """Places of a cache for `length` positions: 64, 96, 128, 192, 256, ..., a power of two or three halves of one."""
    size = bucket(length, low=64)
    size = 3 * size // 4 if length <= 3 * size // 4 and size > 64 else size
    return size if high is None else min(size, high)


def pack(prompts: Sequence[Sequence[int]], rows: Sequence[int], capacity: int, batch_size: int, high=None) -> Packed:
    """Packs `prompts` for the first of the cache's `rows`; P is the bucket of their lengths' sum, R is `capacity`."""
    length = bucket(sum(map(len, prompts)), low=32, high=high)
    laid = lay(prompts, [0] * len(prompts), (1, length))
    slots = np.asarray([*rows, 0], np.int32)[laid.owners]
    last, owners = np.zeros(capacity, np.int32), np.full(capacity, batch_size, np.int32)
    last[: len(prompts)] = np.cumsum([*map(len, prompts)]) - 1
    owners[: len(prompts)] = rows[: len(prompts)]
    return Packed(laid.tokens, laid.segment_ids, laid.positions, slots, last, owners)


def init_cache(
    module: nn.Module, batch_size: int, max_length: int, source_length: int | None = None, kept: str = "float",
    spare: int = 0,
):  # fmt: skip
    """The module's empty cache.

    Args:
      source_length: for encoder-decoders.
      kept: "float", or "int8" or "int4", in which keys and values are then held (`fmjax.layers.kv_cache.in_few_bits`).
      spare: for those that can be rewound.

    Raises InputError for a module whose cache is none of `fmjax.layers.kv_cache`.
    """
    options = (source_length,) if reads_source(module) else (spare,) if spare else ()
    cache = module.init_cache(batch_size, max_length, *options)
    if kept == "float":
        return cache
    entries = cache.get("layers", ()) if isinstance(cache, dict) else ()
    if not entries or not all(isinstance(entry, dict) and {"key", "value"} <= entry.keys() for entry in entries):
        raise InputError(f"cache = {kept!r}: the cache of {type(module).__name__} holds no keys and values of layers")
    return in_few_bits(cache, kept)


def prefill(module: nn.Module, weights: Weights, cache, packed: Packed):
    """(logits [R, V] after each prompt, cache); None as logits of an encoder-decoder, whose targets are still empty."""
    variables = {"params": weights.params}
    arrays = dict(segment_ids=packed.segment_ids, positions=packed.positions, cache=cache, slots=packed.slots)
    if reads_source(module):
        return None, module.apply(variables, packed.tokens, **arrays, method="prefill")
    if hasattr(module, "features"):
        hidden, head, cache = module.apply(variables, packed.tokens, **arrays, method="features")
        return output_logits(hidden.reshape(-1, hidden.shape[-1])[packed.last], weights.head or head), cache
    logits, cache = module.apply(variables, packed.tokens, **arrays)
    return logits.reshape(-1, logits.shape[-1])[packed.last], cache


def step(module: nn.Module, weights: Weights, cache, tokens, active):
    """(logits [B, V], cache) after appending `tokens` [B] to the `active` (bool [B]) rows."""
    variables = {"params": weights.params}
    arrays = dict(segment_ids=active[:, None].astype(jnp.int32), cache=cache)
    if weights.head is not None:
        hidden, _, cache = module.apply(variables, tokens[:, None], **arrays, method="features")
        return output_logits(hidden[:, 0], weights.head), cache
    method = "decode" if reads_source(module) else None
    logits, cache = module.apply(variables, tokens[:, None], **arrays, method=method)
    return logits[:, 0], cache


def extend(module: nn.Module, weights: Weights, cache, tokens, real):
    """(hidden [B, T, D], cache) after appending those of the tokens [B, T] that are `real` (bool [B, T], padding at a
    row's end alone), of a module with `features`."""
    arrays = dict(segment_ids=real.astype(jnp.int32), cache=cache)
    hidden, _, cache = module.apply({"params": weights.params}, tokens, **arrays, method="features")
    return hidden, cache


def logits_of(module: nn.Module, weights: Weights, hidden):
    """Logits float32 [..., V] of what `extend` gives."""
    return output_logits(hidden, weights.head or module.apply({"params": weights.params}, method="head"))


class Entered(NamedTuple):
    """What goes through a stack that is run part by part: inputs of `fmjax.layers.transformer.decode_part`."""

    x: jax.Array
    segment_ids: jax.Array
    positions: jax.Array
    step: CacheStep


def enter(module: nn.Module, weights: Weights, cache, tokens, segment_ids, **where) -> Entered:
    """What goes into the first layer of a `Decoder`; `where` are positions and slots of packed prompts."""
    arrays = dict(segment_ids=segment_ids, cache=cache, **where)
    x, positions, step = module.apply({"params": weights.params}, tokens, **arrays, method="enter")
    return Entered(x, segment_ids, positions, step)


def leave(module: nn.Module, weights: Weights, x, rows):
    """Logits [R, V] of the flattened `rows` [R] of what the last layer gave."""
    hidden, head = module.apply({"params": weights.params}, x, method="leave")
    return output_logits(hidden.reshape(-1, hidden.shape[-1])[rows], weights.head or head)
