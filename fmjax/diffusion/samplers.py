"""Samplers: from noise to data along a grid, with what a model says of x0 and eps at each time.

Ancestral sampling, DDIM, Euler's method and its ancestral form are one step,

    x' = alpha' x0 + sqrt(sigma'^2 - tau^2) eps + tau z,    z normal,

that differ in tau: 0 for Euler's method, in whichever of the processes (it is DDIM with eta = 0), and the standard
deviation of the posterior q(x' | x, x0) for ancestral sampling (which is DDIM with eta = 1). What a step needs of the
grid is computed on the host in float64.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.diffusion.grids import Grid
from fmjax.errors import InputError


class Prediction(NamedTuple):
    """What a model says of x_t.

    Attributes:
      x0, eps: [B, ...].
      fraction: [B, ...] in [0, 1], where the logarithm of a step's variance lies between that of the posterior and that
        of the process; None where the model does not say.
    """

    x0: jax.Array
    eps: jax.Array
    fraction: jax.Array | None = None


Predict = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], Prediction]
"""(x, time, alpha, sigma) -> Prediction."""


class Sampler:
    """Base of the samplers; a member is a frozen dataclass that defines `columns` and `step`.

    Attributes:
      is_random: whether its steps draw noise.
      needs_variance: whether a model must also say each step's variance.
      spacing: which grid of times it takes where none is asked for; None is the process's.
    """

    is_random: bool = False
    needs_variance: bool = False
    spacing: str | None = None

    def columns(self, grid: Grid, process) -> dict[str, np.ndarray]:
        """What `step` takes as `c`, float64 [N] each, besides time, alpha and sigma. Raises InputError for a grid that
        it cannot go along."""
        raise NotImplementedError

    def start(self, x: jax.Array) -> Any:
        """What a step is told by the one before it, at the first."""
        return ()

    def step(self, predict: Predict, x: jax.Array, memory: Any, c: dict, noise: jax.Array | None):
        """(x after the step, memory)."""
        raise NotImplementedError


def posterior(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(variance of q(x' | x, x0), variance of q(x | x') ) of each step (Ho et al. 2020, eq. 7, of any process): the
    smaller and the larger choice of a reverse step's."""
    before, after = slice(None, -1), slice(1, None)
    large = grid.sigmas[before] ** 2 - (grid.alphas[before] / grid.alphas[after] * grid.sigmas[after]) ** 2
    return grid.sigmas[after] ** 2 * large / grid.sigmas[before] ** 2, large


def _straight(grid: Grid, tau: np.ndarray) -> dict[str, np.ndarray]:
    rest = np.sqrt(np.maximum(grid.sigmas[1:] ** 2 - tau**2, 0))
    return {"to_x0": grid.alphas[1:], "to_eps": rest, "to_noise": tau}


def _moved(prediction: Prediction, c: dict) -> jax.Array:
    return c["to_x0"] * prediction.x0 + c["to_eps"] * prediction.eps


@dataclasses.dataclass(frozen=True)
class Euler(Sampler):
    """Euler's method: x' = alpha' x0 + sigma' eps. The same as DDIM with eta = 0."""

    def columns(self, grid, process):
        return _straight(grid, np.zeros(len(grid)))

    def step(self, predict, x, memory, c, noise):
        return _moved(predict(x, c["time"], c["alpha"], c["sigma"]), c), memory


@dataclasses.dataclass(frozen=True)
class DDIM(Sampler):
    """Song et al. 2021, https://arxiv.org/abs/2010.02502, eq. 12 and 16.

    Attributes:
      eta: how much of the posterior's standard deviation is drawn: 0 is none, 1 ancestral sampling.
    """

    eta: float = 0.0

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta = {self.eta} must be from 0 to 1")

    @property
    def is_random(self) -> bool:
        return self.eta > 0

    def columns(self, grid, process):
        return _straight(grid, self.eta * np.sqrt(posterior(grid)[0]))

    def step(self, predict, x, memory, c, noise):
        x = _moved(predict(x, c["time"], c["alpha"], c["sigma"]), c)
        return (x + c["to_noise"] * noise if self.is_random else x), memory


@dataclasses.dataclass(frozen=True)
class EulerAncestral(DDIM):
    """The ancestral form of Euler's method in sigma / alpha (k-diffusion): DDIM with eta = 1."""

    eta: float = 1.0


@dataclasses.dataclass(frozen=True)
class Ancestral(Sampler):
    """Ho et al. 2020, algorithm 2: the posterior's mean, and noise but for the last step.

    Attributes:
      variance: of the noise: "small" is the posterior's, "large" the process's (the paper's beta), "learned" what the
        model says between the two (Nichol & Dhariwal 2021, eq. 15).
    """

    variance: Literal["small", "large", "learned"] = "small"

    is_random = True

    def __post_init__(self):
        if self.variance not in ("small", "large", "learned"):
            raise InputError(f"variance = {self.variance!r}; known: small, large, learned")

    @property
    def needs_variance(self) -> bool:
        return self.variance == "learned"

    def columns(self, grid, process):
        small, large = posterior(grid)
        noise = {"small": small, "large": large, "learned": np.ones(len(grid))}[self.variance] * (grid.sigmas[1:] > 0)
        with np.errstate(divide="ignore"):
            logs = [np.maximum(np.log(one), -100.0) for one in (small, large)]
        # By x and x0, not by eps: a clipped x0 counts in both of its terms.
        keep = np.sqrt(np.maximum(grid.sigmas[1:] ** 2 - small, 0)) / grid.sigmas[:-1]
        gain = grid.alphas[1:] - keep * grid.alphas[:-1]
        return {"keep": keep, "gain": gain, "to_noise": np.sqrt(noise), "log_small": logs[0], "log_large": logs[1]}

    def step(self, predict, x, memory, c, noise):
        prediction = predict(x, c["time"], c["alpha"], c["sigma"])
        size = c["to_noise"]
        if self.variance == "learned":
            log = c["log_small"] + prediction.fraction * (c["log_large"] - c["log_small"])
            size = size * jnp.exp(0.5 * log)
        return c["keep"] * x + c["gain"] * prediction.x0 + size * noise, memory


