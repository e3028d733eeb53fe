"""Learning-rate schedules: each a dataclass that makes an `optax` schedule (update count to learning rate).

A warm-up longer than the run is shortened (`fitted_warmup`), but for Noam's, which is part of its formula.
"""

import dataclasses
from typing import Protocol

import jax.numpy as jnp
import optax

from fmjax.errors import ConfigError


def _warmup_then(warmup_steps: int, peak: float, rest: optax.Schedule) -> optax.Schedule:
    """Linear from 0 to `peak` over `warmup_steps` updates, then `rest` counted from there."""
    if warmup_steps == 0:
        return rest
    # The first update already moves: at count 0 the rate is peak / warmup_steps, not 0.
    warmup = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([warmup, rest], [warmup_steps])


def _check_fraction(**fields: float) -> None:
    for name, value in fields.items():
        if not 0.0 <= value <= 1.0:
            raise ConfigError(f"optimizer.schedule.{name} = {value} must be in [0, 1]")


def fitted_warmup(warmup_steps: int, total_steps: int) -> int:
    """The warm-up that a run of so many steps has: a tenth of it where the one asked for is longer than the run."""
    if warmup_steps < 0:
        raise ConfigError(f"optimizer.schedule.warmup_steps = {warmup_steps} must be at least 0")
    return warmup_steps if warmup_steps <= total_steps else max(total_steps // 10, 1)


def shortened(schedule, total_steps: int) -> str | None:
    """What to tell of a schedule whose warm-up such a run shortens; None where it does not."""
    asked = 0 if isinstance(schedule, Noam) else getattr(schedule, "warmup_steps", 0)
    if asked <= total_steps:
        return None
    return f"optimizer.schedule.warmup_steps = {asked} is more than the run has: warming up for " + (
        f"{fitted_warmup(asked, total_steps)} of its {total_steps} steps"
    )


class SchedulePlugin(Protocol):
    """What every schedule has."""

    def make(self, learning_rate: float, total_steps: int) -> optax.Schedule:
        """The learning rate as a function of the update count, for a run of so many updates."""


@dataclasses.dataclass(frozen=True)
class Constant:
    """Linear warm-up, then constant."""

    warmup_steps: int = 0  # updates of the linear warm-up

    def make(self, learning_rate: float, total_steps: int) -> optax.Schedule:
        warmup_steps = fitted_warmup(self.warmup_steps, total_steps)
        rest = self._rest(learning_rate, max(total_steps - warmup_steps, 1))
        return _warmup_then(warmup_steps, learning_rate, rest)

    def _rest(self, peak: float, steps: int) -> optax.Schedule:
        """What follows the warm-up, for so many steps."""
        return optax.constant_schedule(peak)


@dataclasses.dataclass(frozen=True)
class Linear(Constant):
    """Linear warm-up, then linear to `final_fraction` of the peak at the last step."""

    final_fraction: float = 0.0  # of the peak, at the end

    def __post_init__(self):
        _check_fraction(final_fraction=self.final_fraction)

    def _rest(self, peak, steps):
        return optax.linear_schedule(peak, peak * self.final_fraction, steps)


@dataclasses.dataclass(frozen=True)
class Cosine(Linear):
    """Linear warm-up, then half a cosine to `final_fraction` of the peak at the end (Loshchilov & Hutter 2017)."""

    final_fraction: float = 0.1  # of the peak, at the end

    def _rest(self, peak, steps):
        return optax.cosine_decay_schedule(peak, steps, alpha=self.final_fraction)


@dataclasses.dataclass(frozen=True)
class Noam:
    """Linear warm-up, then falling with the square root of the step (Vaswani et al. 2017, equation 3):

        learning_rate * hidden_size**-0.5 * min(step**-0.5, step * warmup_steps**-1.5)

    `optimizer.learning_rate` is thus not the peak but a factor on the paper's rate, 1.0 there; the peak, at step
    warmup_steps, is learning_rate / sqrt(hidden_size * warmup_steps). Steps count from 1.

    Attributes:
      hidden_size: the model's (d_model).
      warmup_steps: updates of the linear warm-up.
    """

    hidden_size: int
    warmup_steps: int = 4000

    def __post_init__(self):
        for name in ("hidden_size", "warmup_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"optimizer.schedule.{name} = {getattr(self, name)} must be at least 1 (noam)")

    def make(self, learning_rate: float, total_steps: int) -> optax.Schedule:
        scale = learning_rate * self.hidden_size**-0.5

        def schedule(count):
            step = jnp.asarray(count, jnp.float32) + 1.0
            return scale * jnp.minimum(step**-0.5, step * self.warmup_steps**-1.5)

        return schedule


@dataclasses.dataclass(frozen=True)
class WarmupStableDecay:
    """Linear warm-up, constant, then linear to `final_fraction` over the last `decay_fraction` (Hu et al. 2024)."""

    warmup_steps: int = 0  # updates of the linear warm-up
    decay_fraction: float = 0.2  # share of the run that decays
    final_fraction: float = 0.0  # of the peak, at the end

    def __post_init__(self):
        _check_fraction(decay_fraction=self.decay_fraction, final_fraction=self.final_fraction)
        if not self.decay_fraction:
            raise ConfigError("optimizer.schedule.decay_fraction = 0 leaves nothing to decay; take 'constant' instead")

    def make(self, learning_rate: float, total_steps: int) -> optax.Schedule:
        warmup_steps = fitted_warmup(self.warmup_steps, total_steps)
        decay_steps = max(round(total_steps * self.decay_fraction), 1)
        stable = total_steps - warmup_steps - decay_steps
        if stable < 0:
            raise ConfigError(
                f"optimizer.schedule: warmup_steps = {warmup_steps} and a decay of {decay_steps} steps "
                f"(decay_fraction = {self.decay_fraction}) are more than train.steps = {total_steps} (wsd)"
            )
        decay = optax.linear_schedule(learning_rate, learning_rate * self.final_fraction, decay_steps)
        rest = optax.join_schedules([optax.constant_schedule(learning_rate), decay], [stable])
        return _warmup_then(warmup_steps, learning_rate, rest)
