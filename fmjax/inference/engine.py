"""Generation: prompts of token ids in, drawn tokens and their log-probabilities out.

A fixed batch of rows decodes; prompts wait in a queue, and a row that ends is given the next one while the others go on
(continuous batching, Yu et al. 2022, Orca). Two programs do it. `prefill` reads several prompts, packed into one row of
tokens without padding between them, into free rows of the cache and draws the first token of each. `decode` draws up to
CHUNK tokens a row in one dispatch, feeding each back. Cache and state are donated and never change shape, and all
numbers of a request are traced, so that a run of any length uses one decode program and one prefill program for each
power of two of prompt length. The host reads a chunk while the next one runs.
"""

import collections
import dataclasses
import functools
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fmjax.errors import InputError
from fmjax.inference import cached
from fmjax.inference.cached import Packed, Weights, bucket
from fmjax.inference.checks import check_whole
from fmjax.inference.sampler import Sampling, Settings, Uses, sample
from fmjax.parallel.placement import whole

TRACES: dict[str, int] = defaultdict(int)
"""How often each program was traced; tests hold the engine to compiling once."""

CHUNK = 32
"""Tokens a row that one dispatch of `decode` draws at most."""

HIGHEST_SEED = 2**32 - 1
"""Seeds and numbers of copies are folded into keys as uint32."""

PACKED_TOKENS, PACKED_PROMPTS = 512, 8
"""How much one dispatch of `prefill` reads at most, unless a single prompt is longer."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt and what is wanted of it.

    Attributes:
      tokens: the prompt, at least one token; for an encoder-decoder the source.
      max_new_tokens: drawn at most, fewer where the context ends.
      sampling: how they are drawn.
      seed, copy: with the prompt's own tokens they fix what is drawn; `copy` numbers requests for the same prompt.
    """

    tokens: Sequence[int]
    max_new_tokens: int = 64
    sampling: Sampling = Sampling(0.0)
    seed: int = 0
    copy: int = 0


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some newly drawn tokens of one request; `finish` is None while the request goes on."""

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
      finish: "stop" (a stop token), "length" (`max_new_tokens` drawn) or "context" (the context or the cache is full).
    """

    tokens: list[int]
    logprobs: list[float]
    finish: str


class State(NamedTuple):
    """The rows between two dispatches; everything but the cache and `seen` is [B]."""

    cache: Any
    token: jax.Array  # the next input
    drawn: jax.Array  # tokens drawn so far: numbers the random keys
    remaining: jax.Array  # tokens it may still draw; 0 in a row that has stopped
    keys: jax.Array  # typed random keys
    settings: Settings
    seen: jax.Array | None  # bool [B, V], tokens of the prompt and drawn; None unless a penalty is used


class Starting(NamedTuple):
    """What `prefill` puts into the rows of its prompts, arrays [R]."""

    remaining: np.ndarray
    seed: np.ndarray
    digest: np.ndarray
    copy: np.ndarray
    settings: Settings


class Form(NamedTuple):
    """What programs are compiled for.

    Attributes:
      module: the unrolled module.
      uses: parts of the sampler.
      num_tokens, banned_ids: see `sampler.sample`.
      start_id: first input of an encoder-decoder's target; None for a decoder.
      rules: pairs (logical axis, mesh axes) for activations and the cache; empty without a mesh.
      packed_rules: the same for packed prompts, whose single row is not split.
    """

    module: nn.Module
    uses: Uses
    num_tokens: int | None
    start_id: int | None
    rules: tuple
    packed_rules: tuple
    banned_ids: tuple[int, ...] = ()


