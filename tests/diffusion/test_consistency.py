"""Consistency beside distributions whose probability flow is known: the exact function has no loss but that of the
solver, whose order it shows, and its samples have the distribution in one step and in a few."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from fmjax.diffusion.consistency import Consistency, ConsistencyOutput, check_boundary, least_level
from fmjax.diffusion.grids import make_grid
from fmjax.diffusion.guidance import Guidance, predictor
from fmjax.diffusion.processes import DDPM, EDM, Cosine, Flow, VariancePreserving
from fmjax.diffusion.samplers import columns, sample
from fmjax.diffusion.targets import Eps, V, Velocity
from fmjax.errors import ConfigError
from fmjax.objectives.consistency import ConsistencyModel
from fmjax.training.step import with_keys

MEAN, VARIANCE = 0.4, 0.09
PROCESSES = {
    "edm": (EDM(), Eps()), "flow": (Flow(), Velocity()), "vp": (VariancePreserving(beta_max=8.0, min_time=0.02), Eps()),
    "ddpm": (DDPM(num_steps=200), V()),
}  # fmt: skip


def rows(values, x):
    return jnp.asarray(values).reshape(-1, *(1,) * (x.ndim - 1))


def normal_function(process, x, alpha, sigma):
    """Where the path through x of normal data ends: (x - alpha m) / its deviation stays."""
    end = jnp.sqrt(VARIANCE + least_level(process) ** 2)
    return MEAN + end * (x - alpha * MEAN) / jnp.sqrt(VARIANCE * alpha**2 + sigma**2)


def says(process, target, function):
    """A module that returns `target` of what `function(x, alpha, sigma)` says x0 is."""

    def apply(variables, inputs, times, train=False, rngs=None):
        alpha, sigma = process.alpha(times), process.sigma(times)
        a, b = (rows(one, inputs) for one in target.coefficients(process, times, alpha, sigma))
        x = inputs / rows(process.input_scale(alpha, sigma), inputs)
        alpha, sigma = rows(alpha, x), rows(sigma, x)
        x0 = function(x, alpha, sigma)
        return a * x0 + b * jnp.where(sigma > 0, (x - alpha * x0) / jnp.maximum(sigma, 1e-12), 0.0)

    return apply


def expected(x, alpha, sigma):
    """The mean of normal data given x."""
    return MEAN + alpha * VARIANCE * (x - alpha * MEAN) / (VARIANCE * alpha**2 + sigma**2)


def teacher_of(process, target):
    if isinstance(target, Velocity):  # at t = 0 it is not told by x alone

        def apply(inputs, times):
            alpha, sigma = rows(process.alpha(times), inputs), rows(process.sigma(times), inputs)
            x0 = expected(inputs, alpha, sigma)
            return sigma * (inputs - alpha * MEAN) / (VARIANCE * alpha**2 + sigma**2) - x0

        return types.SimpleNamespace(apply=apply)
    module = says(process, target, expected)
    return types.SimpleNamespace(apply=lambda inputs, times: module({}, inputs, times))


def loss(name, function, count, **options):
    process, target = PROCESSES[name]
    x0 = MEAN + VARIANCE**0.5 * np.random.default_rng(0).normal(size=(512, 2, 1)).astype(np.float32)
    data = with_keys({"images": x0, "loss_weights": np.ones(512, np.float32)}, jax.random.key(0))
    objective = ConsistencyModel(
        process=process, target="consistency", teacher="a run", teacher_target=target, num_intervals=count,
        stratified=True, distance="squared", **options,
    )  # fmt: skip
    apply, models = says(process, ConsistencyOutput(), function), {"teacher": teacher_of(process, target)}
    call = lambda data: objective(apply, {}, data, None, False, carry={"average": {}}, models=models)[0]["loss"]
    total, weight = jax.jit(call)(data)
    return float(total / weight)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_exact_function_has_no_loss_but_the_solvers(name):
    exact = lambda x, alpha, sigma: normal_function(PROCESSES[name][0], x, alpha, sigma)
    counts = (10, 20)
    heun = [loss(name, exact, count) for count in counts]
    euler = [loss(name, exact, count, solver="euler") for count in counts]
    # Squares of local errors of the third order and of the second, in steps half as long: 64 and 16.
    assert 45 < heun[0] / heun[1] < 80
    assert 12 < euler[0] / euler[1] < 18
    assert heun[1] < euler[1] / 5
    # What a denoiser says of x0 is no such function.
    wrong = loss(name, expected, 20)
    assert wrong > 100 * heun[1] and wrong > 1e-4


@pytest.mark.parametrize("process", [EDM(), VariancePreserving(), Cosine(), DDPM(), Flow(), Flow(min_time=0.01)])
def test_at_the_least_time_the_function_is_x_whatever_the_model_says(process):
    target, low = ConsistencyOutput(), jnp.full(4, process.ends[0], jnp.float32)
    check_boundary(process, target)
    x = jnp.array([[-1.0], [0.2], [0.7], [3.0]])
    predict = predictor(lambda x, times, given: 50.0 * jnp.cos(9 * x), process, target, Guidance())
    alpha, sigma = process.alpha(low)[0], process.sigma(low)[0]
    np.testing.assert_allclose(predict(x, low[0], alpha, sigma).x0, x / alpha, atol=3e-6)
    # Elsewhere it is c_skip x + c_out F, as the paper has it where alpha is 1.
    t = jnp.float32(0.6)
    alpha, sigma = process.alpha(t), process.sigma(t)
    level, end, std = sigma / alpha, least_level(process), process.data_std
    skip, out = std**2 / ((level - end) ** 2 + std**2), std * (level - end) / jnp.sqrt(level**2 + std**2)
    said = 50.0 * jnp.cos(9 * process.input_scale(alpha, sigma) * x)
    np.testing.assert_allclose(predict(x, t, alpha, sigma).x0, skip * x / alpha + out * said, rtol=1e-4, atol=1e-4)


SHARES, MEANS, STD = np.array([0.3, 0.7]), np.array([-0.6, 0.5]), 0.1


def mixture_function(process):
    """Of numbers the flow keeps their order: from the share below x to where as many are below at the path's end."""
    end = np.hypot(STD, least_level(process))
    table = np.linspace(-1.6, 1.6, 6001)
    below = (SHARES * norm.cdf((table[:, None] - MEANS) / end)).sum(axis=1)

    def function(x, alpha, sigma):
        spread = jnp.sqrt((alpha * STD) ** 2 + sigma**2)
        share = (SHARES * jax.scipy.stats.norm.cdf((x[..., None] - alpha * MEANS) / spread)).sum(axis=-1)
        return jnp.interp(share, below, table)

    return function


