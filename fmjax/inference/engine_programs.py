"""The compiled programs of generation: `prefill` reads prompts into rows of a cache, `decode` draws tokens.

`prefill` reads several prompts, packed into one row of tokens without padding between them, into free rows of the cache
and draws the first token of each. `decode` draws up to CHUNK tokens a row in one dispatch, feeding each back. Cache and
state are donated and never change shape, and all numbers of a request are traced, so that a run of any length uses one
decode program and one prefill program for each power of two of prompt length.
"""

import functools
from collections import defaultdict
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.inference import decoding
from fmjax.inference.decoding import Packed, Weights
from fmjax.inference.sampler import Sampling, Settings, Uses, sample
from fmjax.parallel.placement import whole

TRACES: dict[str, int] = defaultdict(int)
"""How often each program was traced; tests hold the engine to compiling once."""

CHUNK = 32
"""Tokens a row that one dispatch of `decode` draws at most."""

PACKED_TOKENS, PACKED_PROMPTS = 512, 8
"""How much one dispatch of `prefill` reads at most, unless a single prompt is longer."""


class State(NamedTuple):
    """The rows between two dispatches; everything but the cache and `seen` is [B]."""

    cache: Any
    token: jax.Array  # the next input
    drawn: jax.Array  # tokens drawn so far: numbers the random keys
    remaining: jax.Array  # tokens it may still draw; 0 in a row that has stopped
    keys: jax.Array  # typed random keys
    settings: Settings
    seen: jax.Array | None  # bool [B, V], tokens of the prompt and drawn; None unless a penalty is used
    allowed: jax.Array | None = None  # uint32 [B, W] (`sampler.only_these`), put there by the host; None likewise


class Starting(NamedTuple):
    """What `prefill` puts into the rows of its prompts, arrays [R]."""

    remaining: np.ndarray
    seed: np.ndarray
    digest: np.ndarray
    copy: np.ndarray
    settings: Settings
    allowed: np.ndarray | None = None  # of the first tokens, as in `State`


class Drawn(NamedTuple):
    """What a chunk has drawn so far: the number of steps, tokens and log-probabilities [B, CHUNK]."""

    steps: jax.Array
    tokens: jax.Array
    logprobs: jax.Array


class Form(NamedTuple):
    """What programs are compiled for.

    Attributes:
      module: the unrolled module.
      uses: parts of the sampler.
      num_tokens, banned_ids: see `sampler.sample`.
      start_id: first input of an encoder-decoder's target; None for a decoder.
      rules: pairs (logical axis, mesh axes) for activations and the cache; empty without a mesh.
      packed_rules: the same for packed prompts, whose single row is not split.
      part: layers of a program, where the host calls several for the stack (`engine_parts`); None for one of all.
      cache: what keys and values are held in, one of `fmjax.layers.held.KINDS`.
      spare: tokens of a pass that may be taken back, where a draft proposes some.
    """

    module: nn.Module
    uses: Uses
    num_tokens: int | None
    start_id: int | None
    rules: tuple
    packed_rules: tuple
    banned_ids: tuple[int, ...] = ()
    part: int | None = None
    cache: str = "float"
    spare: int = 0


def _start(form: Form, batch_size: int, max_length: int, source_length: int | None, vocab_size: int | None) -> State:
    TRACES["start"] += 1
    with nn.logical_axis_rules(form.rules):
        options = source_length, form.cache, form.spare
        cache = decoding.init_cache(form.module, batch_size, max_length, *options)
    zeros = jnp.zeros(batch_size, jnp.int32)
    keys = jnp.broadcast_to(jax.random.key(0), (batch_size,))
    settings = Settings(*(jnp.full(batch_size, value) for value in Sampling(0.0).values))
    seen = jnp.zeros((batch_size, vocab_size), bool) if form.uses.penalty else None
    return State(cache, zeros, zeros, zeros, keys, settings, seen)


def _prefill(form: Form, weights: Weights, state: State, packed: Packed, starting: Starting, stop_ids):
    """(the state with packed prompts in their rows, first tokens int32 [R], their log-probabilities float32 [R]).

    The tokens are -1 for an encoder-decoder, whose first token is the next chunk's.
    """
    TRACES["prefill"] += 1
    with nn.logical_axis_rules(form.packed_rules):
        logits, cache = decoding.prefill(form.module, weights, state.cache, packed)
    return begin_rows(form, logits, state._replace(cache=cache), packed, starting, stop_ids)


