"""Rewards that are computed on the host: functions, verifiers and lexicons, opened from what a config names."""

import inspect
from collections.abc import Callable

from fmjax.errors import ConfigError
from fmjax.registry import import_object, nearest
from fmjax.rewards.base import Reward, RewardSpec
from fmjax.rewards.lexicon import open_lexicon

VERIFIERS = {"maths": "fmjax.rewards.maths:verify", "unit_tests": "fmjax.tasks.program_rewards:verify"}
"""Names of verifiers, by import path."""


def opened(spec: RewardSpec, where: str) -> Reward | None:
    """The function of a reward on the host; None for reward models.

    where: of the config, for messages.

    Raises ConfigError for what is none.
    """
    if spec.function:
        return _function(spec.function, where)
    if spec.verifier:
        return _verifier(spec.verifier, where)
    if spec.lexicon:
        return open_lexicon(spec.lexicon, where)
    return None


def _function(path: str, where: str) -> Reward:
    function = import_object(path, where)
    count = _arguments(function, (3, 2))
    if count is None:
        raise ConfigError(f"{where} = {path!r} cannot be called as reward(prompts, replies[, rows])")
    return lambda samples: function(*(samples.prompts, samples.replies, samples.rows)[:count])


def _verifier(name: str, where: str) -> Reward:
    if name not in VERIFIERS and ":" not in name:
        raise ConfigError(
            f"unknown verifier {where} = {name!r}{nearest(name, VERIFIERS)} Known: {', '.join(VERIFIERS)}; or an "
            "import path 'package.module:function'"
        )
    function = import_object(VERIFIERS.get(name, name), where)
    if _arguments(function, (2,)) is None:
        raise ConfigError(f"{where} = {name!r} cannot be called as verify(replies, answers)")
    return lambda samples: function(samples.replies, samples.answers)


def _arguments(function: Callable, counts: tuple[int, ...]) -> int | None:
    """How many arguments a function takes: the first of `counts` that it may be called with."""
    for count in counts:
        try:
            inspect.signature(function).bind(*range(count))
        except TypeError:
            continue
        return count
    return None
