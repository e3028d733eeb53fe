"""How many bits a diffusion model says an image has: the variational bound on its log-likelihood, for any process."""

import dataclasses
import functools
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.diffusion.bound import LEVELS, level_log_likelihood
from fmjax.diffusion.targets import solve
from fmjax.layers.modulation import NO_LABEL

LEAST, MOST = 0.5 / LEVELS, 1e3
"""Between these ratios of noise to data lie the levels of a continuous process: a quarter of what parts two levels of
an image, and noise alone. To read levels off so much noise costs a model that knows of none .13 bits."""
NEAR = 6
"""Levels to either side, farther than any noise of half of what parts two of them goes."""


def noise_levels(process) -> dict[str, np.ndarray]:
    """{"times", "alphas", "sigmas"} float64 [N], from the data on: of a process of discrete steps all of them, of a
    continuous one the least and the most noise that the bound looks at."""
    if process.num_steps is not None:
        times = np.arange(process.num_steps) / process.num_steps
    else:
        ends = np.array(process.ends)
        with np.errstate(divide="ignore"):
            low, high = process.sigma(ends) / process.alpha(ends)
        times = process.time_at(np.array([max(low, LEAST), min(high, MOST)]))
    return {"times": times, "alphas": process.alpha(times), "sigmas": process.sigma(times)}


def bits(model, arrays, keys, *, draws: int) -> jax.Array:
    """float32 [B, 3]: bits a number of x0, in expectation at least what the model's best code would take (Kingma et al.
    2021, https://arxiv.org/abs/2107.00630, sections 3 and 4): of what is told by the noisiest x; by those in between,
    of which `draws` are looked at, spread over all; and by x0 given the last one. Of a continuous process the steps in
    between are infinitely many, of a discrete one its own, with the variances of the true posterior. x0 is read off the
    last x, where its noise is less than half of what parts two levels, as if all levels were equally likely; otherwise
    it is normal around what the model says.

    Args:
      model: with an objective of diffusion.
      arrays: x0 under the objective's `input_name`, of 256 levels from -1 to 1; `labels` int32 [B] where the module
        takes any.
      keys: [B], of each row's noise.
    """
    levels = noise_levels(model.objective.process)
    levels = {name: np.asarray(values, np.float32) for name, values in levels.items()}
    snr = np.square(np.float64(levels["alphas"]) / levels["sigmas"])
    levels["drops"] = np.append(0.0, snr[:-1] - snr[1:]).astype(np.float32)
    x0 = arrays[model.objective.input_name]
    labels = arrays.get("labels", np.full(len(x0), NO_LABEL, np.int32))
    reads_levels = bool(levels["sigmas"][0] / levels["alphas"][0] < 1 / LEVELS)
    static = _Static(model.module, model.objective.process, model.objective.target, draws, reads_levels)
    return _bits(static, model.variables, x0, labels, keys, levels)


@dataclasses.dataclass(frozen=True)
class _Static:
    """What a program is compiled for."""

    module: Any
    process: Any
    target: Any
    draws: int
    reads_levels: bool


@functools.partial(jax.jit, static_argnums=0)
def _bits(static: _Static, variables: Any, x0, labels, keys, levels):
    module, process, draws = static.module, static.process, static.draws
    levels = jax.tree.map(jnp.asarray, levels)
    rows = lambda values: values.reshape(-1, *(1,) * (x0.ndim - 1))
    mean = lambda x: x.reshape(len(x), -1).mean(axis=1)

    def predicted(level, draw):
        """(x, x0 as the model has it) at (times, alphas, sigmas) [B]."""
        times, alpha, sigma = level
        noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, draw), x0.shape[1:]))(keys)
        x = rows(alpha) * x0 + rows(sigma) * noise
        told = {"labels": labels} if _takes_labels(module) else {}
        scale = jnp.broadcast_to(process.input_scale(alpha, sigma), alpha.shape)
        output = module.apply(variables, inputs=rows(scale) * x, times=times, **told)
        output = output.astype(jnp.float32)[..., : x0.shape[-1]]
        coefficients = static.target.coefficients(process, times, alpha, sigma)
        a, b = (rows(jnp.broadcast_to(one, times.shape)) for one in coefficients)
        return x, solve(x, output, rows(alpha), rows(sigma), a, b)[0]

    def add(total, draw):
        uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, draws + 1 + draw)))(keys)
        level, weight = _level(process, levels, (draw + uniform) / draws)
        return total + weight * mean(jnp.square(x0 - predicted(level, draw)[1])), None

    between = jax.lax.scan(add, jnp.zeros(len(x0)), jnp.arange(draws))[0] / draws
    first = [jnp.full(len(x0), levels[name][0]) for name in ("times", "alphas", "sigmas")]
    noisy, made = predicted(first, draws)
    std = levels["sigmas"][0] / levels["alphas"][0]
    if static.reads_levels:
        last = -mean(_read_log_likelihood(x0, noisy / levels["alphas"][0], std))
    else:
        last = -mean(level_log_likelihood(x0, made, jnp.log(std)))
    alpha, sigma = levels["alphas"][-1], levels["sigmas"][-1]
    variance = sigma**2 + (alpha * process.data_std) ** 2
    prior = 0.5 * mean((sigma**2 + (alpha * x0) ** 2) / variance - 1 - jnp.log(sigma**2 / variance))
    return jnp.stack([prior, between, last], axis=1) / math.log(2)


def _level(process, levels, fraction):
    """((times, alphas, sigmas), weights of squared errors) [B], at fractions of the way from the data to noise."""
    if process.num_steps is not None:
        count = process.num_steps - 1
        step = 1 + jnp.minimum((count * fraction).astype(jnp.int32), count - 1)
        level = tuple(levels[name][step] for name in ("times", "alphas", "sigmas"))
        return level, 0.5 * count * levels["drops"][step]
    low, high = jnp.log(levels["sigmas"] / levels["alphas"])
    times = process.time_at(jnp.exp(low + (high - low) * fraction))
    alpha, sigma = process.alpha(times), process.sigma(times)
    return (times, alpha, sigma), (high - low) * jnp.square(alpha / sigma)


def _read_log_likelihood(x0, x, std):
    """log of the probability that x is the level x0 and normal noise of `std`, among all levels, of which those beyond
    `NEAR` from x0 are left out."""
    log_density = lambda level: -0.5 * jnp.square((x - level) / std)

    def add(total, offset):
        level = x0 + offset * 2 / LEVELS
        here = jnp.where(jnp.abs(level) <= 1 + 1e-3, log_density(level), -jnp.inf)
        return jnp.logaddexp(total, here), None

    offsets = jnp.concatenate([jnp.arange(-NEAR, 0), jnp.arange(1, NEAR + 1)]).astype(jnp.float32)
    own = log_density(x0)
    return own - jax.lax.scan(add, own, offsets)[0]


def _takes_labels(module) -> bool:
    return "labels" in inspect.signature(type(module).__call__).parameters
