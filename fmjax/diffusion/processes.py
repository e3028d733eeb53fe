"""Processes: x_t = alpha(t) x0 + sigma(t) eps, from data at t = 0 to noise at t = 1; eps is standard normal.

Times are float32 [...] arrays of JAX in training; NumPy's, in float64, where a sampler's grid is made. Derivatives are
taken by JAX. A ratio sigma / alpha is a noise level, whose square is one over the signal-to-noise ratio.
"""

import dataclasses
import functools
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.errors import ConfigError


class Process:
    """Base of the processes; a member is a frozen dataclass that defines `alpha`, `sigma` and `time_at`.

    Attributes:
      data_std: standard deviation of the data, by which inputs and outputs of a model may be scaled.
      spacing: which grid of times (`fmjax.diffusion.grids`) samplers take where none is asked for.
      data_slope: where x0 and eps stay, x / divisor goes straight, by data_slope x0 + eps for each sigma / divisor.
      is_of_tokens: whether it hides tokens (`fmjax.diffusion.masked`), and is none of noise.
      num_steps: of a process of discrete steps, whose times are k / num_steps; None for a continuous one.
    """

    data_std: ClassVar[float] = 1.0
    spacing: ClassVar[str] = "trailing"
    data_slope: ClassVar[float] = 0.0
    is_of_tokens: ClassVar[bool] = False
    num_steps: int | None = None

    def alpha(self, t):
        """What is left of the data at t."""
        raise NotImplementedError

    def sigma(self, t):
        """How much noise there is at t."""
        raise NotImplementedError

    def time_at(self, ratio):
        """t where sigma / alpha is `ratio`."""
        raise NotImplementedError

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest time that a model is asked at."""
        return 0.0, 1.0

    def spread(self, u):
        """Times between the ends, equally likely where u is uniform in [0, 1)."""
        low, high = self.ends
        return low + (high - low) * u

    def snap(self, t):
        """The nearest time that a model is asked at."""
        return _library(t).clip(t, *self.ends)

    def divisor(self, alpha, sigma):
        """What x is divided by to go straight (Karras et al. 2022, section 3)."""
        return alpha

    def input_scale(self, alpha, sigma):
        """What a model's input is multiplied by."""
        return 1.0

    def mix(self, x0, noise, t):
        """x_t of rows x0, noise [B, ...] and times [B]."""
        t = t.reshape(-1, *(1,) * (x0.ndim - 1))
        return self.alpha(t) * x0 + self.sigma(t) * noise

    def derivatives(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(d alpha / d t, d sigma / d t)."""
        one = jnp.ones_like(t)
        return jax.jvp(self.alpha, (t,), (one,))[1], jax.jvp(self.sigma, (t,), (one,))[1]


@dataclasses.dataclass(frozen=True)
class Flow(Process):
    """x_t = (1 - t) x0 + t eps: rectified flow (Liu et al. 2022, https://arxiv.org/abs/2209.03003, eq. 1).

    Attributes:
      min_time: the least time that a model is asked at.
    """

    data_slope: ClassVar[float] = -1.0

    min_time: float = 0.0

    def __post_init__(self):
        _check_fraction("min_time", self.min_time)

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t

    def time_at(self, ratio):
        return ratio / (1 + ratio)

    def divisor(self, alpha, sigma):
        return alpha + sigma

    @property
    def ends(self) -> tuple[float, float]:
        return self.min_time, 1.0


@dataclasses.dataclass(frozen=True)
class VariancePreserving(Process):
    """alpha^2 + sigma^2 = 1, log alpha = -(beta_max - beta_min) t^2 / 4 - beta_min t / 2 (Song et al. 2021,
    https://arxiv.org/abs/2011.13456, eq. 33): DDPM's linear betas with infinitely many steps.

    Attributes:
      beta_min, beta_max: rate of the noise at t = 0 and at t = 1.
      min_time: the least time that a model is asked at.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    min_time: float = 1e-3

    def __post_init__(self):
        _check_fraction("min_time", self.min_time)
        if not 0 <= self.beta_min < self.beta_max:
            raise ConfigError(
                f"process vp: beta_min = {self.beta_min} and beta_max = {self.beta_max} must be 0 <= beta_min < "
                "beta_max"
            )

    def _log_alpha(self, t):
        return -0.25 * (self.beta_max - self.beta_min) * t**2 - 0.5 * self.beta_min * t

    def alpha(self, t):
        return _library(t).exp(self._log_alpha(t))

    def sigma(self, t):
        xp = _library(t)
        return xp.sqrt(-xp.expm1(2 * self._log_alpha(t)))

    def time_at(self, ratio):
        xp, difference = _library(ratio), self.beta_max - self.beta_min
        return (xp.sqrt(self.beta_min**2 + 2 * difference * xp.log1p(ratio**2)) - self.beta_min) / difference

    @property
    def ends(self) -> tuple[float, float]:
        return self.min_time, 1.0


@dataclasses.dataclass(frozen=True)
class Cosine(Process):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2) (Salimans & Ho 2022, https://arxiv.org/abs/2202.00512, section 4).

    Attributes:
      min_time: the least time that a model is asked at; the greatest is as far from 1.
    """

    min_time: float = 1e-3

    def __post_init__(self):
        _check_fraction("min_time", self.min_time)

    def alpha(self, t):
        return _library(t).cos(0.5 * math.pi * t)

    def sigma(self, t):
        return _library(t).sin(0.5 * math.pi * t)

    def time_at(self, ratio):
        return 2 / math.pi * _library(ratio).arctan(ratio)

    @property
    def ends(self) -> tuple[float, float]:
        return self.min_time, 1.0 - self.min_time


@dataclasses.dataclass(frozen=True)
class EDM(Process):
    """alpha = 1: noise explodes; sigma^(1 / rho) is linear in t (Karras et al. 2022, https://arxiv.org/abs/2206.00364,
    eq. 5). A model's input has variance 1; with target "edm" so has what it learns (table 1).

    Attributes:
      sigma_min, sigma_max: at t = 0 and at t = 1.
      rho: of the powers.
      data_std: standard deviation of the data.
    """

    spacing: ClassVar[str] = "linspace"  # in t, which makes Karras' grid of sigma

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    data_std: float = 0.5

    def __post_init__(self):
        if not 0 < self.sigma_min < self.sigma_max or not self.rho > 0 or not self.data_std > 0:
            raise ConfigError(
                f"process edm: sigma_min = {self.sigma_min}, sigma_max = {self.sigma_max}, rho = {self.rho}, "
                f"data_std = {self.data_std}: all must be above 0, and sigma_min below sigma_max"
            )

    def alpha(self, t):
        return _library(t).ones_like(t)

    def sigma(self, t):
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (low + t * (high - low)) ** self.rho

    def time_at(self, ratio):
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (ratio ** (1 / self.rho) - low) / (high - low)

    def input_scale(self, alpha, sigma):
        return 1 / _library(sigma).sqrt(sigma**2 + (alpha * self.data_std) ** 2)


@dataclasses.dataclass(frozen=True)
class DDPM(Process):
    """Variance preserving in `num_steps` steps: step k, at t = k / num_steps, has alpha^2 = (1 - beta_0) ... (1 -
    beta_k) (Ho et al. 2020, https://arxiv.org/abs/2006.11239, eq. 4); before step 0, at t = -1 / num_steps, are the
    data. A model is asked at these times alone; between them the angle of (alpha, sigma) is linear.

    Attributes:
      num_steps: the paper's T.
      betas: "linear" from beta_start to beta_end, "scaled_linear" in their roots (latent diffusion), or "cosine"
        (Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672, eq. 17, each at most 0.999).
      beta_start, beta_end: of the linear ones.
      zero_terminal_snr: the last step is noise alone (Lin et al. 2023, https://arxiv.org/abs/2305.08891, algorithm 1).
    """

    num_steps: int = 1000
    betas: Literal["linear", "scaled_linear", "cosine"] = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = False

    def __post_init__(self):
        if self.num_steps < 2:
            raise ConfigError(f"process ddpm: num_steps = {self.num_steps} must be at least 2")
        if not 0 < self.beta_start < self.beta_end < 1:
            raise ConfigError(
                f"process ddpm: beta_start = {self.beta_start} and beta_end = {self.beta_end} must be 0 < beta_start < "
                "beta_end < 1"
            )

    def beta_values(self) -> np.ndarray:
        """float64 [num_steps]."""
        if self.betas == "cosine":
            curve = np.cos((np.arange(self.num_steps + 1) / self.num_steps + 0.008) / 1.008 * np.pi / 2) ** 2
            return np.minimum(1 - curve[1:] / curve[:-1], 0.999)
        power = 2 if self.betas == "scaled_linear" else 1
        return np.linspace(self.beta_start ** (1 / power), self.beta_end ** (1 / power), self.num_steps) ** power

    @functools.cached_property
    def angles(self) -> np.ndarray:
        """float64 [num_steps + 1]: of (alpha, sigma), the first before step 0."""
        squares = np.cumprod(1 - self.beta_values())
        alphas, sigmas = np.sqrt(squares), np.sqrt(1 - squares)
        if self.zero_terminal_snr:
            alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
            sigmas = np.sqrt(1 - alphas**2)
        return np.concatenate([[0.0], np.arctan2(sigmas, alphas)])

    def _angle(self, t):
        xp = _library(t)
        return xp.interp(t * self.num_steps + 1, np.arange(self.num_steps + 1.0), xp.asarray(self.angles))

    def alpha(self, t):
        return _library(t).cos(self._angle(t))

    def sigma(self, t):
        return _library(t).sin(self._angle(t))

    def time_at(self, ratio):
        xp = _library(ratio)
        place = xp.interp(xp.arctan(ratio), xp.asarray(self.angles), np.arange(self.num_steps + 1.0))
        return (place - 1) / self.num_steps

    @property
    def ends(self) -> tuple[float, float]:
        return 0.0, 1 - 1 / self.num_steps

    def spread(self, u):
        return self._step(_library(u).floor(u * self.num_steps))

    def snap(self, t):
        return self._step(_library(t).round(t * self.num_steps))

    def _step(self, k):
        return _library(k).clip(k, 0, self.num_steps - 1) / self.num_steps


def _library(x):
    """What computes with an array: JAX with its own, NumPy with others."""
    return jnp if isinstance(x, jax.Array) else np


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value < 0.5:
        raise ConfigError(f"process: {name} = {value} must be in [0, 0.5)")
