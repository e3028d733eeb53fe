"""Python programs that a model writes, in the sandbox (`fmjax.tasks.sandbox`)."""

from collections.abc import Mapping
from typing import Any

from fmjax.agents.tools import ToolError
from fmjax.errors import InputError
from fmjax.tasks import sandbox


class PythonCode:
    """Raises InputError where there is no sandbox, before a model has computed anything; also with FMJAX_UNSAFE_CODE=1,
    which would give a model that reads any text a shell on this machine."""

    name = "python"
    description = "Runs a Python program (standard library, no network, no files of this machine); print what you need."
    parameters = {"program": {"type": "string"}}

    def __init__(self, limits: sandbox.Limits = sandbox.Limits()):
        if sandbox.choose_unsafe():
            raise InputError(
                "the tool python needs the sandbox, which does not work here; FMJAX_UNSAFE_CODE=1 is for evaluation, "
                "and gives no agent a shell on this machine: leave the tool out"
            )
        self._limits = limits

    def call(self, arguments: Mapping[str, Any]) -> str:
        """What the program printed. Raises ToolError for one that does not run to its end."""
        found = sandbox.run(arguments["program"], self._limits)
        if not found.passed:
            raise ToolError(f"the program {found.reason}{': ' + found.detail if found.detail else ''}")
        return found.stdout or "the program printed nothing"
