"""Samplers against a mixture of normals whose score is known, in one dimension, where a flow keeps quantiles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from fmjax.diffusion.grids import Grid, inverted, make_grid
from fmjax.diffusion.guidance import Guidance, predictor
from fmjax.diffusion.processes import DDPM, EDM, Cosine, Flow, VariancePreserving
from fmjax.diffusion.samplers import (
    DDIM,
    Ancestral,
    DPMSolverPP2M,
    Euler,
    EulerAncestral,
    Heun,
    columns,
    sample,
)
from fmjax.diffusion.targets import Velocity, X0
from fmjax.errors import InputError

SHARES, MEANS, STD = np.array([0.3, 0.7]), np.array([-0.6, 0.5]), 0.2
QUANTILES = np.linspace(0.02, 0.98, 33)


def mean_of_x0(x, alpha, sigma):
    """E[x0 | x_t] of the mixture; alpha and sigma as x."""
    alpha, sigma = alpha[..., None], sigma[..., None]
    variance = (alpha * STD) ** 2 + sigma**2
    scores = jnp.log(SHARES) - (x[..., None] - alpha * MEANS) ** 2 / (2 * variance)
    each = MEANS + alpha * STD**2 / variance * (x[..., None] - alpha * MEANS)
    return jnp.sum(jax.nn.softmax(scores) * each, axis=-1)


def exact(process):
    """What samplers ask, answered exactly."""
    apply = lambda x, times, given: mean_of_x0(
        x / process.input_scale(process.alpha(times), process.sigma(times)), process.alpha(times), process.sigma(times)
    )
    target = X0()
    if isinstance(process, Flow):  # at whose ends x0 says nothing

        def apply(x, times, given):
            t = jnp.maximum(times, 1e-6)
            return (x - mean_of_x0(x, 1 - t, t)) / t

        target = Velocity()
    return predictor(apply, process, target, Guidance())


def quantile(q, alpha, sigma):
    """Of x_t."""
    scale = np.sqrt((alpha * STD) ** 2 + sigma**2)
    cdf = lambda x: np.sum(SHARES * scipy.stats.norm.cdf(x, alpha * MEANS, scale)) - q
    return scipy.optimize.brentq(cdf, -10 * scale - 2, 10 * scale + 2, xtol=1e-14)


@functools.cache
def quantiles(alpha, sigma):
    return np.array([quantile(q, alpha, sigma) for q in QUANTILES])


def run(sampler, process, grid, x, noise=None, after=None):
    """In float64, so that what is measured is the method."""
    with jax.enable_x64(True):
        along = columns(sampler, grid, process)
        along = {name: np.asarray(c, c.dtype if name == "index" else np.float64) for name, c in along.items()}
        told = {"time": grid.times, "alpha": grid.alphas[:-1], "sigma": grid.sigmas[:-1]} | sampler.columns(
            grid, process
        )
        along |= told
        go = jax.jit(lambda x, along: sample(sampler, exact(process), x, along, noise, after))
        return np.asarray(go(jnp.asarray(x, jnp.float64), along))


def without_the_end(grid):
    """Up to the least time that the model is asked at, whose distribution is known as well."""
    return Grid(grid.times[:-1], grid.alphas[:-1], grid.sigmas[:-1], grid.next_times[:-1])


@pytest.mark.parametrize(
    "process", [VariancePreserving(), Flow(min_time=0.02), EDM(sigma_max=10.0)], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize(
    "sampler, order", [(Euler(), 1), (Heun(), 2), (DPMSolverPP2M(), 2)], ids=lambda s: type(s).__name__
)
def test_solvers_converge_at_their_order(sampler, order, process):
    errors = []
    for steps in (128, 256):
        grid = without_the_end(make_grid(process, steps + 1, "linspace"))
        assert len(grid) == steps
        start, end = (quantiles(grid.alphas[i], grid.sigmas[i]) for i in (0, -1))
        errors.append(np.abs(run(sampler, process, grid, start) - end).max())
    slope = np.log2(errors[0] / errors[1])
    assert order - 0.2 < slope < order + 0.6, (slope, errors)
    assert errors[1] < (0.02 if order == 1 else 4e-3)


def test_with_the_last_step_to_data_solvers_end_in_the_data():
    for process, sampler in [(Cosine(), Heun()), (DDPM(), DPMSolverPP2M()), (EDM(), Heun()), (Flow(), DPMSolverPP2M())]:
        grid = make_grid(process, 60)
        found = run(sampler, process, grid, quantiles(grid.alphas[0], grid.sigmas[0]))
        np.testing.assert_allclose(found, quantiles(1.0, 0.0), atol=0.04, err_msg=str(process))


@pytest.mark.parametrize(
    "sampler",
    [Ancestral(), Ancestral(variance="large"), DDIM(eta=1.0), DDIM(eta=0.5), EulerAncestral()], ids=str,
)  # fmt: skip
def test_samplers_that_draw_end_in_the_data_s_distribution(sampler):
    process, rng = DDPM(), np.random.default_rng(0)
    grid, rows = make_grid(process, 200), 20_000
    draws = lambda index: jax.random.normal(jax.random.fold_in(jax.random.key(1), index), (rows,), jnp.float64)
    found = run(sampler, process, grid, rng.normal(size=rows), draws)
    mean, variance = SHARES @ MEANS, SHARES @ (MEANS**2 + STD**2) - (SHARES @ MEANS) ** 2
    assert found.mean() == pytest.approx(mean, abs=0.02) and found.var() == pytest.approx(variance, rel=0.04)
    assert np.mean(found < 0) == pytest.approx(0.3, abs=0.02)


def test_ancestral_sampling_ddim_and_the_ancestral_form_of_euler_are_one():
    process = EDM()
    grid, x = make_grid(process, 12), np.linspace(-1, 1, 5) * 80
    draws = lambda index: jax.random.normal(jax.random.fold_in(jax.random.key(1), index), (5,), jnp.float64)
    want = run(Ancestral(), process, grid, x, draws)
    for sampler in (DDIM(eta=1.0), EulerAncestral()):
        np.testing.assert_allclose(run(sampler, process, grid, x, draws), want, rtol=1e-10)
    np.testing.assert_allclose(run(DDIM(), process, grid, x), run(Euler(), process, grid, x), rtol=1e-12)


def test_inversion_goes_back_to_the_noise_that_an_image_comes_from():
    for process in (DDPM(), Flow()):
        grid = make_grid(process, 500 if process.num_steps else 400)
        there = inverted(grid, process)
        assert there.times[0] == process.ends[0] and there.alphas[-1] == grid.alphas[0]
        data = quantiles(1.0, 0.0)
        noise = run(Euler(), process, there, data)
        np.testing.assert_allclose(noise, quantiles(grid.alphas[0], grid.sigmas[0]), atol=0.06)
        np.testing.assert_allclose(run(Euler(), process, grid, noise), data, atol=0.02)


def test_grids():
    process = DDPM()
    np.testing.assert_array_equal(np.rint(make_grid(process, 4, "trailing").times * 1000), [999, 749, 499, 249])
    np.testing.assert_array_equal(np.rint(make_grid(process, 4, "leading").times * 1000), [750, 500, 250, 0])
    np.testing.assert_array_equal(np.rint(make_grid(process, 4, "linspace").times * 1000), [999, 666, 333, 0])
    np.testing.assert_allclose(make_grid(Flow(), 4).times, [1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(make_grid(Flow(), 4, shift=3.0).times, [1, 0.9, 0.75, 0.5])
    edm = make_grid(EDM(), 18)  # eq. 5 of the paper
    i = np.arange(18)
    want = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(edm.sigmas, [*want, 0])
    np.testing.assert_allclose(make_grid(EDM(), 18, "karras").sigmas, [*want, 0])
    half = make_grid(Flow(), 10).last(0.5)
    np.testing.assert_allclose(half.times, [0.5, 0.4, 0.3, 0.2, 0.1])
    assert len(half.sigmas) == 6 and len(make_grid(Flow(), 10).last(0.01)) == 1
    for options, message in [
        (dict(spacing="trailin"), "did you mean 'trailing'"), (dict(shift=0.0), "shift = 0.0"),
        (dict(num_steps=1001), "steps = 1001: the process of the model has 1000 steps"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=message):
            make_grid(process, **{"num_steps": 4} | options)
    for arguments, message in [
        ((DDPM(), 500, None, 3.0), "steps = 500, .* and shift = 3.0, ask at the same time twice"),
        ((Flow(min_time=0.02), 100), "ask at the same time twice: the process's times are at least 0.02"),
        ((DDPM(), 700, "leading"), "700 does not divide the process's 1000 steps"),
        ((DDPM(), 4, "karras", 2.0), "shift = 2.0 has no meaning with spacing = 'karras'"),
    ]:
        with pytest.raises(InputError, match=message):
            make_grid(*arguments)
    with pytest.raises(InputError, match="'karras' needs data left in the noise"):
        make_grid(Flow(), 4, "karras")
    with pytest.raises(InputError, match="'heun' divides by alpha"):
        zero = DDPM(zero_terminal_snr=True)
        columns(Heun(), make_grid(zero, 4), zero)


def test_guidance():
    given, other = jnp.array([[1.0, 3.0]]), jnp.array([[0.0, 1.0]])
    np.testing.assert_allclose(Guidance(2.0)(given, other, jnp.float32(0.5)), [[2.0, 5.0]])
    within = Guidance(2.0, interval=(0.2, 0.6))
    np.testing.assert_allclose(within(given, other, jnp.float32(0.7)), given)
    np.testing.assert_allclose(within(given, other, jnp.float32(0.3)), [[2.0, 5.0]])
    # std of (1, 3) is 1, of (2, 5) 1.5: Lin et al. 2023, eq. 15 and 16.
    np.testing.assert_allclose(
        Guidance(2.0, rescale=0.6)(given, other, jnp.float32(0.5)), jnp.array([[2.0, 5.0]]) * 0.8, rtol=1e-6
    )
    for options in (dict(scale=-1.0), dict(interval=(0.5, 0.2)), dict(rescale=2.0)):
        with pytest.raises(InputError, match="must be"):
            Guidance(**options)
