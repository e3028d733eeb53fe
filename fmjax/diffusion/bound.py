"""The variational bound of a process in discrete steps, by which a model learns the variance of a step (Nichol &
Dhariwal 2021, https://arxiv.org/abs/2102.09672, eq. 4 to 7 and 15)."""

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.diffusion.grids import make_grid
from fmjax.diffusion.samplers import posterior

LEVELS = 255
"""Between -1 and 1, of the images' numbers."""


def bound(process, x0, x, predicted, fraction, t):
    """The bound's term of each row's step, float32 [B]: bits a number of x.

    At step k the Kullback-Leibler divergence of the model's normal q(x at k - 1) from the posterior; at step 0 the
    negative log-likelihood of x0 among `LEVELS` + 1 levels from -1 to 1.

    Args:
      process: with `num_steps`.
      x0, x: [B, ...], the data and what the process made of them at times t [B].
      predicted: [B, ...], x0 as the model has it; no gradient goes through it.
      fraction: [B, ...], where the logarithm of the step's variance lies between the posterior's and the process's.
    """
    steps = jnp.round(t * process.num_steps).astype(jnp.int32)
    row = lambda table: jnp.asarray(table, jnp.float32)[steps].reshape(-1, *(1,) * (x.ndim - 1))
    tables = _tables(process)
    log_small, log_large = row(tables["log_small"]), row(tables["log_large"])
    mean = lambda x0: row(tables["keep"]) * x + row(tables["gain"]) * x0
    model_mean, log_variance = jax.lax.stop_gradient(mean(predicted)), log_small + fraction * (log_large - log_small)
    divergence = normal_divergence(mean(x0), log_small, model_mean, log_variance)
    likelihood = -level_log_likelihood(x0, model_mean, 0.5 * log_variance)
    each = jnp.where(steps.reshape(-1, *(1,) * (x.ndim - 1)) == 0, likelihood, divergence)
    return each.reshape(len(x), -1).mean(axis=1) / np.log(2)


def _tables(process) -> dict[str, np.ndarray]:
    """Of each step, the first of which has no posterior variance and is given the second's."""
    grid = make_grid(process, process.num_steps, "trailing")
    small, large = posterior(grid)
    keep = np.sqrt(np.maximum(grid.sigmas[1:] ** 2 - small, 0)) / grid.sigmas[:-1]
    tables = {"keep": keep, "gain": grid.alphas[1:] - keep * grid.alphas[:-1], "log_large": np.log(large)}
    tables["log_small"] = np.log(np.append(small[:-1], small[-2]))
    return {name: table[::-1].copy() for name, table in tables.items()}


def normal_divergence(mean, log_variance, other_mean, other_log_variance):
    """KL of normal numbers from others, in nats."""
    ratio = jnp.exp(log_variance - other_log_variance)
    distance = jnp.square(mean - other_mean) * jnp.exp(-other_log_variance)
    return 0.5 * (other_log_variance - log_variance + ratio + distance - 1)


def level_log_likelihood(x, mean, log_std):
    """log of the probability that a normal number rounds to the level x (Ho et al. 2020, eq. 13), in nats; the outer
    levels have all that lies beyond."""
    centred, scale = x - mean, jnp.exp(-log_std)
    above, below = scale * (centred + 1 / LEVELS), scale * (centred - 1 / LEVELS)
    cdf = jax.scipy.stats.norm.cdf
    middle = jnp.log(jnp.maximum(cdf(above) - cdf(below), 1e-12))
    ends = jnp.where(x < -0.999, jax.scipy.stats.norm.logcdf(above), jax.scipy.stats.norm.logcdf(-below))
    return jnp.where(jnp.abs(x) < 0.999, middle, ends)
