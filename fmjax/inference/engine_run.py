"""Continuous batching (Yu et al. 2022, Orca): prompts wait in a queue for the rows of a fixed batch that decodes.

A row that ends is given the next prompt while the others go on. The host reads a chunk of tokens while the device
computes the next one.
"""

import collections
import logging
from collections.abc import Iterable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fmjax.errors import InputError
from fmjax.inference import decoding
from fmjax.inference.allowed_tokens import AllowedTokens
from fmjax.inference.checks import not_finite
from fmjax.inference.drafts import Drafted
from fmjax.inference.engine_drafting import Drafting, acceptance
from fmjax.inference.engine_parts import BRIEF, programs_of
from fmjax.inference.engine_programs import CHUNK, PACKED_PROMPTS, PACKED_TOKENS, Form
from fmjax.inference.engine_requests import DEAD_END, Chunk, PromptRequest
from fmjax.inference.engine_rows import Row, followed, starting
from fmjax.inference.rows import bucket
from fmjax.inference.sampler import Uses
from fmjax.parallel import watch

log = logging.getLogger(__name__)


class Run:
    """An iterator over the chunks of one run of a `fmjax.inference.engine.Engine`; `stop` ends a request early.

    Args: see `Engine.run`.
    """

    def __init__(
        self, engine, requests: Iterable[PromptRequest], stop_ids, steps: int, batch_size: int,
        cache_length: int | None, progress, cache: str = "float", draft: Drafted | None = None,
    ):  # fmt: skip
        self._engine, self._cache = engine, cache
        self._drafting = None if draft is None else Drafting(draft, engine.part is not None)
        more = 0 if draft is None else self._drafting.places
        self._stop_ids = frozenset(stop_ids)
        stops = sorted(self._stop_ids)
        self._stops = np.asarray(stops + [-1] * (bucket(len(stops), low=1) - len(stops)), np.int32)
        self._steps = min(steps, CHUNK)
        self._allowed = None
        self._total = None
        self._in_parts = False
        self._uses, source = Uses(), 1
        if isinstance(requests, Sequence):
            for index, request in enumerate(requests):
                self._check(index, request)
                self._uses |= request.uses
            self._total = len(requests)
            self._know_allowed()
            batch_size = min(batch_size, bucket(max(1, len(requests)), low=1))
            allowed = [engine.allowed(request) for request in requests]
            needed = max(sum(allowed) / batch_size, max(allowed, default=0))
            self._in_parts = engine.part is not None and needed <= BRIEF
            lengths = [len(request.tokens) for request in requests]
            need = max(map(engine.places, requests), default=1)
            if cache_length is None:
                cache_length = decoding.places(self._most(need + more), high=engine.context)
            elif need > cache_length:
                raise InputError(f"cache_length={cache_length} is less than the {need} places that a request needs")
            else:
                cache_length = self._most(cache_length + more)
            source = bucket(max(lengths, default=1), low=32, high=getattr(engine.module, "max_length", None))
        elif cache_length is None:
            raise InputError("requests that come from an iterator need an Engine with a max_length")
        else:
            source = getattr(engine.module, "max_length", cache_length)
        self._batch_size, self._max_length = batch_size, cache_length
        self._source_length = source if engine.start_id is not None else None
        self._bar = tqdm(total=self._total, desc=progress, disable=progress is None, unit=" texts", dynamic_ncols=True)
        self._queue = collections.deque()
        self._requests = enumerate(requests)
        self._rows: list[Row | None] = [None] * batch_size
        self._pending = collections.deque()
        self._dead = collections.deque()  # last chunks of requests that no token goes on with
        self._reads = 0
        self._state = None
        self._chunks = self._run()

    def _check(self, index: int, request: PromptRequest) -> None:
        """Raises InputError for what cannot be generated from, or not with the draft."""
        self._engine.check(index, request)
        if self._drafting is not None:
            self._drafting.check(index, self._engine.places(request))

    def _most(self, places: int) -> int:
        """So many places of the cache, or all that the model has."""
        context = self._engine.context
        return places if context is None else min(places, context)

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def stop(self, index: int) -> None:
        """Ends the request with this index: no more of its tokens come, and its row is free."""
        for number, row in enumerate(self._rows):
            if row is not None and row.index == index:
                self._end(number, row)

    def _end(self, number: int | None, row: Row) -> None:
        row.done = True
        if number is not None and self._rows[number] is row:
            self._rows[number] = None
        self._bar.update()

    def _run(self) -> Iterator[Chunk]:
        with self._bar:
            while self._fill() or any(self._rows) or self._pending:
                while self._prefill():
                    pass
                yield from self._dead_ends()
                in_turns = self._in_parts or self._uses.allowed or (self._drafting and self._drafting.in_turns)
                if in_turns and self._pending:
                    # The host makes the calls of a chunk while it is computed, and reads nothing meanwhile. What may be
                    # drawn next depends on what was.
                    yield from self._read()
                    continue
                if self._unsent() or (any(self._rows) and not self._pending):
                    self._decode()
                    yield from self._dead_ends()
                # Read the oldest results only when newer ones are on their way: the device need not wait for the host.
                if len(self._pending) > 1 or not self._unsent():
                    yield from self._read()
        watch.at("what follows the generation", limited=False)

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
                self._check(index, request)
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
        rows = [Row(index, request, engine.allowed(request)) for index, request in taken]
        form = self._form([row.request for row in rows])
        for row in rows:
            row.walk = None if row.request.language is None else row.request.language.begin()
        rows = [row for row in rows if row.walk is None or not self._is_dead(None, row)]
        if not rows:
            return True
        high = getattr(engine.module, "max_length", None)
        high = None if high is None else max(high, PACKED_TOKENS)
        packed = decoding.pack([row.request.tokens for row in rows], free, capacity, self._batch_size, high)

        words = [self._words(row) for row in rows] if form.uses.allowed else None
        begun = starting(rows, capacity, words)
        _, prefill, _ = programs_of(form)
        self._state, tokens, logprobs = prefill(form, engine.weights, self._state, packed, begun, self._stops)
        if self._drafting is not None:
            self._drafting.read(form, packed)
        for number, row in zip(free, rows):
            row.sent = 0 if engine.start_id is not None else 1
            self._rows[number] = row
        if engine.start_id is None:
            owners = list(zip(range(len(rows)), free, rows))
            self._pending.append((owners, tokens[:, None], logprobs[:, None], None))
        return True

    def _form(self, requests: Sequence[PromptRequest]) -> Form:
        """The form of the next program; creates the state, and adds to it what new requests are the first to use."""
        for request in requests:
            self._uses |= request.uses
        self._know_allowed()
        form = self._engine.form(self._uses, self._batch_size, self._cache)
        if self._drafting is not None:
            form = form._replace(spare=self._drafting.spare)
        vocab_size = getattr(self._engine.module, "vocab_size", None)
        if self._uses.penalty and vocab_size is None:
            name = type(self._engine.module).__name__
            raise InputError(f"repetition_penalty needs to know the vocabulary, and {name} has no vocab_size")
        if self._state is None:
            start, _, _ = programs_of(form)
            self._state = start(form, self._batch_size, self._max_length, self._source_length, vocab_size)
            if self._drafting is not None:
                self._drafting.begin(form, self._batch_size, self._max_length)
        elif self._uses.penalty and self._state.seen is None:
            self._state = self._state._replace(seen=jnp.zeros((self._batch_size, vocab_size), bool))
        if self._uses.allowed and self._state.allowed is None:
            self._state = self._state._replace(allowed=jnp.asarray([self._allowed.everything] * self._batch_size))
        return form

    def _know_allowed(self) -> None:
        """Makes what tells the tokens that rows may draw, once a request is held to a language."""
        if self._uses.allowed and self._allowed is None:
            engine = self._engine
            self._allowed = AllowedTokens(engine.module, engine.num_tokens, engine.banned_ids, self._stop_ids)

    def _words(self, row: Row | None) -> np.ndarray:
        """The tokens that a row may draw next, which are some."""
        return self._allowed.everything if row is None or row.words is None else row.words

    def _is_dead(self, number: int | None, row: Row) -> bool:
        """Whether no token goes on with a row's language; then it ends, and others go on."""
        row.words = self._allowed.of(row.walk)
        if row.words is not None:
            return False
        log.warning(
            "prompt %d: after %d new tokens no token of the vocabulary goes on with what the constraint asks for; does "
            "it ask for characters that the tokenizer has no tokens for?", row.index, row.drawn
        )  # fmt: skip
        self._end(number, row)
        self._dead.append(Chunk(row.index, [], [], DEAD_END))
        return True

    def _dead_ends(self) -> Iterator[Chunk]:
        while self._dead:
            yield self._dead.popleft()

    def _decode(self) -> None:
        for number, row in enumerate(self._rows):
            if row is not None and row.walk is not None:
                self._is_dead(number, row)
        if not any(self._rows):
            return
        alive = np.asarray([row is not None for row in self._rows])
        waiting = self._fill()
        free_rows = max(1, self._batch_size // 4) if waiting else self._batch_size
        wanted = max(row.allowed - row.sent for row in self._rows if row is not None)
        # What a row with a language may draw is known for one token.
        steps = 1 if any(row is not None and row.walk is not None for row in self._rows) else self._steps
        numbers = np.int32(min(steps, max(1, wanted))), np.int32(free_rows)
        form, weights = self._form(()), self._engine.weights
        arguments, told = [weights, self._state, alive, self._stops], None
        words = [self._words(row) for row in self._rows] if form.uses.allowed else None
        if self._drafting is not None:
            walks = None if words is None else [(row and row.walk, own) for row, own in zip(self._rows, words)]
            found = self._drafting.decode(form._replace(part=None), *arguments, *numbers, self._allowed, walks)
            self._state, tokens, logprobs, told = found
        else:
            form = form if self._in_parts else form._replace(part=None)
            _, _, decode = programs_of(form)
            if words is not None:
                arguments[1] = self._state._replace(allowed=jnp.asarray(np.stack(words)))
            self._state, tokens, logprobs = decode(form, *arguments, *numbers)
        owners = [(number, number, row) for number, row in enumerate(self._rows) if row is not None]
        for _, _, row in owners:
            row.sent += steps
        self._pending.append((owners, tokens, logprobs, told))

    def _read(self) -> Iterator[Chunk]:
        """Waits for the oldest results and yields them. Raises RunError for logits that were not finite."""
        if not self._pending:
            return
        owners, tokens, logprobs, told = self._pending.popleft()
        self._reads += 1
        watch.at(f"part {self._reads} of the generation")
        tokens, logprobs = np.asarray(tokens), np.asarray(logprobs)
        told = None if told is None else [np.asarray(x) for x in told]
        for place, number, row in owners:
            if row.done:
                continue
            drawn = tokens[place] >= 0
            new, chances = tokens[place][drawn].tolist(), logprobs[place][drawn]
            if not np.isfinite(chances).all():
                raise not_finite(row.index, row.drawn + int(np.isfinite(chances).argmin()))
            new = new[: followed(row, new, self._allowed, self._stop_ids)]
            worth = None if self._drafting is None else acceptance(row.index, place, told, len(new))
            row.drawn += len(new)
            row.sent = row.drawn + sum(row in [r for *_, r in other] for other, *_ in self._pending) * self._steps
            finish = None
            if new and new[-1] in self._stop_ids:
                finish = "stop"
            elif row.drawn >= row.allowed:
                finish = "length" if row.drawn >= row.request.max_new_tokens else "context"
            if finish:
                self._end(number, row)
            if new:
                yield Chunk(row.index, new, chances[: len(new)].tolist(), finish, worth)
