"""The compiled programs of generation with a draft: tokens are proposed, and a pass of the model draws what it takes.

`together` makes several passes a dispatch. Where the host has to know what was proposed, it calls `propose` and
`verify` in turn.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.inference import decoding
from fmjax.inference.decoding import Weights
from fmjax.inference.drafts import Passed, Proposals
from fmjax.inference.engine_programs import CHUNK, TRACES, Form, State, ended
from fmjax.inference.sampler import Settings, law, pick
from fmjax.inference.speculation import agreed, rejection, uniform
from fmjax.parallel.placement import whole


class Passes(NamedTuple):
    """What passes drew.

    Attributes:
      number: int32, of passes.
      tokens, logprobs: [B, N, k + 1], -1 for no token.
      proposed, accepted: int32 [B, N], proposals that were decided upon, and those taken; proposed is -1 where the
        draft's logits were not finite.
      passed: bool [B, N], whether the pass was one of the row.
    """

    number: jax.Array
    tokens: jax.Array
    logprobs: jax.Array
    proposed: jax.Array
    accepted: jax.Array
    passed: jax.Array


def begin_passes(rows: int, number: int, width: int) -> Passes:
    """Of `number` passes over `width` tokens a row nothing yet."""
    shape = rows, number
    return Passes(
        jnp.int32(0), jnp.full((*shape, width), -1, jnp.int32), jnp.zeros((*shape, width), jnp.float32),
        jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool),
    )  # fmt: skip


def stopped(state: State, alive) -> State:
    """The state with the rows stopped that are not alive (bool [B])."""
    return state._replace(remaining=jnp.where(alive, state.remaining, 0))


def propose(form: Form, draft, weights: Weights, own_weights, state: State, own, places):
    """(state, own, Proposals) of a draft; `places` int32 is how many the cache has.

    Nothing is proposed for the last one, which a draft that decodes writes its padding to.
    """
    limit = jnp.clip(places - 2 - state.cache["lengths"], 0, draft.tokens)
    limit = jnp.where(state.remaining > 0, limit, 0)
    with nn.logical_axis_rules(form.rules):
        return draft.propose(form, own_weights, weights, state, own, limit)


def inputs(state: State, proposals: Proposals):
    """(tokens [B, T], which of them are real [B, T]) of the pass that reads proposals."""
    tokens = jnp.concatenate([state.token[:, None], proposals.tokens], axis=1)
    real = jnp.arange(tokens.shape[1])[None] <= proposals.count[:, None]
    return tokens, real & (state.remaining > 0)[:, None]


def settle(
    form: Form, draft, state: State, own, proposals: Proposals, passes: Passes, hidden, logits, stop_ids, allowed
):  # fmt: skip
    """(state, own, passes) after a pass over proposals.

    Args:
      state: with the cache that the pass left.
      hidden, logits: [B, T, D] and [B, T, V] of the pass.
      stop_ids: int32 [S]; drawing one of them ends a row.
      allowed: uint32 [B, T, W] (`sampler.only_these`), of each token after the proposals before it; None where all is.
    """
    width = logits.shape[1]
    active, index = state.remaining > 0, jnp.arange(width)[None]
    before = state.cache["lengths"] - jnp.where(active, proposals.count + 1, 0)
    tokens, logprobs, accepted = _drawn(form, state, proposals, logits, allowed)
    stops = jnp.any(tokens[..., None] == stop_ids, axis=-1)
    ends = jnp.cumsum(stops, axis=1) > stops  # behind a stop token
    inside = (index <= accepted[:, None]) & (index < state.remaining[:, None]) & ~ends
    count = jnp.sum(inside, axis=1)
    newest = jnp.take_along_axis(tokens, jnp.maximum(count - 1, 0)[:, None], axis=1)[:, 0]
    seen = state.seen
    if seen is not None:
        # What is seen already stands for what is not drawn.
        new = jnp.where(inside, tokens, state.token[:, None])
        seen = seen.at[jnp.arange(len(new))[:, None], new].set(True)
    own = draft.settle(own, Passed(before, tokens, count, hidden))
    state = state._replace(
        cache=form.module.rewound(state.cache, before + count),
        token=jnp.where(active, newest, state.token),
        drawn=state.drawn + count,
        remaining=jnp.where(jnp.any(stops & inside, axis=1), 0, state.remaining - count),
        seen=seen,
    )
    # Nothing was decided behind the last token that was asked for.
    decided = jnp.where(count > accepted, proposals.count, count)
    put = lambda old, new: old.at[:, passes.number].set(new)
    return state, own, Passes(
        passes.number + 1,
        put(passes.tokens, jnp.where(inside, tokens, -1)),
        put(passes.logprobs, jnp.where(inside, logprobs, 0.0)),
        put(passes.proposed, jnp.where(active, jnp.where(proposals.finite, decided, -1), 0)),
        put(passes.accepted, jnp.where(active, jnp.minimum(accepted, count), 0)),
        put(passes.passed, active),
    )  # fmt: skip


def _drawn(form: Form, state: State, proposals: Proposals, logits, allowed):
    """(tokens [B, T], their log-probabilities, how many proposals were taken [B]): one more than those is drawn."""
    rows, width, _ = logits.shape
    flat = lambda x: None if x is None else x.reshape(rows * width, *x.shape[2:])
    settings = Settings(*(jnp.repeat(x, width) for x in state.settings))
    numbers = state.drawn[:, None] + jnp.arange(width)[None]
    keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(state.keys, numbers)
    seen = None if state.seen is None else _seen_along(state.seen, proposals.tokens)
    found = law(flat(logits), settings, form.uses, form.num_tokens, flat(seen), form.banned_ids, flat(allowed))
    if proposals.laws is None:
        tokens = found.likeliest
        if form.uses.draw:
            tokens = jnp.where(settings.temperature > 0, pick(found.weights, uniform(flat(keys))), tokens)
        tokens = tokens.reshape(rows, width)
        taken = agreed(proposals.tokens, proposals.count, tokens)
    else:
        target = found.probabilities(settings.temperature).reshape(logits.shape)
        tokens, taken = rejection(target, proposals.laws, proposals.tokens, proposals.count, keys)
    return tokens, found.logprobs(flat(tokens)).reshape(rows, width), taken


def _seen_along(seen, tokens):
    """bool [B, k + 1, V]: what was seen [B, V], and the proposals [B, k] before each place."""
    found = [seen]
    for place in range(tokens.shape[1]):
        found.append(found[-1].at[jnp.arange(len(seen)), tokens[:, place]].set(True))
    return jnp.stack(found, axis=1)


def _verify(form: Form, draft, weights: Weights, state: State, own, proposals: Proposals, passes, stop_ids, allowed):
    """As `settle`, with the pass."""
    with nn.logical_axis_rules(form.rules):
        hidden, cache = decoding.extend(form.module, weights, state.cache, *inputs(state, proposals))
        logits, state = decoding.logits_of(form.module, weights, hidden), state._replace(cache=cache)
        return settle(form, draft, state, own, proposals, passes, hidden, logits, stop_ids, allowed)


def _together(
    form: Form, draft, weights: Weights, own_weights, state: State, own, alive, stop_ids, places, steps, free
):  # fmt: skip
    """Makes up to `steps` <= CHUNK passes.

    Args:
      alive, stop_ids, steps, free: as for `engine_programs.programs()[2]`, whose `free_rows` is `free`.
      places: as for `propose`.

    Returns: (state, own, Passes).
    """
    TRACES["together"] += 1

    def unfinished(carry):
        state, _, passes = carry
        return (passes.number < steps) & ~ended(state, free)

    def body(carry):
        state, own, passes = carry
        state, own, proposals = propose(form, draft, weights, own_weights, state, own, places)
        return _verify(form, draft, weights, state, own, proposals, passes, stop_ids, None)

    start = stopped(state, alive), own, begin_passes(len(alive), CHUNK, draft.tokens + 1)
    state, own, passes = jax.lax.while_loop(unfinished, body, start)
    return state, own, Passes(passes.number, *whole(tuple(passes[1:])))


def _propose(form: Form, draft, weights: Weights, own_weights, state: State, own, alive, places):
    TRACES["propose"] += 1
    state, own, proposals = propose(form, draft, weights, own_weights, stopped(state, alive), own, places)
    return state, own, proposals, whole((proposals.tokens, proposals.count))


def _verify_alone(form: Form, draft, weights: Weights, state: State, own, proposals: Proposals, stop_ids, allowed):
    TRACES["verify"] += 1
    passes = begin_passes(len(state.token), 1, proposals.tokens.shape[1] + 1)
    state, own, passes = _verify(form, draft, weights, state, own, proposals, passes, stop_ids, allowed)
    return state, own, Passes(passes.number, *whole(tuple(passes[1:])))


class Programs(NamedTuple):
    """The jitted programs of drafts."""

    start: Any  # a draft's own arrays
    read: Any
    together: Any
    propose: Any
    verify: Any


@functools.cache
def speculation() -> Programs:
    """The programs, called with the form (but `start`) and the draft first."""

    def start(form: Form, draft, batch_size: int, max_length: int):
        with nn.logical_axis_rules(form.rules):
            return draft.start(batch_size, max_length)

    def read(form: Form, draft, own_weights, own, packed):
        with nn.logical_axis_rules(form.packed_rules):
            return draft.read(own_weights, own, packed)

    return Programs(
        jax.jit(start, static_argnums=(0, 1, 2, 3)), jax.jit(read, static_argnums=(0, 1), donate_argnums=3),
        jax.jit(_together, static_argnums=(0, 1), donate_argnums=(4, 5)),
        jax.jit(_propose, static_argnums=(0, 1), donate_argnums=(4, 5)),
        jax.jit(_verify_alone, static_argnums=(0, 1), donate_argnums=(3, 4)),
    )  # fmt: skip
