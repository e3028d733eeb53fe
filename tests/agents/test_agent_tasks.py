"""Problems with scripted models: success is decided by the program, and the control has no tools."""

import contextlib
import json
import re

import numpy as np
import pytest
from scripted import PLAIN, Scripted

from fmjax.agents import evaluation, problems
from fmjax.agents.loop import run
from fmjax.agents.tools import Call, by_name, carried_out
from fmjax.errors import InputError
from fmjax.tasks import environments
from fmjax.tasks.protocol import Rollout


def letters(texts):
    """Vectors of texts: how often each word of two letters occurs."""
    return np.asarray([[text.lower().count(a + b) + 1e-6 for a in "abcdefgh" for b in "aeiourl"] for text in texts])


@pytest.mark.parametrize("seed", range(4))
def test_problems_know_their_answers(seed):
    with contextlib.ExitStack() as stack:
        sums, town, files = (
            stack.enter_context(make(seed, letters))
            for make in (problems.arithmetic, problems.lookup, problems.small_files)
        )
        value = eval(sums.goal.removeprefix("What is ").rstrip("?"))
        assert sums.succeeded(f"It is {value:,}.") and not sums.succeeded(f"{value + 1}") and not sums.succeeded("")
        result, _ = carried_out(by_name(town.tools), Call("search", {"query": town.goal}))
        names = [name for kind in problems.KINDS.values() for name in kind]
        right = [name for name in names if town.succeeded(f"I think {name}.")]
        assert len(right) == 1 and not town.succeeded(" ".join(names)) and "[" in result
        tools = by_name(files.tools)
        listed = carried_out(tools, Call("list_files", {}))[0].splitlines()
        numbers = {name: carried_out(tools, Call("read_file", {"name": name}))[0].strip() for name in listed}
        named = re.search(r"number in (\w+\.txt)", files.goal)
        wanted = numbers[named[1]] if named else max(numbers.values())
        assert not files.succeeded(wanted)
        carried_out(tools, Call("write_file", {"name": "copy.txt", "text": wanted}))
        assert files.succeeded("")


def test_what_the_files_task_asks_and_where_it_cannot():
    (one,) = evaluation.AgentFiles().requests(0)
    assert "success_without_tools" not in evaluation.AgentFiles().statistics(0, [{"success": 1.0}])
    for template in (None, PLAIN):  # also of models without a template
        model = Scripted([], template)
        with contextlib.ExitStack() as stack:
            problem = stack.enter_context(problems.small_files(0, letters))
            whole = evaluation.SmallFiles()._episode(model, "", problem)
            assert len(whole.format.tools) == 3 and whole.budget.reply_tokens == 200
            model.context_length = 4 * len(whole.start)
            short = evaluation.SmallFiles()._episode(model, "", problem)
            assert short.budget.reply_tokens == min(200, len(whole.start))
            model.context_length = len(whole.start)
            with pytest.raises(InputError, match="SmallFiles: .* more than the model's context of"):
                evaluation.SmallFiles()._episode(model, "", problem)


def test_replies_that_mean_nothing_are_counted():
    model = Scripted(["oops", {"thought": "", "answer": "7"}], PLAIN)
    with problems.arithmetic(0, letters) as problem:
        one = evaluation.Arithmetic()._episode(model, "", problem)
        run(model, [one])
    found = evaluation.summary(one, False)
    assert (found["steps"], found["malformed"], found["calls"], found["answered"]) == (2, 1, 0, 1)


class Solver(Scripted):
    """Calls the calculator where it is told of one, and else guesses."""

    embed = staticmethod(letters)

    def __init__(self):
        super().__init__([], PLAIN)

    def complete(self, prompts, **options):
        self.replies = [self.reply(bytes(i for i in ids if i < 256).decode()) for ids in prompts]
        return super().complete(prompts, **options)

    def reply(self, prompt):
        if "calculator(" not in prompt:
            return {"thought": "", "answer": "7"}
        if found := re.search(r"Result of the tool:\n(\S+)", prompt):
            return {"thought": "", "answer": found[1]}
        expression = re.search(r"What is ([^?]*)\?", prompt)[1]
        return {"thought": "", "tool": "calculator", "arguments": {"expression": expression}}


def test_success_comes_from_the_tools_and_goes_with_them():
    task, model = evaluation.AgentArithmetic(), Solver()
    answers = []
    for which in (0, 1):
        requests = [task.requests(document)[which] for document in range(5)]
        assert isinstance(requests[0], Rollout)
        answers.append([summary for _, summary in sorted(environments.run(model, requests))])
    for found, control in zip(*answers):
        statistics = task.statistics(0, [found, control])
        assert statistics["success"] == 1 and statistics["success_without_tools"] == 0
        assert (found["steps"], found["calls"], control["calls"], found["failed_calls"]) == (2, 1, 0, 0)
        assert found["malformed"] == control["malformed"] == 0
        assert set(task.metrics) <= set(statistics)
    schemas = [json.loads(options["constraint"][0].source)["anyOf"] for _, options in model.asked]
    assert [len(one) for one in schemas] == [2, 2, 1]
