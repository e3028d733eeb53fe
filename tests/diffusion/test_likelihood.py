"""The bound in bits is the negative log-likelihood of data whose best prediction is known, for any process."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from fmjax.diffusion.bound import LEVELS
from fmjax.diffusion.likelihood import bits, noise_levels
from fmjax.diffusion.processes import DDPM, EDM, Cosine, Flow
from fmjax.diffusion.targets import X0

MEANS, STD = np.array([0.1, -0.4], np.float32), 0.25


class Exact(nn.Module):
    """The mean of normal data given x, by label; of another standard deviation, a worse one."""

    process: object
    std: float = STD

    @nn.compact
    def __call__(self, inputs, times, labels, train=False):
        t = times.reshape(-1, 1, 1, 1)
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        x, mean = inputs / self.process.input_scale(alpha, sigma), jnp.asarray(MEANS)[labels].reshape(-1, 1, 1, 1)
        return mean + alpha * self.std**2 / (sigma**2 + (alpha * self.std) ** 2) * (x - alpha * mean)


def told(module, process, draws=60, count=500):
    rng = np.random.default_rng(0)
    labels = np.arange(count, dtype=np.int32) % 2
    x0 = MEANS[labels].reshape(-1, 1, 1, 1) + STD * rng.normal(size=(count, 8, 8, 1))
    x0 = np.clip(np.rint((x0 + 1) / 2 * LEVELS), 0, LEVELS).astype(np.float32) / LEVELS * 2 - 1
    objective = types.SimpleNamespace(process=process, target=X0(), input_name="images")
    model = types.SimpleNamespace(module=module, variables={}, objective=objective)
    keys = jax.vmap(jax.random.key)(np.arange(count))
    found = np.asarray(bits(model, {"images": x0, "labels": labels}, keys, draws=draws))
    ends = [(x0 - MEANS[labels].reshape(-1, 1, 1, 1) + side / LEVELS) / STD for side in (1, -1)]
    truth = -np.log2(norm.cdf(ends[0]) - norm.cdf(ends[1])).mean(axis=(1, 2, 3))
    return found, truth


def reading(spacing):
    """Bits that it takes more to read levels, `spacing` standard deviations of the noise apart, off x than to code the
    levels: of a model that knows of none, which codes x finer than they are."""
    z, apart = np.random.default_rng(0).normal(size=100_000), spacing * np.arange(-6, 7)
    own = -np.log2(np.exp(-0.5 * z**2) / np.exp(-0.5 * (z[:, None] - apart) ** 2).sum(axis=1)).mean()
    return own + np.log2(spacing / np.sqrt(2 * np.pi * np.e))


def found_std(process):
    levels = noise_levels(process)
    return (levels["sigmas"] / levels["alphas"])[0]


@pytest.mark.parametrize("process", [Flow(), Cosine(), EDM(), DDPM(num_steps=400, beta_end=0.04)], ids=str)
def test_of_the_exact_mean_the_bound_is_the_negative_log_likelihood(process):
    found, truth = told(Exact(process), process)
    total = found.sum(axis=1)
    gap = (total - truth).mean()
    if process.num_steps:  # the first steps are so long that normal ones in between are no fit, whatever the model
        assert 0.2 < gap < 2
    else:
        assert gap == pytest.approx(reading(2 / LEVELS / found_std(process)), abs=0.05)
    assert (found[:, 0] > -1e-5).all() and found[:, 0].mean() < 0.01 and found.mean(axis=0)[1] > 1


def test_of_a_worse_mean_it_is_more_and_of_fewer_draws_the_same_in_the_mean():
    exact, truth = told(Exact(Flow()), Flow(), draws=8)
    assert (exact.sum(axis=1) - truth).mean() == pytest.approx(reading(4), abs=0.15)
    worse, _ = told(Exact(Flow(), std=0.6), Flow(), draws=8)
    assert worse.sum(axis=1).mean() > truth.mean() + 0.1


def test_levels_run_from_the_data_to_the_noise():
    for process in (Flow(), Cosine(), EDM(), DDPM()):
        levels = noise_levels(process)
        ratios = levels["sigmas"] / levels["alphas"]
        assert (np.diff(ratios) > 0).all() and ratios[0] <= 0.011 and ratios[-1] > 50
        assert len(ratios) == (process.num_steps or 2)
