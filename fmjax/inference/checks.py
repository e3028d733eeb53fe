"""Checks of what a caller asks of a model, so that a bad value is an error that names it."""

import functools
import inspect
import math
import operator
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.data.codecs.media import described
from fmjax.errors import InputError, RunError
from fmjax.layers.position import default_positions
from fmjax.registry import nearest


def is_number(value: Any) -> bool:
    """Whether it is a finite real number, of Python or NumPy."""
    is_real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def check_whole(low: int, high: int | None = None, **values) -> None:
    """Raises InputError unless every value is a whole number of at least `low`, and at most `high`."""
    limits = f"of at least {low}" if high is None else f"from {low} to {high}"
    for name, value in values.items():
        is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not is_whole or value < low or (high is not None and value > high):
            raise InputError(f"{name} must be a whole number {limits}, got {value!r}")


def check_list(what: str, values: Any) -> None:
    """Raises InputError for one text, or anything else that is no list of `what`."""
    if isinstance(values, str | bytes):
        raise InputError(f"expected a list of {what}, got one text; put it in a list")
    if not isinstance(values, Sequence) and not hasattr(values, "__array__"):
        raise InputError(f"expected a list of {what}, got {values!r}")


def check_options(what: str, options: Iterable[str], known: Sequence[str]) -> None:
    """Raises InputError, with the nearest name, for an option that `what` does not know."""
    for name in options:
        if name not in known:
            listed = ", ".join(dict.fromkeys(known))
            raise InputError(f"{what} has no option {name!r}{nearest(name, known)} It has: {listed}")


def make_callable(name: str, function: Callable) -> None:
    """Makes the module of this name callable as `function`: once imported, it is in its place in the package."""

    class Module(types.ModuleType):
        def __call__(self, *arguments, **options):
            check_options(name, options, list(inspect.signature(function).parameters))
            return function(*arguments, **options)

    Module.__call__.__doc__ = function.__doc__
    sys.modules[name].__class__ = Module


def named_options(*targets: Callable) -> Callable:
    """Decorates a method: an option that neither it nor `targets`, which its `**options` go to, has by keyword is an
    InputError with the nearest name, before anything is computed.

    targets: an Options dataclass, or functions with keyword-only options.
    """

    def decorate(method):
        known = [name for name, p in inspect.signature(method).parameters.items() if p.kind is not p.VAR_KEYWORD][1:]
        for target in targets:
            parameters = inspect.signature(target).parameters.items()
            known += [name for name, p in parameters if isinstance(target, type) or p.kind is p.KEYWORD_ONLY]

        @functools.wraps(method)
        def checked(self, *arguments, **options):
            check_options(method.__name__, options, known)
            return method(self, *arguments, **options)

        return checked

    return decorate


def check_no_text(tokens: Any) -> None:
    """Raises InputError, pointing to `Model.encode`, for a text, or a list that begins with one, as token ids."""
    first = tokens
    while isinstance(first, list | tuple) and first:
        first = first[0]
    if isinstance(first, str | bytes):
        raise InputError(
            f"apply takes token ids [B, T], got the text {first[:40]!r}; of a model m and a text: "
            "m.apply([m.encode(text)])"
        )


def as_tokens(tokens: Any) -> jax.Array:
    """Token ids as an array. Raises InputError for rows of several lengths."""
    try:
        return jnp.asarray(tokens)
    except (ValueError, TypeError):
        raise InputError(
            f"apply takes token ids [B, T], rows of one length, got {str(tokens)[:60]}; fill the shorter "
            "rows up behind their end, or apply the model to one after the other"
        ) from None


def token_ids(what: str, prompt: Any) -> list[int]:
    """The ids of a prompt that is no text. Raises InputError, naming `what`, for what is no list of whole numbers."""
    try:
        if isinstance(prompt, str | bytes):
            raise TypeError
        return [operator.index(token) for token in prompt]
    except TypeError:
        raise InputError(f"{what} must be a text or a list of token ids, got {described(prompt)}") from None


def not_finite(prompt: int, step: int) -> RunError:
    """The error for logits, after `step` new tokens of a prompt, from which no token can be drawn."""
    return RunError(
        f"prompt {prompt}: after {step} new tokens the model's logits are not finite, and none can be drawn from them. "
        "Damaged or diverged weights do that, numbers too large for float16, or a temperature near 0 (0 is greedy)"
    )


def check_inputs(module: nn.Module, params, tokens, inputs: Mapping[str, Any]) -> None:
    """Raises InputError for token ids, token types or positions that a text model has no embedding for: JAX would
    compute NaN of them.

    Args:
      module, params: the model; one without `vocab_size` is not looked at, and positions only where they are learned
        and it is of a family (`fmjax.models.decoder`, `fmjax.models.encoder`).
      tokens: its first argument.
      inputs: further ones by name.

    What is being traced (jit, grad, vmap) or lies on other hosts cannot be looked at, but for its shape.
    """
    vocab_size, types = getattr(module, "vocab_size", None), getattr(module, "num_token_types", None)
    if vocab_size is None:
        return
    if np.ndim(tokens) != 2:
        hint = "; put the row in a list: m.apply([tokens])" if np.ndim(tokens) == 1 else ""
        raise InputError(f"apply takes token ids [B, T], rows of one length, got shape {list(np.shape(tokens))}{hint}")
    given = {"tokens": tokens, **inputs}
    for name, size in {"tokens": vocab_size, "source_tokens": vocab_size, "token_types": types}.items():
        if size is not None and _is_known(given.get(name)):
            ids = np.asarray(given[name])
            outside = ids[(ids < 0) | (ids >= size)]
            if outside.size:
                raise InputError(f"{name} contain {outside.flat[0]}; the model has 0..{size - 1}")
    if not hasattr(module, "features") or "position_embedding" not in params or np.ndim(tokens) != 2:
        return
    rows = params["position_embedding"]["embedding"].shape[0] - getattr(module, "position_offset", 0)
    positions, segment_ids = given.get("positions"), given.get("segment_ids")
    if positions is None and tokens.shape[1] > rows and (segment_ids is None or _is_known(segment_ids)):
        positions = default_positions(tokens, segment_ids)
    if _is_known(positions) and positions.size and not 0 <= positions.min() <= positions.max() < rows:
        place = int(positions.min() if positions.min() < 0 else positions.max())
        raise InputError(
            f"{type(module).__name__} has {rows} learned positions, 0..{rows - 1}, and a token of {tokens.shape[1]} in "
            f"a row would be at {place}; shorten the text"
        )


def _is_known(array: Any) -> bool:
    """Whether the values of an array can be read here."""
    if isinstance(array, jax.Array):
        return not isinstance(array, jax.core.Tracer) and array.is_fully_addressable
    return array is not None
