"""The rewards of a run: several with weights, whose sum a reply gets."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fmjax.errors import ConfigError
from fmjax.parallel.hosts import from_first_process
from fmjax.rewards.base import RewardSpec, Samples, graded
from fmjax.rewards.functions import opened
from fmjax.rewards.models import check_context, combined, model_scores


class Graded(NamedTuple):
    """What replies got.

    Attributes:
      total: float32 [replies], the weighted sum; NaN where a reward failed whose weight is not 0.
      parts: float32 [replies, rewards], each by itself, without its weight; NaN where it failed.
      wrong: what was wrong with each reward that failed; in process 0 alone.
    """

    total: np.ndarray
    parts: np.ndarray
    wrong: list[str]


class Several:
    """Opened from what a config says.

    Args:
      reward: import path of one function, or "".
      rewards: sections of `RewardSpec` by names of the user's choice, in place of it.

    Attributes:
      contents: a hash of each lexicon's, by its place in the config.

    Raises ConfigError where there is none, or one is no reward.
    """

    def __init__(self, reward: str, rewards: Mapping[str, Mapping[str, Any]] | None):
        if bool(reward) == bool(rewards):
            raise ConfigError(
                f"objective.reward = {reward!r} and objective.rewards = {rewards!r}: set one of them, the import path "
                "of a function or sections by name such as {'right': {'verifier': 'maths'}}"
            )
        self.specs = {"reward": RewardSpec(function=reward)}
        if rewards:
            self.specs = {name: RewardSpec(**section) for name, section in rewards.items()}
        self.functions, self.contents = {}, {}
        for name, spec in self.specs.items():
            where = "objective.reward" if reward else f"objective.rewards.{name}"
            spec.check(where)
            where = where if reward else f"{where}.{spec.kind}"
            self.functions[name] = opened(spec, where)
            if spec.lexicon:
                self.contents[where] = self.functions[name].content

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.specs)

    @property
    def needs_answers(self) -> bool:
        """Whether the data have to tell what is right."""
        return any(spec.verifier for spec in self.specs.values())

    def models(self) -> dict[str, str]:
        """Paths of reward models, by the names that an objective gives them."""
        return {key: path for name in self.specs for key, path in self._models(name).items()}

    def _models(self, name: str) -> dict[str, str]:
        return {f"rewards.{name}.models[{i}]": path for i, path in enumerate(self.specs[name].models)}

    def check_context(self, model, length: int) -> None:
        """Raises ConfigError, naming it, for a reward model that does not read so many tokens; `model`: see `grade`."""
        for name in self.models():
            check_context(name, model.opened(name).module, length)

    def grade(self, samples: Samples, texts: Sequence[Sequence[int]], model, length: int, rows: int) -> Graded:
        """What the samples get; all processes call it.

        Args:
          texts: token ids of each prompt with its reply, for reward models; `length`, `rows`: see `model_scores`.
          model: whose `opened(name)` gives a reward model.

        Raises RewardError as `fmjax.rewards.base.graded`.
        """
        parts = np.zeros((len(texts), len(self.specs)), np.float32)
        wrong: list[str] = []
        if jax.process_index() == 0:
            for place, (name, function) in enumerate(self.functions.items()):
                if function is not None:
                    parts[:, place], failed = graded(self._called(name), function, samples)
                    wrong += failed
        parts = np.frombuffer(from_first_process(parts.tobytes()), np.float32).reshape(parts.shape).copy()
        for place, (name, spec) in enumerate(self.specs.items()):
            if spec.models:
                others = [model.opened(key) for key in self._models(name)]
                found = combined(model_scores(others, texts, length, rows), spec.combine)
                parts[:, place] = found
                wrong += [
                    f"reward {name!r} gave {found[i]}, which is not finite, {samples.told(i)}"
                    for i in np.flatnonzero(~np.isfinite(found))
                ]
        parts = np.where(np.isfinite(parts), parts, np.float32("nan"))
        weights = np.array([spec.weight for spec in self.specs.values()])
        counted = weights != 0  # NaN times 0 is NaN
        total = parts[:, counted].astype(np.float64) @ weights[counted]
        return Graded(total.astype(np.float32), parts, wrong)

    def _called(self, name: str) -> str:
        """A reward in messages: a single function by its path."""
        return self.specs[name].function if self.names == ("reward",) and self.specs[name].function else name