def _start(form: Form, batch_size: int, max_length: int, source_length: int | None, vocab_size: int | None) -> State:
    TRACES["start"] += 1
    with nn.logical_axis_rules(form.rules):
        cache = cached.init_cache(form.module, batch_size, max_length, source_length)
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
        logits, cache = cached.prefill(form.module, weights, state.cache, packed)
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
        tokens, logprobs = sample(logits, first, starting.settings, form.uses, form.num_tokens, seen, form.banned_ids)
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
        cache=cache,
        token=put(state.token, tokens),
        drawn=put(state.drawn, drawn),
        remaining=put(state.remaining, remaining),
        keys=state.keys.at[packed.rows].set(keys, mode="drop"),
        settings=jax.tree.map(put, state.settings, starting.settings),
        seen=None if seen is None else state.seen.at[packed.rows].set(seen, mode="drop"),
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
    batch = state.token.shape[0]

    def unfinished(carry):
        step, state, _, _ = carry
        stopped = jnp.sum(state.remaining == 0)
        return (step < steps) & (stopped < batch) & (stopped < free_rows)

    def body(carry):
        step, state, tokens, logprobs = carry
        active = state.remaining > 0
        logits, cache = cached.step(form.module, weights, state.cache, state.token, active)
        keys = jax.vmap(jax.random.fold_in)(state.keys, state.drawn)
        limits = form.num_tokens, state.seen, form.banned_ids
        drawn, logprob = sample(logits, keys, state.settings, form.uses, *limits)
        stopped = jnp.any(drawn[:, None] == stop_ids[None], axis=-1)
        seen = state.seen
        if seen is not None:
            # An idle row's own token is seen already.
            seen = seen.at[jnp.arange(batch), jnp.where(active, drawn, state.token)].set(True)
        state = state._replace(
            cache=cache,
            token=jnp.where(active, drawn, state.token),
            drawn=state.drawn + active,
            remaining=jnp.where(stopped, 0, jnp.maximum(state.remaining - 1, 0)),
            seen=seen,
        )
        tokens = tokens.at[:, step].set(jnp.where(active, drawn, -1))
        return step + 1, state, tokens, logprobs.at[:, step].set(jnp.where(active, logprob, 0.0))

    empty = jnp.full((batch, CHUNK), -1, jnp.int32), jnp.zeros((batch, CHUNK), jnp.float32)
    state = state._replace(remaining=jnp.where(alive, state.remaining, 0))
    with nn.logical_axis_rules(form.rules):
        _, state, tokens, logprobs = jax.lax.while_loop(unfinished, body, (0, state, *empty))
    return state, *whole((tokens, logprobs))


@functools.cache
def programs():
    """(start, prefill, decode), jitted."""
    options = cached.compiler_options()
    jitted = functools.partial(jax.jit, static_argnums=0, compiler_options=options)
    start = jax.jit(_start, static_argnums=(0, 1, 2, 3, 4))
    return start, jitted(_prefill, donate_argnums=2), jitted(_decode, donate_argnums=2)


