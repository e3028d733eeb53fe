"""Generation: prompts of token ids in, drawn tokens and their log-probabilities out.

A batch of prompts runs in two programs. `prefill` reads every prompt but its last token into the cache; `decode` then
draws many tokens in one dispatch, feeding each back, until every row has stopped or the chunk is full. Lengths are
rounded up to powers of two and the drawing's numbers are traced, so the programs compile once and are reused for
every later call; the cache is donated from chunk to chunk and never changes shape.
"""

import dataclasses
import functools
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.errors import InputError
from fmjax.inference.sampler import Sampling, sample

TRACES: dict[str, int] = defaultdict(int)
"""How often each program was traced; tests hold the engine to compiling once."""


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some newly drawn tokens of one prompt; `finish` is None while the prompt goes on."""

    index: int
    tokens: list[int]
    logprobs: list[float]
    finish: str | None


@dataclasses.dataclass(frozen=True)
class Completion:
    """What was drawn after one prompt.

    Attributes:
      tokens: drawn tokens; the stop token that ended them is the last.
      logprobs: log-probability of each at the temperature that drew it (`sampler.sample`).
      finish: "stop" (a stop token), "length" (`max_new_tokens` drawn) or "context" (the model's context is full).
    """

    tokens: list[int]
    logprobs: list[float]
    finish: str


class DecodeState(NamedTuple):
    """A batch between two chunks; everything but the cache is [B]."""

    cache: Any
    token: jax.Array  # the next input
    position: jax.Array  # its position
    drawn: jax.Array  # tokens drawn so far: numbers the random keys
    remaining: jax.Array  # tokens it may still draw; 0 once it has stopped


def bucket(length: int, low: int = 16, high: int | None = None) -> int:
    """`length` rounded up to a power of two, at least `low`, at most `high` (which `length` must not exceed)."""
    size = max(low, 1 << max(0, int(length) - 1).bit_length())
    return size if high is None else min(size, high)


@functools.partial(jax.jit, static_argnames=("module", "cache_length"))
def prefill(module: nn.Module, params, tokens, lengths, cache_length: int):
    """A cache of `cache_length` holding each row's first `lengths` [B] of `tokens` [B, T]. The rest is padding."""
    TRACES["prefill"] += 1
    batch, width = tokens.shape
    cache = module.init_cache(batch, cache_length)
    if width:
        index = jnp.arange(width)[None, :]
        real = index < lengths[:, None]
        # The logits are dropped, so XLA removes the vocabulary projection.
        _, cache = module.apply(
            {"params": params},
            jnp.where(real, tokens, 0),
            segment_ids=real.astype(jnp.int32),
            positions=jnp.where(real, index, 0),
            cache=cache,
        )
    return cache


@functools.partial(jax.jit, static_argnames=("module", "method", "steps", "num_tokens"), donate_argnames=("state",))
def decode(
    module: nn.Module, params, state: DecodeState, keys, stop_ids, values, *, method: str, steps: int, num_tokens=None
):
    """Draws up to `steps` tokens a row.

    Args:
      keys: [B] typed random keys; token n of a row is drawn with `fold_in(key, n)`.
      stop_ids: int32 [S]; drawing one of them ends a row. -1 matches nothing.
      values, method, num_tokens: see `sampler.sample`.

    Returns:
      the next state, tokens int32 [B, steps] with -1 after a row's end, log-probabilities float32 [B, steps].
    """
    TRACES["decode"] += 1
    batch = state.token.shape[0]

    def unfinished(carry):
        step, state, _, _ = carry
        return (step < steps) & jnp.any(state.remaining > 0)

    def body(carry):
        step, state, tokens, logprobs = carry
        active = state.remaining > 0
        logits, cache = module.apply(
            {"params": params},
            state.token[:, None],
            segment_ids=active[:, None].astype(jnp.int32),
            positions=state.position[:, None],
            cache=state.cache,
        )
        step_keys = jax.vmap(jax.random.fold_in)(keys, state.drawn)
        drawn, logprob = sample(logits[:, 0], step_keys, values, method, num_tokens)
        stopped = jnp.any(drawn[:, None] == stop_ids[None, :], axis=-1)
        moved = active.astype(jnp.int32)
        state = DecodeState(
            cache=cache,
            token=jnp.where(active, drawn, state.token),
            position=state.position + moved,
            drawn=state.drawn + moved,
            remaining=jnp.where(stopped, 0, jnp.maximum(state.remaining - 1, 0)),
        )
        tokens = tokens.at[:, step].set(jnp.where(active, drawn, -1))
        return step + 1, state, tokens, logprobs.at[:, step].set(jnp.where(active, logprob, 0.0))

    empty = jnp.full((batch, steps), -1, jnp.int32), jnp.zeros((batch, steps), jnp.float32)
    _, state, tokens, logprobs = jax.lax.while_loop(unfinished, body, (0, state, *empty))
    return state, tokens, logprobs


def row_keys(prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """What the random key of each prompt is folded from, uint32 [2, N]: a hash of its tokens, and how often the same
    prompt occurred before it. So a prompt draws the same tokens alone and in any company, and copies draw others.
    """
    seen: dict[int, int] = defaultdict(int)
    parts = []
    for prompt in prompts:
        digest = zlib.crc32(np.asarray(prompt, "<i4").tobytes())
        parts.append((digest, seen[digest]))
        seen[digest] += 1
    return np.asarray(parts, np.uint32).T


@jax.jit
def _fold_keys(seed, digests, copies):
    fold = jax.vmap(jax.random.fold_in)
    base = jnp.broadcast_to(jax.random.key(seed), digests.shape)
    return fold(fold(base, digests), copies)


def check_prompts(module: nn.Module, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raises InputError for what cannot be generated from, before anything is computed."""
    if not hasattr(module, "init_cache"):
        raise InputError(
            f"{type(module).__name__} cannot generate: it has no init_cache(batch_size, max_length), which the "
            "engine decodes with; decoder language models such as 'gpt' and 'llama' have it"
        )
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    context, vocab_size = (getattr(module, name, None) for name in ("max_length", "vocab_size"))
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f"prompt {index} is empty: the model needs a token to start from, such as BOS")
        if context is not None and len(prompt) > context:
            raise InputError(
                f"prompt {index} has {len(prompt)} tokens, more than the model's context of {context}; shorten it"
            )
        unknown = [token for token in prompt if not 0 <= token < vocab_size] if vocab_size else []
        if unknown:
            raise InputError(f"prompt {index} contains token {unknown[0]}; the model has 0..{vocab_size - 1}")


def stream(
    module: nn.Module,
    params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    batch_size: int = 16,
    num_tokens: int | None = None,
    steps: int = 32,
) -> Iterator[Chunk]:
    """Generates, yielding tokens as they come.

    Any number of prompts passes through batches of at most `batch_size`, those of similar length together; the host
    reads after every `steps` tokens a row (fewer: sooner on the screen; more: less time lost between dispatches).
    Arguments as in `generate`.
    """
    check_prompts(module, prompts, max_new_tokens)
    settings = _Settings(
        max_new_tokens,
        Sampling(temperature, top_k, top_p),
        random_keys=_fold_keys(seed, *row_keys(prompts)) if prompts else None,
        stop_ids=frozenset(stop_ids),
        rows=bucket(min(batch_size, max(1, len(prompts))), low=1),  # one shape for every batch, the last included
        steps=steps,
        num_tokens=num_tokens,
    )
    if hasattr(module, "unrolled"):
        module, params = module.unrolled(params)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), settings.rows):
        yield from _run_batch(module, params, prompts, order[start : start + settings.rows], settings)


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What all batches of one call share."""

    max_new_tokens: int
    sampling: Sampling
    random_keys: jax.Array | None  # one a prompt
    stop_ids: frozenset[int]
    rows: int
    steps: int
    num_tokens: int | None


def _run_batch(module, params, prompts, group: list[int], settings: _Settings) -> Iterator[Chunk]:
    """Yields the chunks of one batch: the prompts with indices `group`. Rows beyond them stay idle."""
    rows, context = settings.rows, getattr(module, "max_length", None)
    lengths, last, allowed = np.zeros((3, rows), np.int32)
    for row, index in enumerate(group):
        lengths[row] = len(prompts[index])
        last[row] = prompts[index][-1]
        # The last token drawn is never an input: one more fits than the context has places left.
        room = settings.max_new_tokens if context is None else context - lengths[row] + 1
        allowed[row] = min(settings.max_new_tokens, room)
    prefix = np.maximum(lengths - 1, 0)
    width = bucket(prefix.max(), high=context) if prefix.max() else 0
    tokens = np.zeros((rows, width), np.int32)
    for row, index in enumerate(group):
        tokens[row, : prefix[row]] = prompts[index][:-1]
    cache_length = bucket(max(width, (prefix + allowed).max()), low=64, high=context)

    cache = prefill(module, params, tokens, prefix, cache_length=cache_length)
    state = DecodeState(cache, *map(jnp.array, (last, prefix, np.zeros_like(prefix), allowed)))
    keys = settings.random_keys[np.asarray(group + group[:1] * (rows - len(group)))]
    stops = np.asarray(sorted(settings.stop_ids) or [-1], np.int32)
    drawn = np.zeros(rows, np.int64)
    alive = set(range(len(group)))
    pending = []
    while alive:
        state, *chunk = decode(
            module, params, state, keys, stops, settings.sampling.values,
            method=settings.sampling.method, steps=settings.steps, num_tokens=settings.num_tokens,
        )  # fmt: skip
        pending.append(chunk)
        # Read a chunk only when the next is on its way, so that the device does not wait for the host. A chunk begun
        # after every row has stopped returns at once.
        if len(pending) == 2:
            yield from _read_chunk(*pending.pop(0), group, alive, drawn, allowed, settings)


def _read_chunk(tokens, logprobs, group, alive: set[int], drawn, allowed, settings: _Settings) -> Iterator[Chunk]:
    """Waits for a chunk, counts it into `drawn`, removes rows that ended from `alive`."""
    tokens, logprobs = np.asarray(tokens), np.asarray(logprobs)
    for row in sorted(alive):
        count = int((tokens[row] >= 0).sum())
        new = tokens[row, :count].tolist()
        drawn[row] += count
        finish = None
        if new and new[-1] in settings.stop_ids:
            finish = "stop"
        elif drawn[row] >= allowed[row]:
            finish = "length" if drawn[row] >= settings.max_new_tokens else "context"
        if finish:
            alive.discard(row)
        yield Chunk(group[row], new, logprobs[row, :count].tolist(), finish)


def generate(
    module: nn.Module,
    params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    batch_size: int = 16,
    num_tokens: int | None = None,
) -> list[Completion]:
    """Continues each prompt.

    Args:
      module: a decoder language model (`init_cache`, and `apply(..., cache=)` returning logits and cache).
      params: its parameters.
      prompts: token ids, at least one each and at most `module.max_length`; lengths may differ.
      max_new_tokens: drawn at most, fewer where the context ends.
      temperature, top_k, top_p: see `Sampling`.
      seed: with the prompt's own tokens it fixes what is drawn, whatever other prompts are in the list; a prompt given
        n times draws n different continuations.
      stop_ids: tokens that end a continuation, usually the end of text.
      batch_size: rows generated at once.
      num_tokens: only tokens below it are drawn, where the model's vocabulary is padded beyond its tokenizer's.

    Returns: one Completion a prompt, in order.
    Raises: InputError for an empty or too long prompt, a token outside the vocabulary, a bad sampling value.
    """
    tokens: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    finish = [""] * len(prompts)
    for chunk in stream(
        module,
        params,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_ids=stop_ids,
        batch_size=batch_size,
        num_tokens=num_tokens,
    ):
        tokens[chunk.index] += chunk.tokens
        logprobs[chunk.index] += chunk.logprobs
        finish[chunk.index] = chunk.finish or ""
    return [Completion(*parts) for parts in zip(tokens, logprobs, finish)]
