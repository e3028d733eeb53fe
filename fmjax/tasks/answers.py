"""From requests to answers: equal requests once, kinds together, each answer given out as soon as it is there."""

import collections
import dataclasses
import datetime
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from fmjax.data.tokenizers.base import digest
from fmjax.errors import InputError
from fmjax.inference import constraints, counted, kinds, scored_text
from fmjax.parallel import watch
from fmjax.tasks import environments, functions
from fmjax.tasks.capabilities import needed
from fmjax.tasks.cost import flops
from fmjax.tasks.protocol import Apply, Generate, Request, Rolling, RollingAnswer, Rollout, Score, ScoreAnswer
from fmjax.tasks.store import AnswerStore

CHAT_DATE = datetime.datetime(2025, 1, 1)
"""What chat templates take for today, which some write into the prompt: a score must not depend on the day."""


@dataclasses.dataclass
class Work:
    """What answering took, adapting the model to the task included: requests, tokens through the model, and FLOPs.

    Attributes:
      requests: different requests that the model answered.
      stored: different requests whose answers were already on disk.
      truncated: of the answered, those whose context or prompt lost its beginning because it was too long.
      unfinished: of the answered, those whose continuation ended where the model's context was full, before it had the
        tokens asked for.
      lengths: how many sequences of each length, in tokens, the model was asked about; a beginning that some of them
        share counts with each, though it is computed once.
      trained: how many of each length it was trained on, every time that one came.
      examples: how many it was asked about that are no sequences, by the shapes of their arrays.
      uncounted: what ran the model without saying what it read (`fmjax.inference.counted`): FLOPs are not known then.
    """

    requests: int = 0
    stored: int = 0
    truncated: int = 0
    unfinished: int = 0
    lengths: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    trained: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    examples: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    uncounted: set[str] = dataclasses.field(default_factory=set)

    @property
    def num_tokens(self) -> int:
        return sum(length * count for lengths in (self.lengths, self.trained) for length, count in lengths.items())

    def add(self, passes: counted.Passes, what: str) -> None:
        """Adds what `what` said that it read; where it said nothing, `what` goes to `uncounted`."""
        self.lengths += passes.read
        self.trained += passes.trained
        self.examples += passes.examples
        if not passes.is_told:
            self.uncounted.add(what)

    def flops(self, model) -> float | None:
        """Of every sequence, by the convention of `fmjax.layers.flops`; None where not known (`flops_note`)."""
        return None if self.uncounted else flops(model.module, self.lengths, self.trained, self.examples)

    def flops_note(self, model) -> str | None:
        """Why FLOPs are not known."""
        if self.uncounted:
            return f"not known: {', '.join(sorted(self.uncounted))} did not say what the model read"
        if self.flops(model) is None:
            return f"not known: {type(model.module).__name__} has no flops_per_example of tokens alone"
        return None


def answer(
    requests: Sequence[Request],
    model,
    progress: str | None = None,
    *,
    seed: int = 0,
    store: AnswerStore | None = None,
    work: Work | None = None,
) -> list:
    """Answers in the order of the requests.

    Args:
      progress: label of the progress bars; None shows none.
      seed: of continuations that are drawn.
      store: answers that are there already are read, and new ones written as they come.
      work: is added to.

    Raises: InputError for a request that the model cannot answer, or answers with NaN for a log-likelihood.
    """
    work = Work() if work is None else work
    for request in requests:
        needed(request)
    found: dict[Request, Any] = {}
    waiting = defaultdict(list)
    for request in dict.fromkeys(requests):
        known = None if store is None else store.get(request, seed)
        if known is None:
            waiting[_group(request)].append(request)
        else:
            found[request] = known
    work.stored += len(found)
    for (kind, *_), group in waiting.items():
        work.requests += len(group)
        watch.at(f"the {kind.__name__.lower()} requests of a task", limited=False)
        for index, one in ANSWERERS[kind](model, group, seed, progress, work):
            _check_number(group[index], one)
            found[group[index]] = one
            if store is not None:
                store.put(group[index], seed, one)
    watch.at("what follows the answers", limited=False)
    return [found[request] for request in requests]


def _check_number(request: Request, answer) -> None:
    """Raises InputError for a log-likelihood that is not a number. -inf is one: of what the model holds impossible."""
    if isinstance(answer, ScoreAnswer | RollingAnswer) and math.isnan(answer.loglikelihood):
        asked = f"of the text that begins {request.text[:60]!r}" if isinstance(request, Rolling) else (
            f"of {request.continuation!r} after {request.context[-60:]!r}"
        )
        raise InputError(
            f"the model gives NaN for the log-likelihood {asked}; expected a number: look for NaN or overflow in its "
            "weights, or evaluate an earlier checkpoint"
        )


def _group(request: Request) -> tuple[Hashable, ...]:
    """Requests with the same group go to the model together."""
    if isinstance(request, Generate):
        drawing = request.temperature, request.top_p, request.stop, bool(request.choices)
        return Generate, request.max_new_tokens, request.chat, *drawing
    if isinstance(request, Apply):
        return Apply, request.function
    if isinstance(request, Rollout):
        return Rollout, request.environment
    return (type(request),)


