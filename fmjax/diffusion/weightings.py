"""Weightings: how much a squared error counts at a time, whatever the target.

With x_t given, an error of the target a x0 + b eps is one of x0 times (alpha b - sigma a) / sigma. A weighting is told
as that of the squared error of x0 times sigma^2, which is finite where there is no noise.
"""

import dataclasses

import jax.numpy as jnp

from fmjax.diffusion.targets import determinant
from fmjax.diffusion.times import Uniform
from fmjax.errors import ConfigError


class Weighting:
    """Base of the weightings; a member is a frozen dataclass that defines `scaled`."""

    def scaled(self, process, t, alpha, sigma):
        """sigma^2 times the weight of the squared error of x0."""
        raise NotImplementedError

    def weights(self, process, target, t, alpha, sigma):
        """Of the target's own squared error at times t [B], float32 [B]."""
        scale = determinant(alpha, sigma, *target.coefficients(process, t, alpha, sigma))
        return self.scaled(process, t, alpha, sigma) / scale**2

    def check(self, process, times) -> None:
        """Raises ConfigError for a process that it has no weights for, or times that it does not go with."""


@dataclasses.dataclass(frozen=True)
class Simple(Weighting):
    """The target's squared error as it is (Ho et al. 2020, eq. 14)."""

    def weights(self, process, target, t, alpha, sigma):
        return jnp.ones_like(t)


@dataclasses.dataclass(frozen=True)
class MinSNR(Weighting):
    """min(SNR, gamma) of the error of x0 (Hang et al. 2023, https://arxiv.org/abs/2303.09556, section 3.4).

    Attributes:
      gamma: the greatest weight.
    """

    gamma: float = 5.0

    def __post_init__(self):
        if not self.gamma > 0:
            raise ConfigError(f"weighting min_snr: gamma = {self.gamma} must be above 0")

    def scaled(self, process, t, alpha, sigma):
        return jnp.minimum(alpha**2, self.gamma * sigma**2)


@dataclasses.dataclass(frozen=True)
class EDMWeighting(Weighting):
    """(sigma^2 + data_std^2) / (sigma data_std)^2 of the error of x0 (Karras et al. 2022, table 1), which is 1 of that
    of target "edm"; sigma is the process's sigma / alpha."""

    def scaled(self, process, t, alpha, sigma):
        return (sigma**2 + (alpha * process.data_std) ** 2) / process.data_std**2


@dataclasses.dataclass(frozen=True)
class ELBO(Weighting):
    """-SNR'(t) / 2 of the error of x0 (Kingma et al. 2021, https://arxiv.org/abs/2107.00630, eq. 17): with times
    uniform between the ends, which must be close to 0 and 1, the mean is the diffusion part of the bound on -log p(x)
    in nats, a number of x."""

    def scaled(self, process, t, alpha, sigma):
        d_alpha, d_sigma = process.derivatives(t)
        return alpha * (alpha * d_sigma - d_alpha * sigma) / sigma

    def check(self, process, times) -> None:
        if not isinstance(times, Uniform):
            raise ConfigError(
                f"weighting elbo is a bound with uniform times, not {times}; take objective.times = 'uniform'"
            )
        if process.num_steps is not None or not process.sigma(process.ends[0]) > 0:
            raise ConfigError(
                f"weighting elbo needs a continuous process that has noise at its least time, and {process} has not: "
                "take vp or cosine or edm, or give flow a min_time above 0"
            )