@pytest.mark.parametrize("process", [EDM(), Flow()])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_exact_function_draws_the_mixture_in_a_few_steps(process, count):
    function, key, number = mixture_function(process), jax.random.key(count), 40_000
    target = ConsistencyOutput()

    def apply(x, times, given):
        alpha, sigma = process.alpha(times[0]), process.sigma(times[0])
        x0 = function(x / process.input_scale(alpha, sigma), alpha, sigma)
        a, b = target.coefficients(process, times[0], alpha, sigma)
        return a * x0 + b * (x / process.input_scale(alpha, sigma) - alpha * x0) / sigma

    predict = predictor(apply, process, target, Guidance())
    sampler = Consistency()
    grid = make_grid(process, count, sampler.spacing)
    size = np.hypot(grid.alphas[0] * process.data_std, grid.sigmas[0])
    go = lambda: sample(
        sampler, predict, size * jax.random.normal(key, (number,)), columns(sampler, grid, process),
        lambda index: jax.random.normal(jax.random.fold_in(key, index), (number,)),
    )  # fmt: skip
    made = np.asarray(jax.jit(go)())
    first = made < 0
    assert first.mean() == pytest.approx(0.3, abs=0.01)
    for part, mean in ((made[first], MEANS[0]), (made[~first], MEANS[1])):
        assert part.mean() == pytest.approx(mean, abs=0.01) and part.std() == pytest.approx(STD, abs=0.006)


def test_what_does_not_fit_is_refused():
    for fields, message in [
        (dict(target="v"), r"V: what x0 is then at t = 0.0, .* depends on the model.* take target 'consistency'"),
        (dict(guidance=2.0), "guidance = 2.0 is of a teacher, and objective.teacher is None"),
        (dict(weighting="min_snr"), "are not for consistency"),
        (dict(num_intervals=1000), "num_intervals = 1000 must be below the 1000 steps"),
        (dict(solver="rk4"), "solver = 'rk4'"),
        (dict(momentum=1.0), "objective.momentum=1.0"),
        (dict(huber=0.0), "huber = 0.0 must be above 0"),
        (dict(process=DDPM(zero_terminal_snr=True), teacher="a run", teacher_target="v"), "take 'euler'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            ConsistencyModel(**fields)
    ConsistencyModel(process="flow", target="velocity")  # which is without noise at t = 0
    objective = ConsistencyModel(process="flow", teacher="a run", teacher_target="velocity", guidance=2.0)
    theirs = types.SimpleNamespace(process=Flow(), target=Velocity(), learned_variance=False, label_dropout=0.1)
    objective.check_objectives({"teacher": theirs})
    for change, message in [
        (dict(process=Flow(min_time=0.1)), "was trained with process Flow.min_time=0.1., and objective.process is"),
        (dict(target=Eps()), "was trained with target Eps.., and objective.teacher_target is Velocity.."),
        (dict(label_dropout=0.0), "does not know what to say without a label"),
        (dict(learned_variance=True), "also predicts variances"),
    ]:
        with pytest.raises(ConfigError, match=message):
            objective.check_objectives({"teacher": types.SimpleNamespace(**(vars(theirs) | change))})
