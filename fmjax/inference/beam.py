"""Beam search: the likeliest continuations of a prompt, or targets of a source, instead of random ones.

One program searches for several prompts at once. Each has a group of `num_beams` rows of the cache; after every step
the rows are gathered by the beams that go on. As in transformers, a beam that draws a stop token is finished if it is
among the best `num_beams` candidates of its step, and a group ends when none of its running beams can still become
better than its worst finished one.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.errors import InputError
from fmjax.inference import decoding
from fmjax.inference.checks import check_whole, is_number, not_finite
from fmjax.inference.decoding import Weights
from fmjax.inference.engine import Engine
from fmjax.inference.engine_programs import PACKED_PROMPTS, PACKED_TOKENS, TRACES, Form
from fmjax.inference.engine_requests import PromptRequest
from fmjax.inference.rows import bucket
from fmjax.inference.sampler import Uses, only_allowed
from fmjax.layers.checks import check_choice
from fmjax.layers.held import KINDS
from fmjax.parallel import watch
from fmjax.parallel.placement import whole

NORMALIZATIONS = ("gnmt", "power")


@dataclasses.dataclass(frozen=True)
class Beam:
    """A finished beam.

    Attributes:
      tokens: drawn tokens; the stop token that ended them is the last.
      score: log-probability of them all, divided by the length penalty.
      finish: "stop", "length" or "context".
    """

    tokens: list[int]
    score: float
    finish: str


class Search(NamedTuple):
    """The state of a search for G prompts with N beams each."""

    cache: Any  # G * N rows
    tokens: jax.Array  # int32 [G, N, T], running
    scores: jax.Array  # float32 [G, N], their log-probabilities, descending
    last: jax.Array  # int32 [G, N], the next inputs
    finished: jax.Array  # int32 [G, N, T]
    finished_scores: jax.Array  # float32 [G, N], divided by the penalty, descending; -inf for none
    finished_lengths: jax.Array  # int32 [G, N]
    open: jax.Array  # bool [G]
    broken: jax.Array  # int32 [G], the step at which the logits were not finite, which ends the search; -1 for none


def length_penalty(lengths, alpha, normalization: str):
    """What the log-probability of `lengths` tokens (the stop token among them) is divided by.

    "gnmt" is ((5 + length) / 6) ** alpha (Wu et al. 2016, https://arxiv.org/abs/1609.08144, eq. 14), which Vaswani et
    al. 2017 use with alpha 0.6; "power" is length ** alpha, which transformers calls `length_penalty`.
    """
    lengths = jnp.asarray(lengths, jnp.float32)
    return ((5 + lengths) / 6 if normalization == "gnmt" else lengths) ** alpha


def _gather(tree, index):
    """Of [G, N, ...] the beams `index` [G, M] of each group: [G, M, ...]."""
    return jax.tree.map(lambda x: jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), 1), tree)


def _start(cache, last, limits, num_beams: int, length: int) -> Search:
    """A search from a cache that holds each prompt in the first row of its group; last int32 [G], limits int32 [G]."""
    groups = last.shape[0]
    first = jnp.repeat(jnp.arange(groups) * num_beams, num_beams)
    shape = (groups, num_beams)
    # Equal beams would stay equal: only the first one counts at first.
    scores = jnp.where(jnp.arange(num_beams) == 0, 0.0, -jnp.inf) + jnp.zeros((groups, 1))
    return Search(
        cache=jax.tree.map(lambda x: x[first], cache),
        tokens=jnp.full((*shape, length), -1, jnp.int32),
        scores=scores,
        last=jnp.broadcast_to(last[:, None], shape),
        finished=jnp.full((*shape, length), -1, jnp.int32),
        finished_scores=jnp.full(shape, -jnp.inf),
        finished_lengths=jnp.zeros(shape, jnp.int32),
        open=limits > 0,
        broken=jnp.full(groups, -1, jnp.int32),
    )


def _step(form: Form, weights: Weights, search: Search, step, limits, stop_ids, alpha, normalization: str) -> Search:
    """Draws token number `step` of every open group."""
    groups, beams = search.scores.shape
    active = jnp.repeat(search.open, beams)
    logits, cache = decoding.step(form.module, weights, search.cache, search.last.reshape(-1), active)
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    vocab = logprobs.shape[-1]
    broken = jnp.any(jnp.isnan(logprobs).reshape(groups, -1), axis=-1) & search.open
    logprobs = only_allowed(logprobs, form.num_tokens, form.banned_ids)
    candidates = (search.scores[..., None] + logprobs.reshape(groups, beams, vocab)).reshape(groups, -1)
    # Enough that `num_beams` go on even if every beam's best tokens are the stop tokens.
    count = min((1 + len(stop_ids)) * beams, beams * vocab)
    scores, index = jax.lax.top_k(candidates, count)
    parent, token = index // vocab, (index % vocab).astype(jnp.int32)
    tokens = _gather(search.tokens, parent).at[:, :, step].set(token)
    length = step + 1
    ends = jnp.any(token[..., None] == stop_ids, axis=-1) | (length >= limits)[:, None]

    done = ends & (jnp.arange(count) < beams) & search.open[:, None]
    normalized = jnp.where(done, scores / length_penalty(length, alpha, normalization), -jnp.inf)
    pool_scores = jnp.concatenate([search.finished_scores, normalized], axis=1)
    pool = (
        jnp.concatenate([search.finished, tokens], axis=1),
        jnp.concatenate([search.finished_lengths, jnp.broadcast_to(length, token.shape)], axis=1),
    )
    finished_scores, kept = jax.lax.top_k(pool_scores, beams)
    finished, finished_lengths = _gather(pool, kept)

    running, going = jax.lax.top_k(jnp.where(ends, -jnp.inf, scores), beams)
    tokens, token, parent = _gather((tokens, token, parent), going)
    rows = (jnp.arange(groups)[:, None] * beams + parent).reshape(-1)
    best = running[:, 0] / length_penalty(limits, alpha, normalization)
    return Search(
        cache=jax.tree.map(lambda x: x[rows], cache),
        tokens=tokens,
        scores=running,
        last=token,
        finished=finished,
        finished_scores=finished_scores,
        finished_lengths=finished_lengths,
        open=search.open & (best > finished_scores[:, -1]) & ~broken,
        broken=jnp.where(broken, step, search.broken),
    )


def _search(
    form: Form, weights: Weights, cache, last, limits, stop_ids, alpha, num_beams: int, length: int, normalization: str
):
    """(tokens int32 [G, N, T], lengths int32 [G, N], scores float32 [G, N]) of the finished beams, best first, and the
    step at which a search met logits that are not finite, int32 [G] or -1.

    Args:
      cache: G * num_beams rows, the first of each group holding the prompt but its last token.
      last: int32 [G], that token.
      limits: int32 [G], tokens that may be drawn, at most `length`; 0 for no search.
      stop_ids: int32 [S]; -1 matches nothing.
      alpha, normalization: see `length_penalty`.
    """
    TRACES["beam_search"] += 1

    def unfinished(carry):
        step, search = carry
        return (step < length) & jnp.any(search.open)

    def body(carry):
        step, search = carry
        return step + 1, _step(form, weights, search, step, limits, stop_ids, alpha, normalization)

    with nn.logical_axis_rules(form.rules):
        search = _start(cache, last, limits, num_beams, length)
        _, search = jax.lax.while_loop(unfinished, body, (0, search))
    return whole((search.finished, search.finished_lengths, search.finished_scores, search.broken))


def _prefill(form: Form, weights: Weights, cache, packed):
    TRACES["beam_prefill"] += 1
    with nn.logical_axis_rules(form.packed_rules):
        return decoding.prefill(form.module, weights, cache, packed)[1]


def _empty(form: Form, rows: int, max_length: int, source_length: int | None):
    with nn.logical_axis_rules(form.rules):
        return decoding.init_cache(form.module, rows, max_length, source_length, form.cache)


@functools.cache
def programs():
    """(empty cache, prefill, search), jitted."""
    return (
        jax.jit(_empty, static_argnums=(0, 1, 2, 3)),
        jax.jit(_prefill, static_argnums=0, donate_argnums=2),
        jax.jit(_search, static_argnums=(0, 7, 8, 9)),
    )


def beam_search(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    *,
    num_beams: int = 4,
    max_new_tokens: int = 64,
    length_penalty: float = 0.6,
    normalization: str = "gnmt",
    stop_ids: Sequence[int] = (),
    num_results: int = 1,
    batch_size: int | None = None,
    cache: str = "float",
) -> list[list[Beam]]:
    """The best continuations of each prompt.

    Args:
      engine: the model; for an encoder-decoder the prompts are sources.
      prompts: token ids, as for `Engine.run`.
      num_beams: beams a prompt; 1 is greedy search.
      max_new_tokens: tokens drawn at most.
      length_penalty: alpha; 0 compares log-probabilities, more favours longer beams.
      normalization: "gnmt" or "power", see the function `length_penalty`.
      stop_ids: tokens that finish a beam, usually the end of text.
      num_results: finished beams wanted of each prompt, at most `num_beams`; fewer where fewer are possible.
      batch_size: rows of the cache; None is the engine's. At least one group of beams is searched at a time.
      cache: what keys and values are held in, as for `Engine.run`.

    Returns: for each prompt in order its beams, best first.
    Raises: InputError for a prompt that cannot be continued, or a bad value; RunError for logits that are not finite.
    """
    batch_size = engine.batch_size if batch_size is None else batch_size
    check_options(num_beams, max_new_tokens, length_penalty, normalization, num_results, batch_size, cache)
    requests = [PromptRequest(tokens, max_new_tokens) for tokens in prompts]
    for index, request in enumerate(requests):
        engine.check(index, request)
    if not requests:
        return []
    groups = min(max(1, batch_size // num_beams), bucket(len(requests), low=1))
    stops = np.asarray(sorted({*stop_ids}) or [-1], np.int32)
    length = bucket(max(engine.allowed(request) for request in requests), low=16)
    sizes = _sizes(engine, requests)
    options = (np.float32(length_penalty), num_beams, length, normalization)
    form = engine.form(Uses(), groups * num_beams, cache)
    waiting, results = None, []

    def read():
        return _read(len(results), *waiting, stop_ids, num_results)

    for start in range(0, len(requests), groups):
        watch.at("a batch of beam search")
        part = requests[start : start + groups]
        limits = np.asarray([engine.allowed(r) for r in part] + [0] * (groups - len(part)), np.int32)
        found = _dispatch(engine, form, part, limits, stops, options, sizes)
        # Read a batch when the next is on its way.
        if waiting is not None:
            results += read()
        waiting = part, found
    results += read()
    watch.at("what follows the beam search", limited=False)
    return results


def _sizes(engine: Engine, requests: Sequence[PromptRequest]) -> tuple[int, int | None]:
    """(places of the cache, tokens of the sources' rows) that are enough for all requests."""
    longest, context = max(len(request.tokens) for request in requests), getattr(engine.module, "max_length", None)
    source = None if engine.start_id is None else bucket(longest, low=32, high=context)
    return decoding.places(max(map(engine.places, requests)), high=engine.context), source


def check_options(
    num_beams: int = 4, max_new_tokens: int = 64, length_penalty: float = 0.6, normalization: str = "gnmt",
    num_results: int = 1, batch_size: int = 16, cache: str = "float",
) -> None:  # fmt: skip
    """Raises InputError for options of `beam_search` that are not possible."""
    check_whole(1, num_beams=num_beams, max_new_tokens=max_new_tokens, num_results=num_results, batch_size=batch_size)
    check_choice("normalization", normalization, NORMALIZATIONS)
    check_choice("cache", cache, KINDS)
    if not (is_number(length_penalty) and length_penalty >= 0):
        raise InputError(f"length_penalty must be a number at least 0, got {length_penalty!r}")
    if num_results > num_beams:
        raise InputError(f"num_results must be from 1 to num_beams = {num_beams}, got {num_results}")


def check_width(engine: Engine, num_beams: int) -> None:
    """Raises InputError for more beams than the vocabulary has tokens, which only an exhaustive search could use."""
    check_whole(1, num_beams=num_beams)
    known = [n for n in (engine.num_tokens, getattr(engine.module, "vocab_size", None)) if n is not None]
    if known and num_beams > min(known):
        raise InputError(f"num_beams={num_beams} is more than the vocabulary's {min(known)} tokens; give fewer")


def _dispatch(engine: Engine, form: Form, requests: Sequence[PromptRequest], limits, stops, options, sizes):
    groups, num_beams = len(limits), options[1]
    empty, prefill, search = programs()
    cache = empty(form, groups * num_beams, *sizes)
    is_source = engine.start_id is not None
    last = np.full(groups, engine.start_id if is_source else 0, np.int32)
    texts = {}
    for group, request in enumerate(requests):
        if not is_source:
            last[group] = request.tokens[-1]
        read = request.tokens if is_source else request.tokens[:-1]
        if len(read):
            texts[group * num_beams] = read
    context = getattr(engine.module, "max_length", None)
    high = None if context is None else max(context, PACKED_TOKENS)
    for rows in _packs({row: len(tokens) for row, tokens in texts.items()}):
        packed = decoding.pack([texts[row] for row in rows], rows, PACKED_PROMPTS, groups * num_beams, high)
        cache = prefill(form, engine.weights, cache, packed)
    return search(form, engine.weights, cache, last, limits, stops, *options)


def _packs(lengths: dict[int, int]) -> list[list[int]]:
    """The rows in groups of at most PACKED_PROMPTS prompts and PACKED_TOKENS tokens, or a single longer prompt."""
    packs: list[list[int]] = []
    size = 0
    for row, length in lengths.items():
        if not packs or len(packs[-1]) == PACKED_PROMPTS or size + length > PACKED_TOKENS:
            packs.append([])
            size = 0
        packs[-1].append(row)
        size += length
    return packs


def _read(first: int, requests, found, stop_ids, num_results) -> list[list[Beam]]:
    """The beams of the requests from number `first` on. Raises RunError for logits that were not finite."""
    tokens, lengths, scores, broken = (np.asarray(x) for x in found)
    results = []
    for group, request in enumerate(requests):
        if broken[group] >= 0:
            raise not_finite(first + group, broken[group])
        beams = []
        for beam in range(num_results):
            if not np.isfinite(scores[group, beam]):
                break
            drawn = tokens[group, beam, : lengths[group, beam]].tolist()
            finish = "length" if len(drawn) >= request.max_new_tokens else "context"
            finish = "stop" if drawn[-1] in stop_ids else finish
            beams.append(Beam(drawn, float(scores[group, beam]), finish))
        results.append(beams)
    return results
