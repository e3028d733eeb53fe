"""Consistency (Song et al. 2023, https://arxiv.org/abs/2303.01469): from every point of a path of the probability flow
to its end near the data, in one evaluation of a model.

The end is at the process's least time; there x / alpha is what the function gives, of whichever process.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from fmjax.diffusion.samplers import Sampler
from fmjax.diffusion.targets import EDMOutput, Target, determinant
from fmjax.errors import ConfigError


def least_level(process) -> float:
    """sigma / alpha at the process's least time, the paper's epsilon."""
    low = np.array(process.ends[0], float)
    return float(process.sigma(low) / process.alpha(low))


@dataclasses.dataclass(frozen=True)
class ConsistencyOutput(Target):
    """F of c_skip x + c_out F, where c_skip = 1 / alpha and c_out = 0 at the least time, so that the function there is
    what it has to be whatever F (the paper's section 3 and appendix C, which has it for alpha = 1).

    As a target, of x0 in the place of the function's value; without noise at the least time it is `EDMOutput`.
    """

    def coefficients(self, process, t, alpha, sigma):
        epsilon, std = least_level(process), process.data_std
        if epsilon == 0:
            return EDMOutput().coefficients(process, t, alpha, sigma)
        above = sigma - epsilon * alpha
        skip = std**2 * alpha / (above**2 + (std * alpha) ** 2)
        # Not 0, which there is no solving for: far below what float32 adds to x.
        out = jnp.maximum(std * above / jnp.sqrt(sigma**2 + (std * alpha) ** 2), 1e-8)
        return (1 - skip * alpha) / out, -skip * sigma / out


@dataclasses.dataclass(frozen=True)
class Consistency(Sampler):
    """The function's value, and noise again up to the next time (the paper's algorithm 1); one step is its value alone.

    x' = alpha' f + tau z, where tau is what noise of the level at which f ends lacks to that at the next time.
    """

    is_random = True
    spacing = "trailing"  # others end at the least time, where the function changes nothing

    def columns(self, grid, process):
        left = grid.sigmas[1:] ** 2 - (least_level(process) * grid.alphas[1:]) ** 2
        return {"to_x0": grid.alphas[1:], "to_noise": np.sqrt(np.maximum(left, 0))}

    def step(self, predict, x, memory, c, noise):
        return c["to_x0"] * predict(x, c["time"], c["alpha"], c["sigma"]).x0 + c["to_noise"] * noise, memory


def flow_step(predict: Callable, process, x, now, then, order: int = 2):
    """x at the times `then` of x at `now`, by one step of Heun's method (1: of Euler's) along the probability flow.

    Args:
      predict: (x, times [B]) -> (x0, eps).
      x: [B, ...].
      now, then: [B].
    """
    rows = lambda values: values.reshape(-1, *(1,) * (x.ndim - 1))
    at = lambda t: (rows(process.alpha(t)), rows(process.sigma(t)))
    (alpha, sigma), (next_alpha, next_sigma) = at(now), at(then)
    x0, eps = predict(x, now)
    ahead = next_alpha * x0 + next_sigma * eps
    if order == 1:
        return ahead
    slope = lambda x0, eps: process.data_slope * x0 + eps
    divisor, next_divisor = process.divisor(alpha, sigma), process.divisor(next_alpha, next_sigma)
    mean = 0.5 * (slope(x0, eps) + slope(*predict(ahead, then)))
    return next_divisor * (x / divisor + (next_sigma / next_divisor - sigma / divisor) * mean)


def check_boundary(process, target: Target) -> None:
    """Raises ConfigError for a target of which the function at the least time is not its value there, x / alpha."""
    low = np.array(process.ends[0])
    alpha, sigma = float(process.alpha(low)), float(process.sigma(low))
    a, b = (float(one) for one in target.coefficients(process, jnp.float32(low), alpha, sigma))
    if sigma > 1e-6 * abs(determinant(alpha, sigma, a, b)):
        raise ConfigError(
            f"objective.target {type(target).__name__}: what x0 is then at t = {float(low)}, where {process} still has "
            "noise, depends on the model, and for consistency it must not; take target 'consistency', or a process "
            "without noise there, such as flow"
        )
