"""How models without a chat template are told of tools: a line each."""

import datetime
from collections.abc import Sequence

from fmjax.agents.actions import Action, Answer, Malformed, cut_off
from fmjax.agents.tools import Call, Tool
from fmjax.data.tokenizers.base import Tokenizer
from fmjax.errors import InputError, TokenizerError
from fmjax.inference.constraints import Constraint


class Lines:
    """For models without a chat template, such as ones trained on it: a line each.

    `> GOAL`, then lines of the model, `TOOL ARGUMENT` or `answer TEXT`, and behind each call `= RESULT`. Only tools
    whose arguments are texts can be called so; of several each but the last is one word: `write_file NAME TEXT`.
    """

    name = "lines"

    def __init__(self, tokenizer: Tokenizer, tools: Sequence[Tool], now: datetime.datetime):
        self.tokenizer, self.tools, self.now = tokenizer, {tool.name: tool for tool in tools}, now
        for tool in tools:
            if any(one.get("type") != "string" for one in tool.parameters.values()):
                raise InputError(f"--format=lines: the tool {tool.name!r} takes more than texts; leave it out")
        newline = tokenizer.encode("a\n")
        if tokenizer.decode(newline[:-1]) != "a" or tokenizer.decode([newline[-1]]) != "\n":
            raise TokenizerError(f"--format=lines: a line's end is no token of {tokenizer.source}")
        self.stop_ids = (newline[-1],)

    def begin(self, goal: str, planning: bool) -> list[int]:
        if planning:
            raise InputError("--format=lines has no plan; leave --plan out")
        first = [self.tokenizer.bos_id] if self.tokenizer.add_bos and self.tokenizer.bos_id is not None else []
        return first + self._line(f"> {goal}")

    def constraint(self, planning: bool) -> Constraint | None:
        return None

    def read(self, tokens: Sequence[int], planning: bool, finish: str) -> Action:
        if finish != "stop":
            return cut_off(len(tokens))
        name, _, argument = self.tokenizer.decode(list(tokens)).strip().partition(" ")
        if name == "answer":
            return Answer(argument.strip())
        if name not in self.tools:
            return Malformed(f"a line is answer TEXT or {' or '.join(self.tools) or 'nothing else'} with an argument")
        names = list(self.tools[name].parameters)
        words = argument.strip().split(maxsplit=len(names) - 1) if names else []
        return Call(name, dict(zip(names, words)) if len(names) > 1 else dict.fromkeys(names, argument.strip()))

    def told(self, tokens: Sequence[int], text: str, *, from_tool: bool, goal: str, planning: bool) -> list[int]:
        ended = bool(tokens) and tokens[-1] == self.stop_ids[0]
        return ([] if ended else list(self.stop_ids)) + self._line(f"= {text}")

    def _line(self, text: str) -> list[int]:
        """One line: results of several, and what would begin another, become one."""
        return [*self.tokenizer.encode(" ".join(text.split())), *self.stop_ids]