class Engine:
    """A model made ready to generate.

    Holds the parameters in the form to decode with: beside the layers stacked for a scan, a second copy of them layer
    by layer. Whoever owns the stacked ones and needs them no more passes `donate=True`.

    Attributes:
      module, weights: that form.
      batch_size: rows generated at once.
      max_length: places of the cache, prompt and drawn tokens together; None takes what the requests of a run need,
        rounded up (`cached.places`): other lengths then mean other programs.
      start_id: the token that an encoder-decoder's target starts from; None is `module.start_id`.
      num_tokens: only tokens below it are drawn, where the model's vocabulary is padded beyond its tokenizer's.
      banned_ids: tokens that are never drawn, such as the padding token of a Marian model.

    Under `jax.set_mesh` the parameters stay as they are sharded; with the logical axis rules of
    `fmjax.training.setup.Program.inference` the cache is split over the mesh too, rows over the axes of the batch where
    they divide, heads as in training.
    """

    def __init__(
        self, module: nn.Module, params, *, batch_size: int = 16, max_length: int | None = None,
        start_id: int | None = None, num_tokens: int | None = None, banned_ids: Sequence[int] = (),
        donate: bool = False,
    ):  # fmt: skip
        """Raises InputError for a module that cannot generate, a size that is not possible, or a ban of no token."""
        check_whole(1, batch_size=batch_size)
        if max_length is not None:
            check_whole(1, getattr(module, "max_length", None), max_length=max_length)
        self.module, self.weights = cached.prepare(module, params)
        self.batch_size, self.max_length, self.num_tokens = batch_size, max_length, num_tokens
        self.banned_ids = tuple(sorted({*banned_ids}))
        vocab_size = getattr(module, "vocab_size", None)
        if outside := [i for i in self.banned_ids if i < 0 or (vocab_size and i >= vocab_size)]:
            raise InputError(f"banned_ids has {outside[0]}, which is no token of the model's {vocab_size}")
        self.start_id = None
        if cached.is_seq2seq(module):
            self.start_id = module.start_id if start_id is None else start_id
            if self.start_id is None:
                raise InputError(f"{type(module).__name__} needs a start_id: the token that its targets start from")
        if donate:
            kept = {id(x) for x in jax.tree.leaves(self.weights)}
            for leaf in jax.tree.leaves(params):
                if id(leaf) not in kept:
                    leaf.delete()

    @property
    def context(self) -> int | None:
        """Places that the model and the cache have: the smaller of `module.max_length` and `max_length`."""
        known = (getattr(self.module, "max_length", None), self.max_length)
        return min((length for length in known if length is not None), default=None)

    def run(
        self, requests: Iterable[Request], *, stop_ids: Sequence[int] = (), steps: int = CHUNK,
        batch_size: int | None = None, cache_length: int | None = None, progress: str | None = None,
    ) -> "Run":  # fmt: skip
        """Generates; the result is an iterator over chunks of tokens as they come.

        Args:
          requests: a list, which is checked before anything is computed, or an iterator, which is read as rows become
            free and needs a `max_length`.
          stop_ids: tokens that end a continuation, usually the end of text.
          steps: the host reads after so many tokens a row, at most CHUNK: fewer come sooner, and cost more dispatches.
          batch_size: fewer rows than the engine's (never more than there are requests).
          cache_length: places of the cache in this run; None is `max_length`, or what the requests need.
          progress: label of a progress bar over the requests; None shows none.

        Raises: InputError for an empty or too long prompt, a token outside the vocabulary, or a bad value.
        """
        batch_size = self.batch_size if batch_size is None else batch_size
        check_whole(1, batch_size=batch_size, steps=steps)
        if cache_length is not None:
            check_whole(1, self.context, cache_length=cache_length)
        return Run(self, requests, stop_ids, steps, batch_size, cache_length or self.max_length, progress)

    def generate(self, requests: Iterable[Request], **options) -> list[Completion]:
        """A Completion for each request, in order. Options as in `run`."""
        found: dict[int, Completion] = {}
        for chunk in self.run(requests, **options):
            one = found.setdefault(chunk.index, Completion([], [], ""))
            one.tokens.extend(chunk.tokens)
            one.logprobs.extend(chunk.logprobs)
            found[chunk.index] = dataclasses.replace(one, finish=chunk.finish or "")
        return [found[index] for index in range(len(found))]

    def check(self, index: int, request: Request) -> None:
        """Raises InputError for what cannot be generated from."""
        check_whole(1, max_new_tokens=request.max_new_tokens)
        check_whole(0, HIGHEST_SEED, seed=request.seed, copy=request.copy)
        if not len(request.tokens):
            raise InputError(f"prompt {index} is empty: the model needs a token to start from, such as BOS")
        if self.context is not None and len(request.tokens) > self.context:
            whose = "cache" if self.context == self.max_length else "model's context"
            raise InputError(
                f"prompt {index} has {len(request.tokens)} tokens, more than the {whose} of {self.context}; shorten it"
            )
        vocab_size = getattr(self.module, "vocab_size", None)
        unknown = [token for token in request.tokens if not 0 <= token < vocab_size] if vocab_size else []
        if unknown:
            raise InputError(f"prompt {index} contains token {unknown[0]}; the model has 0..{vocab_size - 1}")

    def allowed(self, request: Request) -> int:
        """Tokens that a request may draw. The last one is never an input: one more than there are places left."""
        if self.context is None:
            return request.max_new_tokens
        return min(request.max_new_tokens, self.context - self._taken(request) + 1)

    def places(self, request: Request) -> int:
        """Places of the cache that a request may fill."""
        return self._taken(request) + self.allowed(request) - 1

    def _taken(self, request: Request) -> int:
        return 1 if self.start_id is not None else len(request.tokens)

    def form(self, uses: Uses, batch_size: int) -> Form:
        """What the programs of a run are compiled for, in the mesh and with the rules of the present context."""
        rules = dict(nn.get_logical_axis_rules())
        packed = rules | {"batch": (), "length": ()} if rules else {}
        rows = rules.get("cache_rows", ())
        mesh = jax.sharding.get_abstract_mesh()
        if rows and not mesh.empty:
            parts = int(np.prod([mesh.shape[axis] for axis in rows]))
            rules |= {"batch": tuple(rows) if batch_size % parts == 0 else (), "length": ()}
        else:
            rules = packed
        both = tuple(rules.items()), tuple(packed.items())
        return Form(self.module, uses, self.num_tokens, self.start_id, *both, self.banned_ids)


@dataclasses.dataclass(eq=False)
class _Row:
    """A request on its way."""

    index: int
    request: Request
    allowed: int
    sent: int = 0  # tokens that dispatched programs draw at most
    drawn: int = 0
    done: bool = False