def begin_rows(form: Form, logits, state: State, packed: Packed, starting: Starting, stop_ids):
    """What `_prefill` returns, from the logits [R, V] after the prompts and a state whose cache has read them."""
    fold = jax.vmap(jax.random.fold_in)
    keys = fold(fold(jax.vmap(jax.random.key)(starting.seed), starting.digest), starting.copy)
    seen = None
    if form.uses.penalty:
        seen = jnp.zeros((len(packed.rows), state.seen.shape[1]), bool)
        if form.start_id is None:
            owner = jnp.where(packed.segment_ids > 0, packed.segment_ids - 1, len(packed.rows))
            seen = seen.at[owner, packed.tokens].set(True, mode="drop")
        else:
            seen = seen.at[:, form.start_id].set(True)
    if form.start_id is None:
        first = fold(keys, jnp.zeros_like(packed.rows))
        limits = form.num_tokens, seen, form.banned_ids, starting.allowed
        tokens, logprobs = sample(logits, first, starting.settings, form.uses, *limits)
        stopped = jnp.any(tokens[:, None] == stop_ids[None], axis=-1)
        remaining, drawn = jnp.where(stopped, 0, starting.remaining - 1), jnp.ones_like(tokens)
        seen = None if seen is None else seen.at[jnp.arange(len(tokens)), tokens].set(True)
        out = tokens, logprobs
    else:
        tokens = jnp.full_like(packed.rows, form.start_id)
        remaining, drawn = starting.remaining, jnp.zeros_like(tokens)
        out = jnp.full_like(tokens, -1), jnp.zeros(tokens.shape, jnp.float32)

    def put(old, new):
        return old.at[packed.rows].set(new.astype(old.dtype), mode="drop")

    state = State(
        cache=state.cache,
        token=put(state.token, tokens),
        drawn=put(state.drawn, drawn),
        remaining=put(state.remaining, remaining),
        keys=state.keys.at[packed.rows].set(keys, mode="drop"),
        settings=jax.tree.map(put, state.settings, starting.settings),
        seen=None if seen is None else state.seen.at[packed.rows].set(seen, mode="drop"),
        allowed=state.allowed,
    )
    return state, *whole(out)


def _decode(form: Form, weights: Weights, state: State, alive, stop_ids, steps, free_rows):
    """Draws up to `steps` <= CHUNK tokens a row.

    Args:
      alive: bool [B]; other rows are stopped first.
      stop_ids: int32 [S]; drawing one of them ends a row. -1 matches nothing.
      steps, free_rows: int32; it ends after `steps`, or as soon as `free_rows` rows have stopped.

    Returns:
      the next state, tokens int32 [B, CHUNK] with -1 after a row's end, log-probabilities float32 [B, CHUNK].
    """
    TRACES["decode"] += 1

    def unfinished(carry):
        state, drawn = carry
        return (drawn.steps < steps) & ~ended(state, free_rows)

    def body(carry):
        state, drawn = carry
        active = state.remaining > 0
        logits, cache = decoding.step(form.module, weights, state.cache, state.token, active)
        return draw(form, logits, state._replace(cache=cache), drawn, stop_ids)

    with nn.logical_axis_rules(form.rules):
        state, drawn = jax.lax.while_loop(unfinished, body, begin_chunk(state, alive))
    return state, *whole(drawn[1:])


def begin_chunk(state: State, alive) -> tuple[State, Drawn]:
    """The state with the rows stopped that are not `alive`, and nothing drawn."""
    shape = len(alive), CHUNK
    drawn = Drawn(jnp.int32(0), jnp.full(shape, -1, jnp.int32), jnp.zeros(shape, jnp.float32))
    return state._replace(remaining=jnp.where(alive, state.remaining, 0)), drawn


def ended(state: State, free_rows) -> jax.Array:
    """Whether `free_rows` rows have stopped, or all."""
    stopped = jnp.sum(state.remaining == 0)
    return (stopped >= len(state.remaining)) | (stopped >= free_rows)


def draw(form: Form, logits, state: State, drawn: Drawn, stop_ids) -> tuple[State, Drawn]:
    """Draws a token a row from logits [B, V]; `state` has the cache they come with."""
    active = state.remaining > 0
    keys = jax.vmap(jax.random.fold_in)(state.keys, state.drawn)
    limits = form.num_tokens, state.seen, form.banned_ids, state.allowed
    tokens, logprobs = sample(logits, keys, state.settings, form.uses, *limits)
    stopped = jnp.any(tokens[:, None] == stop_ids[None], axis=-1)
    seen = state.seen
    if seen is not None:
        # An idle row's own token is seen already.
        seen = seen.at[jnp.arange(len(tokens)), jnp.where(active, tokens, state.token)].set(True)
    state = state._replace(
        token=jnp.where(active, tokens, state.token),
        drawn=state.drawn + active,
        remaining=jnp.where(stopped, 0, jnp.maximum(state.remaining - 1, 0)),
        seen=seen,
    )
    return state, Drawn(
        drawn.steps + 1,
        drawn.tokens.at[:, drawn.steps].set(jnp.where(active, tokens, -1)),
        drawn.logprobs.at[:, drawn.steps].set(jnp.where(active, logprobs, 0.0)),
    )


@functools.cache
def programs():
    """(start, prefill, decode), jitted."""
    start = jax.jit(_start, static_argnums=(0, 1, 2, 3, 4))
    return start, *(jax.jit(run, static_argnums=0, donate_argnums=2) for run in (_prefill, _decode))
