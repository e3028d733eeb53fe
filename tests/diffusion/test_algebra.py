"""Processes, targets, weightings and times against closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.diffusion import PROCESSES, TARGETS
from fmjax.diffusion.consistency import ConsistencyOutput
from fmjax.diffusion.processes import DDPM, EDM, Cosine, Flow, VariancePreserving
from fmjax.diffusion.targets import X0, EDMOutput, Eps, Score, V, Velocity, check_target, solve
from fmjax.diffusion.times import LogitNormal, LogNormal, Uniform
from fmjax.diffusion.weightings import ELBO, EDMWeighting, MinSNR, Simple
from fmjax.errors import ConfigError

PROCESS = {name: PROCESSES.get(name)() for name in PROCESSES.table if name != "masked"}
T = np.array([0.02, 0.3, 0.5, 0.77, 0.95])


@pytest.mark.parametrize("name", PROCESS)
def test_a_process_is_its_formula_and_its_inverse(name):
    process, t = PROCESS[name], T
    t = process.snap(t)
    alpha, sigma = process.alpha(t), process.sigma(t)
    if name == "ddpm":
        squares = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[np.rint(t * 1000).astype(int)]
        want = np.sqrt(squares), np.sqrt(1 - squares)
    else:
        root = 0.002 ** (1 / 7) + t * (80 ** (1 / 7) - 0.002 ** (1 / 7))
        integral = 0.1 * t + 0.5 * 19.9 * t**2  # of beta
        want = {
            "flow": (1 - t, t), "cosine": (np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)), "edm": (1 + 0 * t, root**7),
            "vp": (np.exp(-integral / 2), np.sqrt(1 - np.exp(-integral))),
        }[name]  # fmt: skip
    np.testing.assert_allclose((alpha, sigma), want, rtol=1e-9)
    np.testing.assert_allclose(process.time_at(sigma / alpha), t, rtol=1e-9)
    # In JAX as in NumPy, and with derivatives.
    np.testing.assert_allclose(process.alpha(jnp.asarray(t)), alpha, rtol=2e-5)
    np.testing.assert_allclose(process.sigma(jnp.asarray(t)), sigma, rtol=2e-5)
    h = 0.25e-3 if name == "ddpm" else 1e-6  # between steps the angle is linear
    t = t + (0.5e-3 if name == "ddpm" else 0)
    for found, f in zip(process.derivatives(jnp.asarray(t)), (process.alpha, process.sigma)):
        np.testing.assert_allclose(found, (f(t + h) - f(t - h)) / (2 * h), rtol=2e-3, atol=1e-6)


def test_betas_of_all_kinds_are_those_of_the_papers():
    roots = np.linspace(0.00085**0.5, 0.012**0.5, 1000)
    process = DDPM(betas="scaled_linear", beta_start=0.00085, beta_end=0.012)
    np.testing.assert_allclose(process.beta_values(), roots**2)
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    cosine = DDPM(betas="cosine")
    np.testing.assert_allclose(cosine.alpha(np.array([0.0, 0.5, 0.9])) ** 2, f[[1, 501, 901]] / f[0], rtol=1e-9)
    assert cosine.beta_values()[-1] == 0.999
    zero = DDPM(zero_terminal_snr=True)
    assert abs(zero.alpha(np.array(0.999))) < 1e-12 and zero.alpha(np.array(0.0)) == DDPM().alpha(np.array(0.0))
    # Before the first step are the data.
    assert DDPM().alpha(np.array(-0.001)) == 1 and DDPM().sigma(np.array(-0.001)) == 0


def convert(x, prediction, process, source, wanted, t):
    alpha, sigma = process.alpha(t), process.sigma(t)
    x0, eps = solve(x, prediction, alpha, sigma, *source.coefficients(process, t, alpha, sigma))
    a, b = wanted.coefficients(process, t, alpha, sigma)
    return a * x0 + b * eps


def consistency_output(process, x0, x, alpha, sigma):
    """F where x0 is the function's value c_skip x + c_out F, with the paper's c_skip and c_out (Song et al. 2023,
    appendix C) of a process whose alpha is 1: sigma / alpha is its noise, x / alpha its point."""
    low = process.ends[0]
    least, level = process.sigma(low) / process.alpha(low), sigma / alpha
    skip = process.data_std**2 / ((level - least) ** 2 + process.data_std**2)
    out = process.data_std * (level - least) / jnp.sqrt(process.data_std**2 + level**2)
    return (x0 - skip * x / alpha) / out


@pytest.mark.parametrize("name", PROCESS)
def test_any_target_becomes_any_other(name):
    process, rng = PROCESS[name], np.random.default_rng(0)
    t = jnp.asarray(process.snap(T), jnp.float32)
    x0, eps = (jnp.asarray(rng.normal(size=5), jnp.float32) for _ in range(2))
    alpha, sigma = process.alpha(t), process.sigma(t)
    x = alpha * x0 + sigma * eps
    d_alpha, d_sigma = process.derivatives(t)
    std = process.data_std
    skip, out = std**2 / (sigma**2 + std**2), sigma * std / jnp.sqrt(sigma**2 + std**2)
    want = {
        Eps: eps, X0: x0, Score: -eps / sigma, Velocity: d_alpha * x0 + d_sigma * eps,
        V: (alpha * eps - sigma * x0) if name != "flow" else (alpha * eps - sigma * x0) / jnp.hypot(alpha, sigma),
        EDMOutput: (x0 - skip * x) / out,  # eq. 7 and table 1 of the paper, where alpha is 1
        ConsistencyOutput: consistency_output(process, x0, x, alpha, sigma),
    }  # fmt: skip
    if name == "edm":
        want[V] = -want[EDMOutput]
    else:
        want[EDMOutput] = -want[V]
    assert {TARGETS.get(one) for one in TARGETS.table} == set(want)
    for source, wanted in itertools.permutations(want, 2):
        found = convert(x, want[source], process, source(), wanted(), t)
        # Where x has almost no data, or almost no noise, float32 keeps few digits of them.
        size = np.maximum(np.abs(want[wanted]), 1) * (1 + 10 * np.maximum(1 / alpha, 1 / sigma).max() / 100)
        assert np.all(np.abs(found - want[wanted]) < 2e-3 * size), (source, wanted)


def test_targets_that_say_nothing_at_an_end_are_refused():
    for process, target, message in [
        (Flow(), Eps(), "Eps says nothing new at t = 1.0, where Flow has noise alone"),
        (Flow(), X0(), "X0 says nothing new at t = 0.0, where Flow has data alone"),
        (Flow(), Score(), "Score is infinite at t = 0.0"),
        (DDPM(), Velocity(), "Velocity is a derivative, which DDPM has not"),
        (DDPM(zero_terminal_snr=True), Eps(), "Eps says nothing new at t = 0.999"),
    ]:
        with pytest.raises(ConfigError, match=message):
            check_target(process, target)
    for process, target in ((Flow(), V()), (Flow(), Velocity()), (DDPM(zero_terminal_snr=True), V())):
        check_target(process, target)
    for process in (DDPM(), Cosine(), VariancePreserving(), EDM()):
        check_target(process, Eps())


def test_weightings_are_those_of_the_papers_in_whatever_target():
    t = jnp.asarray(T, jnp.float32)

    def weights(weighting, process, target):
        return np.asarray(weighting.weights(process, target, t, process.alpha(t), process.sigma(t)))

    vp, edm = VariancePreserving(), EDM()
    snr = np.asarray((vp.alpha(t) / vp.sigma(t)) ** 2)
    for target, want in [
        (X0(), np.minimum(snr, 5)),
        (Eps(), np.minimum(snr, 5) / snr),
        (V(), np.minimum(snr, 5) / (snr + 1)),
    ]:
        np.testing.assert_allclose(weights(MinSNR(), vp, target), want, rtol=1e-4)  # eq. 10 to 12 of the paper
    sigma = np.asarray(edm.sigma(t))
    np.testing.assert_allclose(weights(EDMWeighting(), edm, X0()), (sigma**2 + 0.25) / (0.5 * sigma) ** 2, rtol=1e-4)
    np.testing.assert_allclose(weights(EDMWeighting(), edm, EDMOutput()), 1, rtol=1e-4)
    np.testing.assert_array_equal(weights(Simple(), vp, V()), 1)
    with pytest.raises(ConfigError, match="weighting elbo needs a continuous process that has noise at its least time"):
        ELBO().check(Flow(), Uniform())
    with pytest.raises(ConfigError, match="weighting elbo needs a continuous process"):
        ELBO().check(DDPM(), Uniform())
    with pytest.raises(ConfigError, match="elbo is a bound with uniform times, not LogitNormal"):
        ELBO().check(VariancePreserving(), LogitNormal())


@pytest.mark.parametrize(
    "process", [VariancePreserving(), Cosine(), EDM(), Flow(min_time=0.01)], ids=lambda p: type(p).__name__
)
def test_the_bounds_weights_integrate_to_the_information_that_noise_takes(process):
    """Of normal data the least error of x0 is known, and its weighted integral is the difference of the mutual
    informations log(1 + var SNR) / 2 at the two ends (I-MMSE), whatever the process."""
    ELBO().check(process, Uniform())
    low, high = process.ends
    t = jnp.asarray(np.linspace(low, high, 200_001), jnp.float32)
    alpha, sigma, variance = process.alpha(t), process.sigma(t), 0.7
    error = variance * sigma**2 / (alpha**2 * variance + sigma**2)
    weights = np.asarray(ELBO().weights(process, X0(), t, alpha, sigma) * error, np.float64)
    found = np.sum((weights[1:] + weights[:-1]) / 2) * (high - low) / 200_000
    information = [
        0.5 * np.log1p(variance * float(process.alpha(e) / process.sigma(e)) ** 2) for e in np.array([low, high])
    ]
    assert found == pytest.approx(information[0] - information[1], rel=2e-3)


def test_times_have_their_distributions():
    u = jnp.asarray((np.arange(4000) + 0.5) / 4000, jnp.float32)
    vp, edm, steps = VariancePreserving(), EDM(), DDPM(num_steps=10)
    np.testing.assert_allclose(Uniform().quantile(vp, u), 1e-3 + (1 - 1e-3) * u, rtol=1e-5)
    found, counts = np.unique(np.asarray(Uniform().quantile(steps, u)), return_counts=True)
    np.testing.assert_allclose(found, np.arange(10) / 10, rtol=1e-6)
    assert (counts == 400).all()
    logit = np.asarray(jax.scipy.special.logit(LogitNormal(0.5, 0.8).quantile(Flow(), u)))
    assert (logit.mean(), logit.std()) == (pytest.approx(0.5, abs=1e-3), pytest.approx(0.8, rel=2e-3))
    log = np.log(np.asarray(edm.sigma(LogNormal().quantile(edm, u))))
    assert (log.mean(), log.std()) == (pytest.approx(-1.2, abs=2e-3), pytest.approx(1.2, rel=3e-3))
    assert np.isfinite(LogitNormal().quantile(Flow(), jnp.array([0.0, 1 - 6e-8]))).all()


def test_what_no_member_can_be_is_refused():
    for make, message in [
        (lambda: DDPM(num_steps=1), "num_steps = 1"), (lambda: DDPM(beta_end=2.0), "beta_end = 2.0"),
        (lambda: EDM(sigma_min=100.0), "sigma_min = 100.0"), (lambda: Flow(min_time=0.6), "min_time = 0.6"),
        (lambda: VariancePreserving(beta_min=30.0), "beta_min = 30.0"), (lambda: MinSNR(0.0), "gamma = 0.0"),
        (lambda: LogNormal(std=0.0), "std = 0.0"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            make()
