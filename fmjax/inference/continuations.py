"""Texts in, their continuations out: the engine's tokens as text, up to a stop token or a stop string."""

import dataclasses
import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from fmjax.errors import InputError
from fmjax.inference import constraints, draft_options
from fmjax.inference.beam import beam_search, check_width
from fmjax.inference.checks import check_whole
from fmjax.inference.constraints import Constraint
from fmjax.inference.drafts import Drafted
from fmjax.inference.engine import Engine
from fmjax.inference.engine_programs import CHUNK
from fmjax.inference.engine_requests import (
    HIGHEST_SEED, Acceptance, PromptRequest, add_acceptance, number_copies,
)  # fmt: skip
from fmjax.inference.sampler import Sampling
from fmjax.inference.text_stream import StoppedText, TextStream, check_stops
from fmjax.layers.checks import check_choice
from fmjax.layers.held import KINDS

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options:
    """What is wanted of a model's continuations.

    Attributes:
      max_new_tokens: tokens drawn at most for each.
      temperature, top_k, top_p, min_p, repetition_penalty: see `fmjax.inference.sampler.Sampling`.
      seed: of the random draws. The same prompt and seed draw with the same random keys whatever else is asked for in
        the same call; copies of a prompt get different continuations. In float32 that gives the same text. In bfloat16
        and float16 it may not: logits round differently in a batch of another shape, and what is drawn, or the largest
        logit, may change with them.
      stop: a continuation ends before the first of these strings; no part of one is ever given out.
      stop_ids: tokens that end a continuation, besides the tokenizer's EOS.
      constraint: what a continuation has to be (`fmjax.inference.constraints`), or one for each prompt, None among them
        for any text. One that ends with "length" or "context" is the beginning of such a text.
      num_samples: continuations of each prompt; sample j of prompt i has the index i * num_samples + j.
      copies: numbers that tell continuations of the same prompt apart, one for each index. None counts them in this
        call; a part of a longer list gives those of the whole list (`fmjax.inference.engine_requests.number_copies`).
      batch_size: rows generated at once.
      cache_length: places of the cache, for a prompt and what is drawn after it; None takes what the prompts of the
        call need. Calls with the same one share their compiled program of decoding.
      cache: what keys and values of the texts so far are held in: "float", or "int8" or "int4", which take less memory
        and change what is drawn a little.
      steps: the host reads after so many tokens a row, or passes of the model with a draft: fewer come sooner, and cost
        more dispatches.
      progress: label of a progress bar; None shows none.
      draft: what proposes tokens, of which each pass of the model reads several and takes some (speculative decoding):
        "lookup" (what followed in the text before), "layers:K" (the model's first K layers), or a model: a smaller one
        with the same tokenizer, or draft heads that were trained on this one; or one's own
        (`fmjax.inference.drafts.Drafted`). What is drawn has the same law as without; of "lookup" and of heads it is
        the same text.
      draft_tokens: how many are proposed a pass; None is the draft's own number.

    Raises InputError for a bad value.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    constraint: Constraint | Sequence[Constraint | None] | None = None
    num_samples: int = 1
    copies: Sequence[int] | None = None
    batch_size: int = 16
    cache_length: int | None = None
    cache: str = "float"
    steps: int = CHUNK
    progress: str | None = None
    draft: Any = None
    draft_tokens: int | None = None

    def __post_init__(self):
        draft_options.check(self.draft, self.draft_tokens)
        check_stops(self.stop)
        check_whole(
            1, **{name: getattr(self, name) for name in ("max_new_tokens", "num_samples", "batch_size", "steps")}
        )
        check_whole(0, HIGHEST_SEED, seed=self.seed)
        check_choice("cache", self.cache, KINDS)
        if self.cache_length is not None:
            check_whole(1, cache_length=self.cache_length)
        for name, value in dict(stop_ids=self.stop_ids, copies=() if self.copies is None else self.copies).items():
            if not isinstance(value, Collection) or isinstance(value, str | bytes):
                raise InputError(f"{name} must be a list of numbers, got {value!r}; put it in a list")
        for token in self.stop_ids:
            check_whole(0, stop_ids=token)
        constraints.check(self.constraint)
        if self.stop and self.constraint is not None:
            raise InputError("stop strings would cut off what constraint asks for; leave one of them out")
        self.sampling  # checks the rest

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)


@dataclasses.dataclass(frozen=True)
class Continuation:
    """What was drawn after one prompt.

    Attributes:
      text: up to a stop token or stop string; "" without a tokenizer.
      tokens: the drawn tokens; where `finish` is "stop", the last is a stop token or completed a stop string.
      logprobs: log-probability of each at the temperature that drew it (`fmjax.inference.sampler.sample`); empty for
        what beam search found.
      finish: "stop", "length" (`max_new_tokens` drawn), "context" (the model's context is full) or "dead_end" (no token
        of the vocabulary goes on with what the constraint asks for).
      score: of beam search (`fmjax.inference.beam.Beam`); None for what was drawn.
      acceptance: what the draft was worth; None without one.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    finish: str
    score: float | None = None
    acceptance: Acceptance | None = None


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece of the text of continuation `index`; `whole` is the continuation where this is its last piece."""

    index: int
    text: str
    whole: Continuation | None


class Continuations:
    """An iterator over pieces of text as the tokens come.

    Args:
      engine: the model.
      tokenizer: see `fmjax.data.tokenizers.loading.Tokenizer`; None gives no texts.
      prompts: tokens of each prompt.
      options: what is wanted.
      draft: that of the options, made ready (`fmjax.inference.draft_options.drafted`).

    Raises: InputError for a prompt that cannot be continued, before anything is computed.
    """

    def __init__(
        self, engine: Engine, tokenizer, prompts: Sequence[Sequence[int]], options: Options,
        draft: Drafted | None = None,
    ):  # fmt: skip
        held = constraints.each(options.constraint, len(prompts))
        # A source is no beginning of its target's text.
        before = [[]] * len(prompts) if engine.start_id is not None else prompts
        languages = [
            None if one is None else constraints.language(one, tokenizer, constraints.drops_space(tokenizer, tokens))
            for one, tokens in zip(held, before)
        ]
        languages = [one for one in languages for _ in range(options.num_samples)]
        prompts = [tokens for tokens in prompts for _ in range(options.num_samples)]
        copies = number_copies(prompts) if options.copies is None else options.copies
        if len(copies) != len(prompts):
            raise InputError(f"copies: expected a number for each of {len(prompts)} continuations, got {len(copies)}")
        requests = [
            PromptRequest(tokens, options.max_new_tokens, options.sampling, options.seed, copy, language)
            for tokens, copy, language in zip(prompts, copies, languages)
        ]
        self._stop_ids = {*options.stop_ids, getattr(tokenizer, "eos_id", None)} - {None}
        run = {name: getattr(options, name) for name in ("steps", "batch_size", "cache_length", "cache", "progress")}
        self._run = engine.run(requests, stop_ids=sorted(self._stop_ids), draft=draft, **run)
        before = [tokens for tokens in before for _ in range(options.num_samples)]
        self._texts = [StoppedText(tokenizer, tokens, options.stop) for tokens in before]
        self._parts = [Continuation("", [], [], "") for _ in prompts]
        self._pieces = self._read()

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def _read(self) -> Iterator[Piece]:
        for chunk in self._run:
            index, text, part = chunk.index, self._texts[chunk.index], self._parts[chunk.index]
            ended = chunk.finish == "stop"
            new = text.push(chunk.tokens[:-1] if ended else chunk.tokens, last=chunk.finish is not None)
            tokens, logprobs = part.tokens + chunk.tokens, part.logprobs + chunk.logprobs
            finish = chunk.finish
            if text.stopped:
                self._run.stop(index)
                tokens, logprobs = tokens[: text.num_tokens], logprobs[: text.num_tokens]
                finish = "stop"
            own = add_acceptance(part.acceptance, chunk.acceptance)
            part = Continuation(part.text + new, tokens, logprobs, finish or "", acceptance=own)
            self._parts[index] = part
            if finish and own is not None:
                log.info("draft of continuation %d: %s", index, own)
            if new or finish:
                yield Piece(index, new, part if finish else None)


def search(
    engine: Engine, tokenizer, prompts: Sequence[Sequence[int]], *, stop_ids: Sequence[int] = (), num_beams: int = 4,
    **options,
) -> list[list[Continuation]]:  # fmt: skip
    """As `fmjax.inference.beam.beam_search`, with its options, and the beams' texts; the tokenizer's EOS ends too.

    Raises: InputError as it does, and for more beams than the vocabulary has tokens.
    """
    stop_ids = {*stop_ids, getattr(tokenizer, "eos_id", None)} - {None}
    check_width(engine, num_beams)
    found = beam_search(engine, prompts, stop_ids=sorted(stop_ids), num_beams=num_beams, **options)
    results = []
    for prompt, beams in zip(prompts, found):
        before = [] if engine.start_id is not None else prompt
        results.append([])
        for beam in beams:
            shown = beam.tokens[:-1] if beam.finish == "stop" else beam.tokens
            text = TextStream(tokenizer, before).push(shown, last=True)
            results[-1].append(Continuation(text, beam.tokens, [], beam.finish, beam.score))
    return results


def complete(pieces: Iterator[Piece]) -> list[Continuation]:
    """The continuations in order, when all their pieces have come."""
    ended = {piece.index: piece.whole for piece in pieces if piece.whole is not None}
    return [ended[index] for index in sorted(ended)]
