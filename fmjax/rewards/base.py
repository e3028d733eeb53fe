"""A reward: what a config says of one, what it is given, and what becomes of one that raises or is no number."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fmjax.errors import ConfigError, RunError
from fmjax.layers.checks import check_choice

KINDS = ("function", "verifier", "lexicon", "models")


class RewardError(RunError):
    """The reward raised, or is no number."""


@dataclasses.dataclass(frozen=True)
class RewardSpec:
    """One of the rewards whose weighted sum a reply gets. Exactly one of function, verifier, lexicon and models is set.

    Attributes:
      function: import path `package.module:function`: `(prompts, replies)`, lists of texts (of token ids, where the
        data have no tokenizer), to a number each; a third argument gets the prompts' rows of the data, a dict of
        arrays. A pure function, or a resumed run is another.
      verifier: "maths" (1 where a reply ends with the prompt's answer, a number in any writing or else the same text),
        "unit_tests" (1 where the program in a reply passes the answer's tests, in the sandbox), or an import path of
        `(replies, answers)`, lists of texts, to a number each. The data have an answer to each prompt:
        `data.answer_bytes`.
      lexicon: "vader" (the package vaderSentiment), or a file with a word, a tab and its value in a line.
      models: paths of reward models' runs; of several `combine` makes one number.
      combine: of several models the "mean", or the "worst" (the least of them: Coste et al. 2023,
        https://arxiv.org/abs/2310.02743).
      weight: of this reward in the sum.
    """

    function: str | None = None
    verifier: str | None = None
    lexicon: str | None = None
    models: tuple[str, ...] = ()
    combine: str = "mean"
    weight: float = 1.0

    def check(self, where: str) -> None:
        """Raises ConfigError, naming `where` of the config, for what is no reward."""
        given = [name for name in KINDS if getattr(self, name)]
        if len(given) != 1:
            raise ConfigError(f"{where} has {' and '.join(given) or 'none'} of {', '.join(KINDS)}; set one of them")
        check_choice(f"{where}.combine", self.combine, ("mean", "worst"))
        if not math.isfinite(self.weight):
            raise ConfigError(f"{where}.weight = {self.weight} must be finite")

    @property
    def kind(self) -> str:
        return next(name for name in KINDS if getattr(self, name))


@dataclasses.dataclass(frozen=True)
class Samples:
    """Replies to be rewarded.

    Attributes:
      prompts, replies: a text each; token ids where there is no tokenizer.
      rows: of the prompts' data, arrays with an axis of replies.
      answers: of each prompt what is right, where the data tell it.
    """

    prompts: Sequence[Any]
    replies: Sequence[Any]
    rows: Mapping[str, np.ndarray]
    answers: Sequence[str] | None = None

    def part(self, index: int) -> "Samples":
        """One of them alone."""
        some = slice(index, index + 1)
        answers = None if self.answers is None else self.answers[some]
        return Samples(self.prompts[some], self.replies[some], {k: v[some] for k, v in self.rows.items()}, answers)

    def told(self, index: int) -> str:
        """Which it is, for messages."""
        return f"for the reply {self.replies[index]!r} to {self.prompts[index]!r}"


Reward = Callable[[Samples], Sequence[float]]
"""Computed on the host: a number a sample."""


def graded(name: str, reward: Reward, samples: Samples) -> tuple[np.ndarray, list[str]]:
    """(float32 [samples], NaN where there is none; what was wrong with each of those, naming the sample).

    A reward that raises is asked again, a sample at a time: so one that fails takes no other with it.

    Raises RewardError for what gives not one value each, and for one that raises for all together and for none alone.
    """
    count = len(samples.replies)
    try:
        given = _one_each(name, reward(samples), count)
    except RewardError:  # a fault of the reward, whatever the sample
        raise
    except Exception as error:
        values, wrong = _alone(name, reward, samples)
        if not wrong:
            raise RewardError(
                f"reward {name!r} raised {type(error).__name__}: {error}; for {count} replies"
            ) from error
        return values, wrong
    values = np.array([_number(one) for one in given], np.float32)
    return values, [_no_number(name, given[i], samples, i) for i in np.flatnonzero(np.isnan(values))]


def _alone(name: str, reward: Reward, samples: Samples) -> tuple[np.ndarray, list[str]]:
    """As `graded`, a sample at a time."""
    values, wrong = np.full(len(samples.replies), np.nan, np.float32), []
    for index in range(len(values)):
        try:
            (given,) = _one_each(name, reward(samples.part(index)), 1)
        except RewardError:
            raise
        except Exception as error:
            wrong.append(f"reward {name!r} raised {type(error).__name__}: {error}; {samples.told(index)}")
            continue
        values[index] = _number(given)
        if math.isnan(values[index]):
            wrong.append(_no_number(name, given, samples, index))
    return values, wrong


def _one_each(name: str, values: Any, count: int) -> list:
    """What a reward gave, a value each."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        raise RewardError(f"reward {name!r} gave {values!r} for {count} replies; expected a number each")
    values = list(values)
    if len(values) != count:
        raise RewardError(f"reward {name!r} gave {len(values)} values for {count} replies; expected a number each")
    return values


def _number(value: Any) -> float:
    """As float32; NaN for what is no finite number."""
    try:
        found = np.asarray(value, np.float32)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return float(found) if found.shape == () and np.isfinite(found) else math.nan


def _no_number(name: str, value: Any, samples: Samples, index: int) -> str:
    try:
        told = f"{float(value)}, which is not finite,"
    except (TypeError, ValueError, OverflowError):
        told = f"{str(value)[:60]!r}, which is no number,"
    return f"reward {name!r} gave {told} {samples.told(index)}"