@dataclasses.dataclass(frozen=True)
class Heun(Sampler):
    """Heun's method of second order (Karras et al. 2022, algorithm 1): the mean of the slopes at a step's both ends;
    Euler's in the last step to data. Two evaluations a step."""

    def columns(self, grid, process):
        divisors = process.divisor(grid.alphas, grid.sigmas)
        if not np.all(divisors > 1e-8):
            raise InputError(
                "sampler = 'heun' divides by alpha, which is 0 at the first of its times; take dpmpp_2m, ddim or euler"
            )
        places = grid.sigmas / divisors
        return _straight(grid, np.zeros(len(grid))) | {
            "stride": np.diff(places), "divisor": divisors[:-1], "next_divisor": divisors[1:],
            "data_slope": np.full(len(grid), process.data_slope), "next_time": grid.next_times,
            "next_sigma": grid.sigmas[1:],
        }  # fmt: skip

    def step(self, predict, x, memory, c, noise):
        slope = lambda prediction: c["data_slope"] * prediction.x0 + prediction.eps
        here = predict(x, c["time"], c["alpha"], c["sigma"])
        ahead = _moved(here, c)

        def second():
            there = predict(ahead, c["next_time"], c["to_x0"], c["next_sigma"])
            mean = 0.5 * (slope(here) + slope(there))
            return c["next_divisor"] * (x / c["divisor"] + c["stride"] * mean)

        return jax.lax.cond(c["next_sigma"] > 0, second, lambda: ahead), memory


@dataclasses.dataclass(frozen=True)
class DPMSolverPP2M(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 2): x0 of two steps; of the first
    order in the first step and the last one to data."""

    def columns(self, grid, process):
        with np.errstate(divide="ignore"):
            levels = np.log(grid.alphas) - np.log(grid.sigmas)  # the paper's lambda; infinite at the ends
        strides = np.diff(levels)
        extra = np.zeros(len(grid))
        inner = np.isfinite(strides[1:]) & np.isfinite(strides[:-1])
        extra[1:][inner] = strides[1:][inner] / (2 * strides[:-1][inner])
        keep = grid.sigmas[1:] / grid.sigmas[:-1]
        return {"keep": keep, "gain": grid.alphas[1:] - grid.alphas[:-1] * keep, "extra": extra}

    def start(self, x):
        return x  # of no weight in the first step

    def step(self, predict, x, memory, c, noise):
        x0 = predict(x, c["time"], c["alpha"], c["sigma"]).x0
        return c["keep"] * x + c["gain"] * (x0 + c["extra"] * (x0 - memory)), x0


def columns(sampler: Sampler, grid: Grid, process) -> dict[str, np.ndarray]:
    """What `sample` goes along: float32 [N] each, and `index` int32 [N]."""
    told = {"time": grid.times, "alpha": grid.alphas[:-1], "sigma": grid.sigmas[:-1]}
    told |= {"end_alpha": grid.alphas[1:], "end_sigma": grid.sigmas[1:]} | sampler.columns(grid, process)
    told = {name: np.asarray(column, np.float32) for name, column in told.items()}
    return told | {"index": np.arange(len(grid), dtype=np.int32)}


def sample(sampler: Sampler, predict: Predict, x: jax.Array, along: dict, noise=None, after=None) -> jax.Array:
    """x at the end of a grid, of x at its beginning; one loop. Arguments as those of `advance`."""
    return advance(sampler, predict, (x, sampler.start(x)), along, 0, len(along["index"]), noise, after)[0]


def advance(
    sampler: Sampler, predict: Predict, state: tuple[jax.Array, Any], along: dict, first, last, noise=None, after=None
) -> tuple[jax.Array, Any]:
    """(x, what the next step is told) behind the steps from `first` to before `last` of a grid.

    Args:
      state: the same before them; at the beginning (x, `sampler.start(x)`).
      along: of `columns`.
      first, last: may be traced, so that a program serves any part of the grid.
      noise: index of a step -> normal numbers as x, for a sampler that draws.
      after: (x, c) -> x, what becomes of x after each step, where c["end_alpha"] and c["end_sigma"] hold.
    """
    along = {name: jnp.asarray(column) for name, column in along.items()}

    def body(index, state):
        c = {name: jax.lax.dynamic_index_in_dim(column, index, keepdims=False) for name, column in along.items()}
        drawn = noise(c["index"]) if sampler.is_random else None
        x, memory = sampler.step(predict, *state, c, drawn)
        return x if after is None else after(x, c), memory

    return jax.lax.fori_loop(first, last, body, state)
