"""On-policy training: rows that depend on the parameters, made every few steps and regenerated when a run resumes.

Rollout r, the rows of steps r k to (r + 1) k - 1, is a pure function of the config, the state at step r k and r.
Checkpoints lie at multiples of k, so what a kill has lost is made again, bit by bit. Where an objective has `epochs`,
its rows are those of k / epochs steps, shown so many times in the same order.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.data.base import stacked
from fmjax.errors import ConfigError, RunError
from fmjax.parallel import watch
from fmjax.parallel.sharding import to_global
from fmjax.training.program import ROLLOUTS, Program


class RolloutError(RunError):
    """What an objective collected cannot be trained on."""


class Experience:
    """Batches from what the objective collects; stands where a `fmjax.data.loader.Loader` does.

    Args:
      program: of the run; its objective is an on-policy one (`fmjax.objectives.base`).
      prompts: endless random-access rows of the data.
      batch_size: rows of the global batch.
      rows: those of the batch that this process holds.

    Attributes:
      wait_seconds: time spent waiting inside `next`: none, since collecting is no input.
    """

    def __init__(self, program: Program, prompts, batch_size: int, rows: list[int]):
        self.program, self.prompts, self.batch_size, self.rows = program, prompts, batch_size, rows
        self.objective = program.objective
        self.wait_seconds = 0.0
        self.number, self.rollout, self.step = -1, {}, 0

    rows_per_core_second = None  # rows come from the model

    def due(self, step: int) -> bool:
        """Whether `collect` must come before the batch of step `step`."""
        return step // self.objective.rollout_steps != self.number

    def collect(self, step: int, model) -> None:
        """Makes the rollout that begins with step `step` by the model at that step.

        Raises ConfigError inside a rollout, or for rows that are not those that the objective tells; RolloutError for
        numbers that are not finite.
        """
        steps = self.objective.rollout_steps
        if step % steps:
            raise ConfigError(
                f"the run is at step {step}, inside a rollout of objective.rollout_steps = {steps} steps, which began "
                "with parameters that are gone; resume from a checkpoint at a multiple of it"
            )
        number, distinct = step // steps, different_steps(self.objective)
        count = distinct * self.objective.num_prompts(self.batch_size)
        prompts = stacked([self.prompts[number * count + i] for i in range(count)])
        watch.at(f"the rollout before step {step + 1}", limited=False)
        with self.program.inference():
            rows = self.objective.collect(model, prompts, self.program.key_for(ROLLOUTS, number))
        rows = {name: np.asarray(jax.device_get(value)) for name, value in rows.items()}
        if self.program.score_step is not None:
            watch.at(f"the scores of the rollout before step {step + 1}", limited=False)
            rows |= self._scores(rows, distinct, model)
        if hasattr(self.objective, "complete"):
            rows = self.objective.complete(model, rows, self.batch_size)
        self.rollout = self._checked(rows, distinct * self.batch_size)
        self.number, self.step = number, step

    def __next__(self) -> dict[str, np.ndarray]:
        place = (self.step - self.number * self.objective.rollout_steps) % different_steps(self.objective)
        self.step += 1
        return self._share(self.rollout, place * self.batch_size)

    def close(self) -> None:
        """Nothing runs ahead."""

    def _share(self, rows: dict, first: int) -> dict[str, np.ndarray]:
        """This process's rows of the batch that begins with row `first`."""
        return {name: array[[first + row for row in self.rows]] for name, array in rows.items()}

    def _scores(self, rows: dict, steps: int, model) -> dict[str, np.ndarray]:
        """What the objective's `score` adds to the rows, a batch at a time."""
        program, found = self.program, []
        spec = {name: program.batch_spec[name] for name in rows if name in program.batch_spec}
        with jax.set_mesh(program.mesh):
            for step in range(steps):
                batch = to_global(self._share(rows, step * self.batch_size), self.rows, spec)
                scored, _ = program.score_step(model.params, batch, model.carry, program.models)
                found.append(jax.device_get(scored))
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    def _checked(self, rows: dict, count: int) -> dict[str, np.ndarray]:
        name, expected = type(self.objective).__name__, self.program.row
        if rows.keys() != expected.keys():
            raise ConfigError(
                f"objective {name}: `collect`, `score` and `complete` made {sorted(rows)}, `collected` says "
                f"{sorted(expected)}"
            )
        for key, array in rows.items():
            spec = expected[key]
            if array.shape != (count, *spec.shape) or array.dtype != spec.dtype:
                raise ConfigError(
                    f"objective {name}: {key!r} of a rollout is {array.dtype} {array.shape}, expected {spec.dtype} "
                    f"{(count, *spec.shape)}"
                )
            if jnp.issubdtype(array.dtype, jnp.floating) and not np.isfinite(array).all():
                row = int(np.argwhere(~np.isfinite(array.reshape(count, -1)).all(axis=1))[0, 0])
                raise RolloutError(f"objective {name}: {key!r} of row {row} of the rollout is not finite")
        return rows


def different_steps(objective) -> int:
    """Of a rollout's steps, those with rows of their own."""
    return objective.rollout_steps // getattr(objective, "epochs", 1)


def check_steps(settings, objective) -> None:
    """Raises ConfigError where a run would end or save inside a rollout, or a batch cannot be collected."""
    steps, epochs = objective.rollout_steps, getattr(objective, "epochs", 1)
    if epochs < 1 or steps % epochs:
        raise ConfigError(
            f"objective.epochs = {epochs} does not divide objective.rollout_steps = {steps}: each row of a rollout is "
            "trained on in so many of its steps"
        )
    for name in ("steps", "checkpoint_every"):
        value = getattr(settings, name)
        if value % steps:
            raise ConfigError(
                f"train.{name} = {value} is not a multiple of objective.rollout_steps = {steps}: a run is saved "
                "between rollouts, whose parameters make the rows again"
            )
    objective.num_prompts(settings.batch_size)