def _score(model, requests, seed, progress, work) -> Iterator[tuple[int, ScoreAnswer]]:
    segments, cut = scored_text.continuation_segments(model, [(r.context, r.continuation) for r in requests])
    work.truncated += sum(cut)
    # Continuations of one token after one context are one sequence.
    work.lengths.update(len(inputs) for inputs in {segment.inputs for segment in segments})
    for index, score in model.iter_scores(segments, progress, "continuations"):
        yield index, ScoreAnswer(*score)


def _rolling(model, requests, seed, progress, work) -> Iterator[tuple[int, RollingAnswer]]:
    segments, owners = scored_text.rolling_segments(model, [request.text for request in requests])
    work.lengths.update(len(segment.inputs) for segment in segments)
    parts = [[] for _ in requests]
    missing = collections.Counter(owners)
    yield from ((index, RollingAnswer(0.0, 0)) for index in range(len(requests)) if not missing[index])
    texts = f"{len(requests)} text{'s' * (len(requests) != 1)}"
    label = None if progress is None else f"{progress}, {texts} in {len(segments)} windows"
    for index, (loglikelihood, _, count) in model.iter_scores(segments, label, "windows"):
        owner = owners[index]
        parts[owner].append((index, loglikelihood, count))
        missing[owner] -= 1
        if not missing[owner]:
            # In the order of the text, so that the sum does not depend on that of the batches.
            mine = sorted(parts[owner])
            yield owner, RollingAnswer(sum(part[1] for part in mine), sum(part[2] for part in mine))


def chat_template(model) -> str | None:
    """The template that the prompts of `Generate(chat=True)` go through; None where they stay as they are."""
    if kinds.reads_source(model.module):
        return None
    return getattr(model.tokenizer, "chat_templates", {}).get("default")


def chat_details(model, requests: Sequence[Request]) -> dict[str, Any]:
    """What became of the requests for replies in a chat, for `TaskResult.details`; nothing where there are none."""
    if not any(isinstance(request, Generate) and request.chat for request in requests):
        return {}
    template = chat_template(model)
    if template is None:
        return {"chat_template": None}
    return {"chat_template": digest(template.encode()), "chat_date": CHAT_DATE.date().isoformat()}


def _encoded(model, prompts: Sequence[str], chat: bool) -> list[list[int]]:
    if not chat or chat_template(model) is None:
        return model.encode_prompts(prompts)
    return [model.encode_chat([{"role": "user", "content": prompt}], now=CHAT_DATE) for prompt in prompts]


def _generate(model, requests, seed, progress, work) -> Iterator[tuple[int, str]]:
    first = requests[0]
    prompts = _encoded(model, [request.prompt for request in requests], first.chat)
    if model.context_length is not None and not kinds.reads_source(model.module):
        # As lm-evaluation-harness: room is kept for the answer, here at most half of the context.
        room = max(model.context_length - first.max_new_tokens, model.context_length // 2, 1)
        work.truncated += sum(len(prompt) > room for prompt in prompts)
        prompts = [prompt[-room:] for prompt in prompts]
    options = dict(
        max_new_tokens=first.max_new_tokens, temperature=first.temperature, top_p=first.top_p, stop=first.stop
    )
    if first.choices:
        options["constraint"] = [constraints.choices(request.choices) for request in requests]
    copies = [request.sample for request in requests]
    for piece in model.pieces(prompts, seed=seed, copies=copies, progress=progress, **options):
        if piece.whole is not None:
            work.lengths[len(prompts[piece.index]) + len(piece.whole.tokens)] += 1
            work.unfinished += piece.whole.finish == "context"
            yield piece.index, piece.whole.text


def _apply(model, requests, seed, progress, work) -> Iterator[tuple[int, Any]]:
    function = functions.get(model, requests[0].function)
    size = 256  # so many at a time, so that an interruption loses little
    with tqdm(total=len(requests), desc=progress, disable=progress is None, unit=" inputs", dynamic_ncols=True) as bar:
        for start in range(0, len(requests), size):
            part = [request.inputs for request in requests[start : start + size]]
            # Limited where the function says places of its own, as the model's functions do in their batches.
            watch.at(f"inputs {start + 1} to {start + len(part)} of {requests[0].function}", limited=False)
            with counted.counting() as passes:
                found = function(model, part)
            work.add(passes, f"the function {requests[0].function!r}")
            if len(found) != len(part):
                raise InputError(
                    f"function {requests[0].function!r} gave {len(found)} answers to {len(part)} inputs; "
                    "expected one for each"
                )
            bar.update(len(part))
            yield from ((start + i, plain(one)) for i, one in enumerate(found))


def _rollout(model, requests, seed, progress, work) -> Iterator[tuple[int, dict]]:
    yield from environments.run(model, requests, progress, work)


def plain(value) -> Any:
    """Arrays as nested lists and NumPy numbers as Python's, as JSON holds them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


ANSWERERS: dict[type, Callable] = {
    Score: _score,
    Rolling: _rolling,
    Generate: _generate,
    Apply: _apply,
    Rollout: _rollout,
}