class Run:
    """An iterator over the chunks of one run of an engine; `stop` ends a request early."""

    def __init__(
        self, engine: Engine, requests: Iterable[Request], stop_ids, steps: int, batch_size: int,
        cache_length: int | None, progress,
    ):  # fmt: skip
        self._engine = engine
        self._stop_ids = frozenset(stop_ids)
        stops = sorted(self._stop_ids)
        self._stops = np.asarray(stops + [-1] * (bucket(len(stops), low=1) - len(stops)), np.int32)
        self._steps = min(steps, CHUNK)
        self._total = None
        self._uses, source = Uses(), 1
        if isinstance(requests, Sequence):
            for index, request in enumerate(requests):
                engine.check(index, request)
                self._uses |= request.sampling.uses
            self._total = len(requests)
            batch_size = min(batch_size, bucket(max(1, len(requests)), low=1))
            lengths = [len(request.tokens) for request in requests]
            need = max(map(engine.places, requests), default=1)
            if cache_length is None:
                cache_length = cached.places(need, high=engine.context)
            elif need > cache_length:
                raise InputError(f"cache_length={cache_length} is less than the {need} places that a request needs")
            source = bucket(max(lengths, default=1), low=32, high=getattr(engine.module, "max_length", None))
        elif cache_length is None:
            raise InputError("requests that come from an iterator need an Engine with a max_length")
        else:
            source = getattr(engine.module, "max_length", cache_length)
        self._batch_size, self._max_length = batch_size, cache_length
        self._source_length = source if engine.start_id is not None else None
        self._bar = tqdm(total=self._total, desc=progress, disable=progress is None, dynamic_ncols=True)
        self._queue = collections.deque()
        self._requests = enumerate(requests)
        self._rows: list[_Row | None] = [None] * batch_size
        self._pending = collections.deque()
        self._state = None
        self._chunks = self._run()

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def stop(self, index: int) -> None:
        """Ends the request with this index: no more of its tokens come, and its row is free."""
        for number, row in enumerate(self._rows):
            if row is not None and row.index == index:
                self._end(number, row)

    def _end(self, number: int, row: _Row) -> None:
        row.done = True
        if self._rows[number] is row:
            self._rows[number] = None
        self._bar.update()

    def _run(self) -> Iterator[Chunk]:
        with self._bar:
            while self._fill() or any(self._rows) or self._pending:
                while self._prefill():
                    pass
                if self._unsent() or (any(self._rows) and not self._pending):
                    self._decode()
                # Read the oldest results only when newer ones are on their way: the device need not wait for the host.
                if len(self._pending) > 1 or not self._unsent():
                    yield from self._read()

    def _unsent(self) -> bool:
        """Whether some row may go on after all that is dispatched."""
        return any(row and row.sent < row.allowed for row in self._rows)

    def _fill(self) -> bool:
        """Whether requests wait; takes some from the source."""
        while len(self._queue) < PACKED_PROMPTS:
            try:
                index, request = next(self._requests)
            except StopIteration:
                break
            if self._total is None:
                self._engine.check(index, request)
            self._queue.append((index, request))
        return bool(self._queue)

    def _prefill(self) -> bool:
        """Dispatches one packed row of waiting prompts to free rows, if there are any of both."""
        free = [number for number, row in enumerate(self._rows) if row is None]
        capacity = min(self._batch_size, PACKED_PROMPTS)
        taken, size = [], 0
        while self._fill() and len(taken) < min(len(free), capacity):
            length = len(self._queue[0][1].tokens)
            if taken and size + length > PACKED_TOKENS:
                break
            taken.append(self._queue.popleft())
            size += length
        if not taken:
            return False
        engine = self._engine
        rows = [_Row(index, request, engine.allowed(request)) for index, request in taken]
        requests = [row.request for row in rows]
        high = getattr(engine.module, "max_length", None)
        high = None if high is None else max(high, PACKED_TOKENS)
        packed = cached.pack([r.tokens for r in requests], free, capacity, self._batch_size, high)

        def column(values, dtype):
            values = list(values)
            return np.asarray(values + [values[0]] * (capacity - len(values)), dtype)

        columns = [column(values, None) for values in zip(*(r.sampling.values for r in requests))]
        starting = Starting(
            column((row.allowed for row in rows), np.int32),
            column((r.seed for r in requests), np.uint32),
            column((digest(r.tokens) for r in requests), np.uint32),
            column((r.copy for r in requests), np.uint32),
            Settings(*(c.astype(np.int32 if i == 1 else np.float32) for i, c in enumerate(columns))),
        )
        _, prefill, _ = programs()
        form = self._form(requests)
        self._state, tokens, logprobs = prefill(form, engine.weights, self._state, packed, starting, self._stops)
        for number, row in zip(free, rows):
            row.sent = 0 if engine.start_id is not None else 1
            self._rows[number] = row
        if engine.start_id is None:
            self._pending.append((list(zip(range(len(rows)), free, rows)), tokens[:, None], logprobs[:, None]))
        return True

    def _form(self, requests: Sequence[Request]) -> Form:
        """The form of the next program; creates the state, and adds to it what new requests are the first to use."""
        for request in requests:
            self._uses |= request.sampling.uses
        form = self._engine.form(self._uses, self._batch_size)
        vocab_size = getattr(self._engine.module, "vocab_size", None)
        if self._uses.penalty and vocab_size is None:
            name = type(self._engine.module).__name__
            raise InputError(f"repetition_penalty needs to know the vocabulary, and {name} has no vocab_size")
        if self._state is None:
            start, _, _ = programs()
            self._state = start(form, self._batch_size, self._max_length, self._source_length, vocab_size)
        elif self._uses.penalty and self._state.seen is None:
            self._state = self._state._replace(seen=jnp.zeros((self._batch_size, vocab_size), bool))
        return form

    def _decode(self) -> None:
        alive = np.asarray([row is not None for row in self._rows])
        waiting = self._fill()
        free_rows = max(1, self._batch_size // 4) if waiting else self._batch_size
        _, _, decode = programs()
        numbers = np.int32(self._steps), np.int32(free_rows)
        form, weights = self._form(()), self._engine.weights
        self._state, tokens, logprobs = decode(form, weights, self._state, alive, self._stops, *numbers)
        owners = [(number, number, row) for number, row in enumerate(self._rows) if row is not None]
        for _, _, row in owners:
            row.sent += self._steps
        self._pending.append((owners, tokens, logprobs))

    def _read(self) -> Iterator[Chunk]:
        """Waits for the oldest results and yields them."""
        if not self._pending:
            return
        owners, tokens, logprobs = self._pending.popleft()
        tokens, logprobs = np.asarray(tokens), np.asarray(logprobs)
        for place, number, row in owners:
            if row.done:
                continue
            count = int((tokens[place] >= 0).sum())
            new = tokens[place, :count].tolist()
            row.drawn += count
            row.sent = row.drawn + sum(row in [r for _, _, r in other] for other, _, _ in self._pending) * self._steps
            finish = None
            if new and new[-1] in self._stop_ids:
                finish = "stop"
            elif row.drawn >= row.allowed:
                finish = "length" if row.drawn >= row.request.max_new_tokens else "context"
            if finish:
                self._end(number, row)
            if new:
                yield Chunk(row.index, new, logprobs[place, :count].tolist(), finish)


def digest(tokens: Sequence[int]) -> int:
    """A hash of a prompt, which its random keys are folded from: so they are the same in any company."""
    return zlib.crc32(np.asarray(tokens, "<i4").tobytes())


def number_copies(prompts: Sequence[Sequence[int]]) -> list[int]:
    """How often the same prompt came before each."""
    seen: dict[int, int] = defaultdict(int)
    copies = []
    for prompt in prompts:
        key = digest(prompt)
        copies.append(seen[key])
        seen[key] += 1
    return copies


def generate(
    module: nn.Module,
    params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    batch_size: int = 16,
    num_tokens: int | None = None,
    **sampling,
) -> list[Completion]:
    """Continues each prompt, with an engine made for this one call (`Engine` keeps what is worth keeping).

    Args:
      module: a model as `fmjax.inference.cached` describes.
      params: its parameters.
      prompts: token ids, at least one each and at most `module.max_length`; lengths may differ.
      max_new_tokens: drawn at most, fewer where the context ends.
      seed: with the prompt's own tokens it fixes the random keys, whatever other prompts are in the list; a prompt
        given n times draws n different continuations. In bfloat16 and float16 logits round otherwise in another batch.
      stop_ids, batch_size, num_tokens: see `Engine`.
      sampling: fields of `Sampling`.

    Returns: one Completion a prompt, in order.
    Raises: InputError for an empty or too long prompt, a token outside the vocabulary, a bad sampling value.
    """
    drawing = Sampling(**sampling)
    engine = Engine(module, params, batch_size=batch_size, num_tokens=num_tokens)
    requests = [Request(p, max_new_tokens, drawing, seed, copy) for p, copy in zip(prompts, number_copies(prompts))]
    return engine.generate(requests, stop_ids=stop_ids)
