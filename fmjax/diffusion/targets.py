"""Targets: what a model says of x_t, p = a x0 + b eps. With x_t = alpha x0 + sigma eps one solve gives x0 and eps, and
so any other target."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from fmjax.errors import ConfigError


class Target:
    """Base of the targets; a member is a frozen dataclass that defines `coefficients`."""

    def coefficients(self, process, t, alpha, sigma):
        """(a, b) of the target a x0 + b eps at times t, where the process has alpha and sigma."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Eps(Target):
    """The noise (Ho et al. 2020)."""

    def coefficients(self, process, t, alpha, sigma):
        return 0.0, 1.0


@dataclasses.dataclass(frozen=True)
class X0(Target):
    """The data."""

    def coefficients(self, process, t, alpha, sigma):
        return 1.0, 0.0


@dataclasses.dataclass(frozen=True)
class Score(Target):
    """The gradient of log p(x_t): -eps / sigma."""

    def coefficients(self, process, t, alpha, sigma):
        return 0.0, -1 / sigma


@dataclasses.dataclass(frozen=True)
class Velocity(Target):
    """d x_t / d t of one pair of data and noise: alpha' x0 + sigma' eps."""

    def coefficients(self, process, t, alpha, sigma):
        return process.derivatives(jnp.asarray(t, jnp.result_type(float)))


@dataclasses.dataclass(frozen=True)
class V(Target):
    """(alpha eps - sigma x0) / sqrt(alpha^2 + sigma^2) (Salimans & Ho 2022), for data of standard deviation 1; else
    that of data divided by it."""

    def coefficients(self, process, t, alpha, sigma):
        std = process.data_std
        size = jnp.sqrt(sigma**2 + (alpha * std) ** 2)
        return -sigma / (std * size), alpha * std / size


@dataclasses.dataclass(frozen=True)
class EDMOutput(Target):
    """What the network of Karras et al. 2022 gives, F of their eq. 7: V with the other sign."""

    def coefficients(self, process, t, alpha, sigma):
        a, b = V().coefficients(process, t, alpha, sigma)
        return -a, -b


def determinant(alpha, sigma, a, b):
    """Of the two equations; where it is 0, the target says nothing that x_t does not say."""
    return alpha * b - sigma * a


def solve(x, prediction, alpha, sigma, a, b):
    """(x0, eps) of x_t and a prediction a x0 + b eps; coefficients broadcast against x."""
    scale = determinant(alpha, sigma, a, b)
    return (b * x - sigma * prediction) / scale, (alpha * prediction - a * x) / scale


def check_target(process, target: Target) -> None:
    """Raises ConfigError where the target says nothing of x0 at an end of the process (eps where there is noise alone,
    x0 where there are data alone), or is a derivative and the process has steps."""
    if isinstance(target, Velocity) and process.num_steps is not None:
        raise ConfigError(
            f"objective.target Velocity is a derivative, which {type(process).__name__} has not: it has steps; take v"
        )
    for t in process.ends:
        alpha, sigma = (float(f(np.array(t))) for f in (process.alpha, process.sigma))
        name = type(target).__name__
        if isinstance(target, Score) and sigma < 1e-6:
            raise ConfigError(f"objective.target {name} is infinite at t = {t}, where there is no noise; {_REMEDY}")
        a, b = (float(one) for one in target.coefficients(process, jnp.float32(t), alpha, sigma))
        if abs(determinant(alpha, sigma, a, b)) < 1e-6:
            end = "data" if sigma < alpha else "noise"
            raise ConfigError(
                f"objective.target {name} says nothing new at t = {t}, where {type(process).__name__} has {end} alone; "
                f"{_REMEDY}"
            )


_REMEDY = "take v or velocity, or a process that does not go there (min_time, no zero_terminal_snr)"
