"""Checks on configuration values shared by every layer and model."""

from collections.abc import Iterable

from fmjax.errors import ConfigError
from fmjax.registry import nearest

COMPUTE_DTYPES = ("float32", "bfloat16", "float16")


def check_choice(field: str, value: str, known: Iterable[str]) -> None:
    """Raises ConfigError, naming the nearest known value, unless `value` is one of `known`."""
    known = tuple(known)
    if value not in known:
        raise ConfigError(f"{field}={value!r} is not known{nearest(value, known)} Known: {', '.join(known)}.")


def check_positive(**fields) -> None:
    """Raises ConfigError unless every field is a whole number of at least 1."""
    for field, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{field}={value!r}: expected a whole number of at least 1.")


def check_rate(field: str, value: float) -> None:
    """Raises ConfigError unless 0 <= value < 1."""
    if not 0.0 <= value < 1.0:
        raise ConfigError(f"{field}={value!r}: expected a number from 0 up to, not including, 1.")
