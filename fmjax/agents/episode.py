"""One goal pursued: what the model is asked next, what its reply does, and when it ends. It never calls the model.

Of a conversation it keeps ids alone: those that it began with, those that were drawn, and those that were told. So the
model reads what it drew, and a row to learn from says which ids are the model's own.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

from fmjax.agents.actions import Answer, Malformed, Plan
from fmjax.agents.formats import NEXT, Format
from fmjax.agents.tools import Call, Tool, by_name, carried_out
from fmjax.errors import InputError
from fmjax.inference.checks import check_whole, is_number
from fmjax.inference.constraints import Constraint
from fmjax.inference.continuations import Continuation


@dataclasses.dataclass(frozen=True)
class Budget:
    """When an episode ends in any case.

    Attributes:
      steps: replies of the model.
      tokens: drawn tokens in all; None is no limit.
      seconds: from its start; None is no limit. A step that has begun is ended.
      reply_tokens: tokens of one reply.
    """

    steps: int = 10
    tokens: int | None = None
    seconds: float | None = None
    reply_tokens: int = 256

    def __post_init__(self):
        check_whole(1, steps=self.steps, reply_tokens=self.reply_tokens)
        if self.tokens is not None:
            check_whole(1, tokens=self.tokens)
        if self.seconds is not None and not (is_number(self.seconds) and self.seconds > 0):
            raise InputError(f"seconds must be a number above 0, got {self.seconds!r}")


@dataclasses.dataclass(frozen=True)
class Step:
    """A reply and what came of it.

    Attributes:
      tokens, logprobs, text, finish: the reply (`fmjax.inference.continuations.Continuation`).
      context: ids that it was drawn after.
      action: what it means.
      result: what the model was told after it; "" after an answer.
      succeeded: whether a call was carried out; False for anything that is no call.
      told: the ids after it.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish: str
    context: tuple[int, ...]
    action: object
    result: str
    succeeded: bool
    told: tuple[int, ...]


class Episode:
    """A goal on its way.

    Args:
      format: how tools are told and replies are read.
      goal: what is wanted.
      tools: what may be called.
      budget: when it ends.
      planning: whether the first reply is a plan.
      context_length: ids that the model reads at most, those of a reply included; None is any.
      forgets: whether the oldest replies are left out where the context is full; else that ends the episode.
      clock: seconds, for the budget.

    Attributes:
      steps: what has happened.
      ended: why it ended: "answer", "steps", "tokens", "seconds", "context"; "" while it goes on.
    """

    def __init__(
        self, format: Format, goal: str, tools: Sequence[Tool], budget: Budget = Budget(), *, planning: bool = False,
        context_length: int | None = None, forgets: bool = True, clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self.goal, self.budget, self.format = goal, budget, format
        self._tools: Mapping[str, Tool] = by_name(tools)
        self._planning, self._context, self._forgets, self._clock = planning, context_length, forgets, clock
        self.start = tuple(format.begin(goal, planning))
        self.steps: list[Step] = []
        self.ended, self._begun = "", clock()
        if context_length is not None and len(self.start) + budget.reply_tokens > context_length:
            raise InputError(
                f"the goal with its tools has {len(self.start)} tokens, and a reply may have {budget.reply_tokens}: "
                f"more than the model's context of {context_length}; leave tools out, or shorten the goal"
            )

    @property
    def num_drawn(self) -> int:
        return sum(len(step.tokens) for step in self.steps)

    @property
    def answer(self) -> str | None:
        """The model's answer; None where it gave none."""
        action = self.steps[-1].action if self.steps else None
        return action.text if isinstance(action, Answer) else None

    @property
    def asks_for_plan(self) -> bool:
        """Whether the next reply is to be a plan."""
        return self._planning and not self.steps

    @property
    def constraint(self) -> Constraint | None:
        """What the next reply is held to."""
        return self.format.constraint(self.asks_for_plan)

    @property
    def room(self) -> int:
        """Tokens that the next reply may have."""
        left = self.budget.reply_tokens
        return left if self.budget.tokens is None else min(left, self.budget.tokens - self.num_drawn)

    def context(self) -> tuple[int, ...]:
        """The ids that the next reply is drawn after: all, or the start and as many of the last as fit."""
        parts = [(*step.tokens, *step.told) for step in self.steps]
        while self._context is not None and len(parts) > 1 and self._size(parts) > self._context:
            parts = parts[1:]
        return sum(parts, self.start)

    def _size(self, parts) -> int:
        return len(self.start) + sum(map(len, parts)) + self.budget.reply_tokens

    def take(self, reply: Continuation, recorded: tuple[str, bool] | None = None) -> Step:
        """What a reply does; the step is kept. A tool may take its time.

        recorded: what came of the call that the reply makes, (result, succeeded); no tool is called then.
        """
        context, planning = self.context(), self.asks_for_plan
        drawn = list(reply.tokens)
        ends = reply.finish == "stop"
        action = self.format.read(drawn[:-1] if ends else drawn, planning, reply.finish)
        result, succeeded, told = "", False, ()
        if isinstance(action, Call):
            result, succeeded = carried_out(self._tools, action) if recorded is None else recorded
        elif isinstance(action, Malformed):
            result = f"error: {action.why}"
        elif isinstance(action, Plan):
            result = NEXT
        if not isinstance(action, Answer):
            asked = {"goal": self.goal, "planning": self._planning}
            told = tuple(self.format.told(drawn, result, from_tool=isinstance(action, Call), **asked))
        step = Step(
            tuple(drawn), tuple(reply.logprobs), reply.text, reply.finish, context, action, result, succeeded, told
        )
        self.steps.append(step)
        self.ended = self._why_ended(action)
        return step

    def _why_ended(self, action) -> str:
        budget = self.budget
        if isinstance(action, Answer):
            return "answer"
        if len(self.steps) >= budget.steps:
            return "steps"
        if budget.tokens is not None and self.num_drawn >= budget.tokens:
            return "tokens"
        if budget.seconds is not None and self._clock() - self._begun >= budget.seconds:
            return "seconds"
        parts = [(*step.tokens, *step.told) for step in self.steps]
        parts = parts[-1:] if self._forgets else parts
        if self._context is not None and self._size(parts) > self._context:
            return "context"
        return ""

    def row(self) -> tuple[list[int], list[float], list[int]]:
        """(ids, log-probabilities, drawn): all that was read and drawn but what was told after the last reply; for each
        id its log-probability and 1 where it was drawn, 0 and 0 elsewhere.

        Raises InputError where a part was forgotten: no reply was drawn after these ids.
        """
        ids, logprobs, drawn = list(self.start), [0.0] * len(self.start), [0] * len(self.start)
        for number, step in enumerate(self.steps):
            if tuple(ids) != step.context:
                raise InputError("a part of the conversation was forgotten; give more context, or forgets=False")
            told = step.told if number + 1 < len(self.steps) else ()
            ids += [*step.tokens, *told]
            logprobs += [*step.logprobs, *[0.0] * len(told)]
            drawn += [1] * len(step.tokens) + [0] * len(told)
        return ids, logprobs, drawn
