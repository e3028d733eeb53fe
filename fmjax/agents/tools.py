"""What a tool is, and how the call of one that a model wrote is checked and carried out.

A tool is an object with `name`, `description`, `parameters` (a JSON schema of its arguments) and `call(arguments)`,
which gives a text. Whatever goes wrong in it is told to the model and ends nothing.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from fmjax.errors import InputError
from fmjax.registry import nearest

LONGEST_RESULT = 2000
"""Characters of a result that a model is told."""


class ToolError(Exception):
    """What the model is told of a call that could not be carried out."""


class Tool(Protocol):
    """What every tool has.

    Attributes:
      name: what the model calls it by, a Python identifier.
      description: what it does, for the model: one line.
      parameters: JSON schema of its arguments, an object: {name: schema}; all are required.
    """

    name: str
    description: str
    parameters: Mapping[str, Mapping[str, Any]]

    def call(self, arguments: Mapping[str, Any]) -> str:
        """The result. Raises ToolError saying to the model what is wrong and what to do."""


@dataclasses.dataclass(frozen=True)
class Call:
    """A tool that the model wants called.

    Attributes:
      tool, arguments: its name, and what it is given.
      others: calls that the same reply has behind this one, and that are not carried out.
    """

    tool: str
    arguments: Mapping[str, Any]
    others: int = 0


TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool}


def schema(tool: Tool) -> dict[str, Any]:
    """A tool as chat templates take it: {"type": "function", "function": {...}}."""
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": arguments_schema(tool)},
    }


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """JSON schema of the arguments of a tool."""
    names = list(tool.parameters)
    return {
        "type": "object", "properties": {name: dict(tool.parameters[name]) for name in names}, "required": names,
        "additionalProperties": False,
    }  # fmt: skip


def by_name(tools: Sequence[Tool]) -> dict[str, Tool]:
    """The tools by their names. Raises InputError for two of one name, or a name that is no identifier."""
    found = {}
    for tool in tools:
        if not tool.name.isidentifier():
            raise InputError(f"the tool {tool.name!r} needs a name of letters, digits and _, such as 'calculator'")
        if tool.name in found:
            raise InputError(f"two tools are called {tool.name!r}; rename one")
        found[tool.name] = tool
    return found


def carried_out(tools: Mapping[str, Tool], call: Call) -> tuple[str, bool]:
    """(what the model is told of its call, whether it succeeded): the tool's result, or what is wrong; and that other
    calls of the same reply were not carried out."""
    result, succeeded = _carried_out(tools, call)
    if call.others:
        result += f"\n({call.others} more calls in your reply were not carried out: make one call in each reply)"
    return result, succeeded


def _carried_out(tools: Mapping[str, Tool], call: Call) -> tuple[str, bool]:
    try:
        if call.tool not in tools:
            known = ", ".join(tools) or "none"
            raise ToolError(f"there is no tool {call.tool!r}{nearest(call.tool, tools)} Tools: {known}")
        tool = tools[call.tool]
        check_arguments(tool, call.arguments)
        return cut(tool.call(call.arguments)), True
    except ToolError as error:
        return cut(f"error: {error}"), False
    except Exception as error:  # whatever a tool does, the model is told, and goes on
        return cut(f"error: {type(error).__name__}: {error}"), False


def check_arguments(tool: Tool, arguments: Any) -> None:
    """Raises ToolError for arguments that are not those of the tool."""
    if not isinstance(arguments, Mapping):
        raise ToolError(f"{tool.name} takes an object of arguments, got {arguments!r}")
    for name in arguments:
        if name not in tool.parameters:
            raise ToolError(f"{tool.name} has no argument {name!r}; it takes {', '.join(tool.parameters) or 'none'}")
    for name, wanted in tool.parameters.items():
        if name not in arguments:
            raise ToolError(f"{tool.name} needs the argument {name!r}")
        value, kind = arguments[name], TYPES.get(wanted.get("type"))
        is_flag = isinstance(value, bool) and wanted.get("type") != "boolean"
        if kind is not None and (is_flag or not isinstance(value, kind)):
            raise ToolError(f"{name} of {tool.name} must be of type {wanted['type']}, got {value!r}")


def sound(value: Any) -> Any:
    """A value as of JSON, in whose texts U+FFFD stands for halves of surrogate pairs: no UTF-8 can write them."""
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, Mapping):
        return {sound(key): sound(item) for key, item in value.items()}
    return [sound(item) for item in value] if isinstance(value, list | tuple) else value


def cut(text: str, longest: int = LONGEST_RESULT) -> str:
    """A text of at most so many characters, which says so where it was longer."""
    text = sound(str(text))
    return text if len(text) <= longest else f"{text[:longest]}\n... (cut after {longest} of {len(text)} characters)"
