"""What happened in an episode, as JSONL: a line that says what was asked for, a line a step, a line at its end.

`replay` draws every step again from the recorded ids, and says where other ids come. Tools are not called again: their
results are those of the transcript.
"""

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from fmjax.agents.episode import Budget, Episode, Step
from fmjax.agents.actions import Answer, Malformed, Plan
from fmjax.agents.formats import chosen
from fmjax.agents.loop import Drawing, ask
from fmjax.agents.tools import Call, Tool, ToolError
from fmjax.errors import DataError, InputError, RunError
from fmjax.inference.fingerprint import model_fingerprint

VERSION = 2
STARTS = ("fingerprint", "model", "goal", "format", "now", "planning", "tools", "budget", "drawing", "start")
STEPS = ("tokens", "told", "result", "succeeded", "action")
"""What the first line, and the line of a step, must have."""


class Transcript:
    """Writes an episode down as it happens; every line is on the disk when its step has ended.

    Args:
      path: a file that is not there yet. Raises InputError where it is.
      start: what was asked for (`beginning`).
    """

    def __init__(self, path: str | pathlib.Path, start: Mapping[str, Any]):
        self.path = pathlib.Path(path).expanduser()
        try:
            self._file = self.path.open("x", encoding="utf-8")
        except FileExistsError:
            raise InputError(f"the transcript {self.path} is there already; name another, or take it away") from None
        except OSError as error:
            raise InputError(f"the transcript {self.path} cannot be written: {error.strerror}") from None
        self._write(start)

    def add(self, step: Step, number: int) -> None:
        """A line of a step."""
        self._write(line_of(step, number))

    def end(self, episode: Episode, seconds: float) -> None:
        """The last line."""
        self._write({
            "kind": "end", "ended": episode.ended, "answer": episode.answer, "steps": len(episode.steps),
            "tokens": episode.num_drawn, "seconds": round(seconds, 3),
        })  # fmt: skip
        self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()


def beginning(model, episode: Episode, tools, drawing: Drawing, planning: bool) -> dict[str, Any]:
    """The first line of a transcript: all that the ids depend on."""
    return {
        "kind": "start", "version": VERSION, "model": str(model.source), "fingerprint": model_fingerprint(model),
        "goal": episode.goal, "format": episode.format.name, "planning": planning,
        "now": episode.format.now.isoformat(),
        "tools": [{"name": t.name, "description": t.description, "parameters": dict(t.parameters)} for t in tools],
        "budget": dataclasses.asdict(episode.budget), "drawing": dataclasses.asdict(drawing),
        "start": list(episode.start),
    }  # fmt: skip


def line_of(step: Step, number: int) -> dict[str, Any]:
    """A step as its line."""
    return {
        "kind": "step", "step": number, "action": told(step.action), "text": step.text, "result": step.result,
        "succeeded": step.succeeded, "finish": step.finish, "num_context": len(step.context),
        "tokens": list(step.tokens), "logprobs": list(step.logprobs), "told": list(step.told),
    }  # fmt: skip


def told(action) -> dict[str, Any]:
    """What a reply means, as a transcript says it."""
    if isinstance(action, Call):
        return {"call": action.tool, "arguments": action.arguments}
    if isinstance(action, Answer):
        return {"answer": action.text}
    if isinstance(action, Plan):
        return {"plan": list(action.lines)}
    assert isinstance(action, Malformed)
    return {"malformed": action.why}


@dataclasses.dataclass
class RecordedTool:
    """A tool as a transcript tells of it, which is not called again."""

    name: str
    description: str
    parameters: Mapping[str, Mapping[str, Any]]

    def call(self, arguments: Mapping[str, Any]) -> str:
        raise ToolError(f"{self.name} is not called again: its results are those of the transcript")


def read(path: str | pathlib.Path) -> tuple[dict, list[dict]]:
    """(first line, lines of steps) of a transcript, which may have been cut short. Raises DataError."""
    path = pathlib.Path(path).expanduser()
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        start, steps = lines[0], [line for line in lines[1:] if line["kind"] == "step"]
        if start["kind"] != "start" or start["version"] != VERSION:
            raise ValueError(f"its first line is {start.get('kind')!r} of version {start.get('version')!r}")
        for line, names in [(start, STARTS), *((step, STEPS) for step in steps)]:
            if missing := [name for name in names if name not in line]:
                raise ValueError(f"a line of kind {line['kind']!r} has no {', '.join(missing)}")
    except OSError as error:
        raise DataError(f"the transcript {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"{path} is no transcript of version {VERSION}: {error}") from None
    return start, steps


class ReplayError(RunError):
    """Other ids came than those of a transcript."""


def replay(model, path: str | pathlib.Path) -> int:
    """Draws a transcript's steps again; how many there are.

    Raises ReplayError naming the first step that differs, in what the model read or in what it drew; InputError for
    another model.
    """
    start, lines = read(path)
    found = model_fingerprint(model)
    if found != start["fingerprint"]:
        raise InputError(
            f"{path} is of another model or of other code: {start['model']} with the fingerprint "
            f"{start['fingerprint']}, here {found}"
        )
    try:
        tools: list[Tool] = [RecordedTool(**tool) for tool in start["tools"]]
        budget = dataclasses.replace(Budget(**start["budget"]), seconds=None)
        drawing, now = Drawing(**start["drawing"]), datetime.datetime.fromisoformat(start["now"])
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} is no transcript of version {VERSION}: {error}") from None
    format = chosen(start["format"], model.tokenizer, tools, now)
    length = model.context_length
    episode = Episode(format, start["goal"], tools, budget, planning=start["planning"], context_length=length)
    _same(path, "the beginning", list(episode.start), start["start"])
    for number, line in enumerate(lines):
        if episode.ended:
            raise ReplayError(f"{path}: replayed, it ended before step {number} ({episode.ended})")
        (reply,) = ask(model, [episode], drawing, [0])
        _same(path, f"step {number}", list(reply.tokens), line["tokens"])
        step = episode.take(reply, (line["result"], line["succeeded"]))
        _same(path, f"what is told after step {number}", list(step.told), line["told"])
    return len(lines)


def _same(path, what: str, found: list[int], recorded: list[int]) -> None:
    if found != recorded:
        place = next((i for i, (a, b) in enumerate(zip(found, recorded)) if a != b), min(len(found), len(recorded)))
        raise ReplayError(f"{path}: {what} is not as it was, from its token {place} on: {found} in place of {recorded}")
