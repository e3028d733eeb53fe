"""Samplers, step by step, beside diffusers' schedulers on the same noise (tests/oracles/make_scheduler_fixtures.py)."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.diffusion.consistency import Consistency, ConsistencyOutput
from fmjax.diffusion.grids import Grid, make_grid
from fmjax.diffusion.guidance import Guidance, predictor
from fmjax.diffusion.processes import DDPM, EDM, Flow
from fmjax.diffusion.samplers import DDIM, Ancestral, DPMSolverPP2M, Euler, EulerAncestral, Heun, columns, sample
from fmjax.diffusion.targets import X0, Eps, V, Velocity

FIXTURE = np.load(pathlib.Path(__file__).parents[1] / "oracles" / "schedulers.npz")
SCALED = dict(betas="scaled_linear", beta_start=0.00085, beta_end=0.012)
CASES = {
    "ddpm_small": (DDPM(), Eps(), Ancestral(), dict(spacing="leading")),
    "ddpm_large": (DDPM(), V(), Ancestral(variance="large"), dict(spacing="leading")),
    "ddpm_learned": (DDPM(), Eps(), Ancestral(variance="learned"), dict(spacing="leading")),
    "ddim": (DDPM(betas="cosine"), X0(), DDIM(), {}),
    "ddim_eta": (DDPM(**SCALED), Eps(), DDIM(eta=0.7), dict(spacing="leading")),
    "ddim_zero_snr": (DDPM(zero_terminal_snr=True, **SCALED), V(), DDIM(), {}),
    "dpmpp_2m": (DDPM(), Eps(), DPMSolverPP2M(), {}),
    "dpmpp_2m_karras": (DDPM(**SCALED), Eps(), DPMSolverPP2M(), dict(spacing="karras")),
    "heun": (DDPM(**SCALED), Eps(), Heun(), {}),
    "euler": (DDPM(**SCALED), Eps(), Euler(), dict(spacing="leading")),
    "euler_ancestral": (DDPM(), Eps(), EulerAncestral(), {}),
    # Whose least time is shifted already when the grid is made.
    "flow": (Flow(min_time=3e-3 / (1 + 2e-3)), Velocity(), Euler(), dict(spacing="linspace", shift=3.0)),
}


def steps(process, sampler, predict, grid, start, noises):
    """x after each step."""
    found = []

    def after(x, c):
        jax.debug.callback(lambda x: found.append(np.asarray(x)), x, ordered=True)
        return x

    sample(sampler, predict, jnp.asarray(start), columns(sampler, grid, process), lambda index: noises[index], after)
    jax.effects_barrier()
    return found


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_diffusers(name):
    process, target, sampler, options = CASES[name]
    want, noises = FIXTURE[name], jnp.asarray(FIXTURE["noises"])
    learned, clips = name == "ddpm_learned", name in ("ddpm_learned", "ddim_eta")

    def apply(x, times, given):
        time = times.reshape(-1, 1, 1, 1)
        out = 0.8 * x + 0.3 * jnp.sin(3 * x + 5 * time)
        # Channels are the first axis there, and the last here.
        return jnp.concatenate([out, jnp.cos(2 * x)], axis=-1) if learned else out

    predict = predictor(apply, process, target, Guidance(), splits_variance=learned, clip=1.0 if clips else None)
    found = steps(process, sampler, predict, make_grid(process, 5, **options), FIXTURE["start"], noises)
    size = np.abs(want[1:]).max(axis=(1, 2, 3, 4), keepdims=True)
    np.testing.assert_allclose(np.stack(found) / size, want[1:] / size, atol=3e-4 if name == "ddim_zero_snr" else 5e-5)


def test_steps_of_consistency_are_those_of_diffusers():
    """Whose model is told log(sigma) / 4, at every eighth of 40 noise levels."""
    process, want = EDM(), FIXTURE["consistency"]

    def apply(x, times, given):
        return 0.8 * x + 0.3 * jnp.sin(3 * x + 5 * 0.25 * jnp.log(process.sigma(times)).reshape(-1, 1, 1, 1))

    times = 1 - np.arange(0, 40, 8) / 39
    grid = Grid(times, np.ones(6), np.append(process.sigma(times), 0.0), np.append(times[1:], 0.0))
    predict = predictor(apply, process, ConsistencyOutput(), Guidance())
    found = steps(process, Consistency(), predict, grid, want[0], jnp.asarray(FIXTURE["noises"]))
    size = np.abs(want[1:]).max(axis=(1, 2, 3, 4), keepdims=True)
    np.testing.assert_allclose(np.stack(found) / size, want[1:] / size, atol=5e-5)
