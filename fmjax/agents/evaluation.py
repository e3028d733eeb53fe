"""Agents as evaluation tasks: problems from seeds, success by program, and the same without tools."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

from fmjax.agents import problems
from fmjax.agents.actions import Malformed
from fmjax.agents.episode import Budget, Episode
from fmjax.agents.formats import chosen
from fmjax.agents.loop import Drawing, run
from fmjax.agents.tools import Call
from fmjax.errors import InputError
from fmjax.inference.prompts import need_tokenizer
from fmjax.tasks.answers import CHAT_DATE
from fmjax.tasks.protocol import Rollout, Task

TOGETHER = 32
"""Episodes that are on their way at once."""


class Played:
    """An environment that a language model acts in with texts and tools (`fmjax.tasks.environments`).

    Attributes:
      problem: (seed, embed) to a context with a `Problem`.
      with_tools: whether its tools may be called; else the model is told of none.
      budget: of an episode; of a model with a short context a reply has a quarter of it at most.
    """

    problem: Callable
    with_tools = True
    budget = Budget(steps=6, reply_tokens=200)

    def play(self, model, requests: Sequence[Rollout], progress=None, work=None) -> Iterator[tuple[int, dict]]:
        """(index, what `summary` says) of episodes, drawn greedily."""
        need_tokenizer(model)
        for first in range(0, len(requests), TOGETHER):
            some = requests[first : first + TOGETHER]
            with contextlib.ExitStack() as stack:
                posed = [stack.enter_context(type(self).problem(one.seed, model.embed)) for one in some]
                episodes = [self._episode(model, one.prompt, problem) for one, problem in zip(some, posed)]
                run(model, episodes, Drawing())
                for index, (episode, problem) in enumerate(zip(episodes, posed), first):
                    if work is not None:
                        work.lengths.update(len(step.context) + len(step.tokens) for step in episode.steps)
                    yield index, summary(episode, problem.succeeded(episode.answer or ""))

    def _episode(self, model, prompt: str, problem: problems.Problem) -> Episode:
        tools = list(problem.tools) if self.with_tools else []
        format, budget, context = chosen("auto", model.tokenizer, tools, CHAT_DATE), self.budget, model.context_length
        if context is not None:
            budget = dataclasses.replace(budget, reply_tokens=max(1, min(budget.reply_tokens, context // 4)))
        try:
            return Episode(format, prompt + problem.goal, tools, budget, context_length=context)
        except InputError as error:
            raise InputError(f"{type(self).__name__}: {error}; the task cannot be asked of this model") from None


def summary(episode: Episode, success: bool) -> dict[str, float]:
    """An episode in numbers: replies ("steps"), those of them that call a tool, whose call failed, or that mean nothing
    ("malformed"), and drawn tokens; success and answered are 0 or 1."""
    calls = [step for step in episode.steps if isinstance(step.action, Call)]
    return {
        "success": float(success), "steps": float(len(episode.steps)), "calls": float(len(calls)),
        "failed_calls": float(sum(not step.succeeded for step in calls)),
        "malformed": float(sum(isinstance(step.action, Malformed) for step in episode.steps)),
        "tokens": float(episode.num_drawn),
        "answered": float(episode.answer is not None),
    }  # fmt: skip


class Arithmetic(Played):
    problem = staticmethod(problems.arithmetic)


class ArithmeticWithoutTools(Arithmetic):
    with_tools = False


class Lookup(Played):
    problem = staticmethod(problems.lookup)


class LookupWithoutTools(Lookup):
    with_tools = False


class SmallFiles(Played):
    problem = staticmethod(problems.small_files)


class AgentTask(Task):
    """Problems with the seeds 0 to 49. `success` is the part that is solved; `success_without_tools` that of the same
    problems by a model that is told of no tool: what it knows or guesses."""

    metrics = (
        "success", "success_without_tools", "answered", "steps", "calls", "failed_calls", "malformed", "tokens",
    )  # fmt: skip
    version = "2"
    needs = "nothing: the problems are made from seeds"
    uses = ("rollout", "complete", "embed")
    environment: str
    has_control = True

    def documents(self, context):
        return list(range(50))

    def requests(self, document):
        path = f"fmjax.agents.evaluation:{self.environment}"
        return [Rollout(path, document), *[Rollout(f"{path}WithoutTools", document)] * self.has_control]

    def statistics(self, document, answers):
        found, *controls = answers
        return dict(found) | {"success_without_tools": control["success"] for control in controls}


class AgentArithmetic(AgentTask):
    name, environment = "agent_arithmetic", "Arithmetic"
    description = "arithmetic with a calculator, and without"


class AgentLookup(AgentTask):
    name, environment = "agent_lookup", "Lookup"
    description = "facts of invented towns, by search in documents, and without"


class AgentFiles(AgentTask):
    name, environment = "agent_files", "SmallFiles"
    description = "numbers written from file to file, with file tools"
    has_control = False  # without tools no file can be written
    metrics = tuple(name for name in AgentTask.metrics if name != "success_without_tools")
