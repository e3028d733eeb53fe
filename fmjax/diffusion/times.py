"""How often each time is trained on: a member is the quantile function of a distribution, so that whatever draws u
(independently or stratified) draws times."""

import dataclasses

import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError


class Times:
    """Base of the distributions; a member is a frozen dataclass that defines `quantile`."""

    def quantile(self, process, u):
        """The time below which a share u, in [0, 1), of the draws is."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Uniform(Times):
    """Each time, or step, equally often."""

    def quantile(self, process, u):
        return process.spread(u)


@dataclasses.dataclass(frozen=True)
class LogitNormal(Times):
    """The logistic function of a normal number: oftenest in the middle (Esser et al. 2024,
    https://arxiv.org/abs/2403.03206, section 3.1).

    Attributes:
      mean, std: of the normal number.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self):
        _check_std("logit_normal", self.std)

    def quantile(self, process, u):
        return process.snap(jax.nn.sigmoid(self.mean + self.std * _normal(u)))


@dataclasses.dataclass(frozen=True)
class LogNormal(Times):
    """The logarithm of the noise level sigma / alpha is normal (Karras et al. 2022, table 1).

    Attributes:
      mean, std: of the logarithm.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self):
        _check_std("log_normal", self.std)

    def quantile(self, process, u):
        return process.snap(process.time_at(jnp.exp(self.mean + self.std * _normal(u))))


def _normal(u):
    """The standard normal's quantile; the ends are cut off, which are infinite."""
    return jax.scipy.special.ndtri(jnp.clip(u, 1e-6, 1 - 1e-6))


def _check_std(name: str, std: float) -> None:
    if not std > 0:
        raise ConfigError(f"times {name}: std = {std} must be above 0")
