"""On-policy training: rows that depend on the parameters, made every few steps and regenerated when a run resumes.

Rollout r, the rows of steps r k to (r + 1) k - 1, is a pure function of the config, the parameters at step r k and r.
Checkpoints lie at multiples of k, so what a kill has lost is made again, bit by bit.
"""

import time
from collections.abc import Callable

import jax
import numpy as np

from fmjax.errors import ConfigError, RunError
from fmjax.parallel import watch


class RolloutError(RunError):
    """What an objective collected cannot be trained on."""


class Experience:
    """Batches from what the objective collects; stands where a `fmjax.data.loader.Loader` does.

    Args:
      objective: an on-policy one (`fmjax.objectives.base`).
      prompts: endless random-access rows of the data.
      batch_size: rows of the global batch.
      rows: those of the batch that this process holds.
      example: the arrays of one collected row.
      key_of: the random key of a rollout, by its number.
      inside: makes the context in which the model is computed with (`Program.inference`).

    Attributes:
      wait_seconds: time spent waiting inside `next`: none, since collecting is no input.
      collect_seconds: time spent collecting so far.
    """

    def __init__(self, objective, prompts, batch_size: int, rows: list[int], example, key_of: Callable, inside):
        self.objective, self.prompts, self.batch_size, self.rows = objective, prompts, batch_size, rows
        self.example, self.key_of, self.inside = example, key_of, inside
        self.wait_seconds = self.collect_seconds = 0.0
        self.rollout: tuple[int, dict] | None = None
        self.step = 0

    def prepare(self, step: int, model: Callable) -> None:
        """Collects where step `step` begins a rollout; `model()` is the model at that step."""
        self.step, steps = step, self.objective.rollout_steps
        number = step // steps
        if self.rollout is not None and self.rollout[0] == number:
            return
        if step % steps:
            raise ConfigError(
                f"the run is at step {step}, inside a rollout of objective.rollout_steps = {steps} steps, which began "
                "with parameters that are gone; resume from a checkpoint at a multiple of it"
            )
        started = time.perf_counter()
        count = self.objective.num_prompts(steps * self.batch_size)
        chosen = [self.prompts[number * count + i] for i in range(count)]
        batch = {name: np.stack([row[name] for row in chosen]) for name in chosen[0]}
        watch.at(f"the rollout before step {step + 1}", limited=False)
        with self.inside():
            rows = self.objective.collect(model(), batch, self.key_of(number))
        self.rollout = (number, self._checked(rows, steps * self.batch_size))
        self.collect_seconds += time.perf_counter() - started

    def __next__(self) -> dict[str, np.ndarray]:
        number, rows = self.rollout
        first = (self.step - number * self.objective.rollout_steps) * self.batch_size
        return {name: array[[first + row for row in self.rows]] for name, array in rows.items()}

    def close(self) -> None:
        """Nothing runs ahead."""

    def _checked(self, rows: dict, count: int) -> dict[str, np.ndarray]:
        name = type(self.objective).__name__
        rows = {key: np.asarray(jax.device_get(value)) for key, value in rows.items()}
        if rows.keys() != self.example.keys():
            raise ConfigError(
                f"objective {name}: `collect` made {sorted(rows)}, `collected` says {sorted(self.example)}"
            )
        for key, array in rows.items():
            spec = self.example[key]
            if array.shape != (count, *spec.shape) or array.dtype != spec.dtype:
                raise ConfigError(
                    f"objective {name}: `collect` made {key!r} {array.dtype} {array.shape}, expected {spec.dtype} "
                    f"{(count, *spec.shape)}"
                )
            if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
                row = int(np.argwhere(~np.isfinite(array.reshape(count, -1)).all(axis=1))[0, 0])
                raise RolloutError(f"objective {name}: {key!r} of row {row} of the rollout is not finite")
        return rows


def check_steps(settings, objective) -> None:
    """Raises ConfigError where a run would end or save inside a rollout."""
    steps = objective.rollout_steps
    for name in ("steps", "checkpoint_every"):
        value = getattr(settings, name)
        if value % steps:
            raise ConfigError(
                f"train.{name} = {value} is not a multiple of objective.rollout_steps = {steps}: a run is saved between "
                "rollouts, whose parameters make the rows again"
            )
