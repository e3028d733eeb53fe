"""What a model can be asked for, what tasks ask of it, and, before anything is computed, what it lacks for them."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fmjax.data.codecs.media import Media
from fmjax.errors import DataError, InputError
from fmjax.inference import generators, kinds
from fmjax.inference.scored_text import continuation_segments
from fmjax.registry import import_object
from fmjax.tasks import environments, functions
from fmjax.tasks.protocol import Apply, Generate, Request, Rolling, Rollout, Score, Task


MAKES = "make_images"


def capabilities(model) -> set[str]:
    """What the model can be asked for: kinds of requests in small letters, names of functions, and what it can be
    adapted to: texts ("adapt"), or values of a modality that it has vectors of ("adapt:MODALITY"). One that has both
    in one space has "two_towers", one that makes images of no image "make_images"."""
    found = set(functions.available(model))
    if generators.makes_images(model):
        found.add(MAKES)
    if "complete" not in found:  # it makes values that are no continuations, as which `Generate` is answered
        found.discard("generate")
    if found & {"score", "act"}:  # a language model acts by the likelihood of each action's name
        found.add("rollout")
    if "embed" in found and model.tokenizer is not None:
        found.add("adapt")
    if "embed" in found:
        found |= {f"adapt:{modality}" for modality in model.reads}
    if kinds.has_two_towers(model.module) and model.tokenizer is not None:
        found.add("two_towers")
    return found


WORDS = {
    "adapt": "vectors of texts",
    "two_towers": "images and texts in one space (as CLIP)",
    MAKES: "images that are made of a class, a caption or nothing",
}


def in_words(names: Iterable[str]) -> str:
    """Capabilities as messages call them."""
    told = (f"vectors of {name.removeprefix('adapt:')}s" if ":" in name else WORDS.get(name, name) for name in names)
    return ", ".join(told)


def needed(request: Request) -> str:
    """The capability that a request takes; "" for an import path, which is asked itself."""
    if isinstance(request, Apply):
        return "" if ":" in request.function else request.function
    if isinstance(request, Score | Rolling | Generate | Rollout):
        return type(request).__name__.lower()
    raise InputError(f"a task asked for {request!r}, which is none of Score, Rolling, Generate, Apply, Rollout")


def resolve(request: Request) -> None:
    """Looks up what a request names by an import path, or an environment. Raises InputError where it is not there."""
    if isinstance(request, Apply) and ":" in request.function:
        found = import_object(request.function, "function")
    elif isinstance(request, Rollout):
        found = environments.ENVIRONMENTS.get(request.environment)
    else:
        return
    if not callable(found):
        name = request.function if isinstance(request, Apply) else request.environment
        raise InputError(f"{name!r} is {found!r}; expected a function, or the class of an environment")


@contextlib.contextmanager
def naming(task: Task, place: str = "") -> Iterator[None]:
    """Puts the task's name and `place` in front of an InputError's message that does not begin with a task."""
    try:
        yield
    except InputError as error:
        message = str(error)
        raise type(error)(message if message.startswith("task ") else f"task {task.name}: {place}{message}") from None


def check_capabilities(model, prepared: Sequence[Any]) -> None:
    """Raises InputError naming every task whose requests the model cannot answer, and what it lacks.

    Also where a request names a function or an environment that is not there.
    """
    has, problems = capabilities(model), []
    for one in prepared:
        requests = [request for group in one.requests for request in group]
        with naming(one.task):
            for request in _different(requests):
                resolve(request)
        asked = {needed(request) for request in requests} - {""}
        # A function that the task's own adaptation adds is not there yet.
        wanted = set(one.task.uses) if one.task.adapts else asked | set(one.task.uses)
        if lacks := sorted(wanted - has):
            problems.append(f"{one.task.name} needs {in_words(lacks)}")
    if problems:
        known = f"what it has: {in_words(sorted(has)) or 'nothing'}"
        raise InputError(f"{model} cannot answer: {'; '.join(problems)} ({_reads(model)}{known})")
    for one in prepared:
        with naming(one.task):
            _check_media(model, [request for group in one.requests for request in group])
        if one.task.adapts:  # whose model is not there yet
            continue
        with naming(one.task):
            _check_lengths(model, [request for group in one.requests for request in group])


def _check_lengths(model, requests: Sequence[Request]) -> None:
    """Raises InputError for a continuation that is longer than the model's context."""
    if (limit := model.context_length) is None:
        return
    scores = [(request.context, request.continuation) for request in requests if isinstance(request, Score)]
    # No more tokens than bytes, one in front aside: most need not be looked at.
    if long := [pair for pair in scores if len(pair[1].encode()) >= limit]:
        continuation_segments(model, long)


def _reads(model) -> str:
    """What keeps a model from texts, in front of what it has."""
    if model.tokenizer is not None:
        return ""
    return "it has no tokenizer for texts; " if kinds.reads_tokens(model.module) else "it reads no texts; "


def _check_media(model, requests: Sequence[Request]) -> None:
    """Raises InputError for a value, such as an image, of a kind or size that the model's codec refuses: one of each
    shape is looked at, and the first in a file."""
    looked = {}
    for request in requests:
        if isinstance(request, Apply) and isinstance(request.inputs, Media):
            one = request.inputs
            looked.setdefault((one.modality, getattr(one.value, "shape", None)), one)
    for one in looked.values():
        if one.modality in model.reads:
            try:
                one.encode(model.reads[one.modality])
            except DataError as error:
                raise InputError(f"{one.name or 'a value'}: {error}") from None


def _different(requests: Sequence[Request]) -> list[Request]:
    """One of the requests for each function and environment."""
    return list({getattr(r, "function", getattr(r, "environment", None)): r for r in requests}.values())
