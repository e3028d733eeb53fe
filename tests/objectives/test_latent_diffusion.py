"""The loss of latent diffusion in numpy, and that the noise of its latents is none of what they are mixed with."""

import types

import jax
import numpy as np
import pytest

from fmjax.errors import ConfigError
from fmjax.objectives.latent_diffusion import LatentDiffusion
from fmjax.training.step import with_keys

ROWS, SHAPE = 512, (4, 4, 2)


def test_the_loss_is_that_of_drawn_latents_mixed_with_noise_of_their_own():
    """A posterior of mean 0.5 and deviation 1, whatever the image; the module says 0.3 of what it sees."""
    seen = {}

    def encode(images, keys, method):
        seen["latents"] = 0.5 + jax.vmap(lambda key: jax.random.normal(key, SHAPE))(keys)
        return seen["latents"]

    def apply(variables, inputs, times, train, rngs):
        seen.update(x=inputs, t=times)
        return 0.3 * inputs

    weights = np.random.default_rng(0).integers(0, 2, ROWS).astype(np.float32)
    batch = with_keys({"images": np.zeros((ROWS, 8, 8, 1), np.float32), "loss_weights": weights}, jax.random.key(0))
    objective = LatentDiffusion(
        first_stage="a stage", latent_shape=SHAPE, latent_scale=2.0, latent_shift=0.25, condition="none",
        process="flow", target="velocity",
    )  # fmt: skip
    stage = types.SimpleNamespace(module=types.SimpleNamespace(image_size=8), apply=encode)
    carry = objective.initial(None, None, None)
    sums, _ = objective(apply, {}, batch, jax.random.key(1), True, carry=carry, models={"first_stage": stage})
    x, z = np.asarray(seen["x"], np.float64), np.asarray(seen["latents"], np.float64)
    t, x0 = np.asarray(seen["t"], np.float64).reshape(-1, 1, 1, 1), 2 * (z - 0.25)
    noise = (x - (1 - t) * x0) / t
    assert noise.mean() == pytest.approx(0, abs=0.05) and noise.std() == pytest.approx(1, abs=0.05)
    assert abs(np.corrcoef(noise.ravel(), z.ravel())[0, 1]) < 0.05
    errors = ((0.3 * x - (noise - x0)) ** 2).mean((1, 2, 3))
    assert float(sums["loss"][0]) == pytest.approx((errors * weights).sum(), rel=1e-4)
    assert float(sums["loss"][1]) == weights.sum()
    assert float(sums["latent_square"][0]) == pytest.approx(((x0**2).mean((1, 2, 3)) * weights).sum(), rel=1e-5)


def test_the_scale_of_latents_is_what_the_config_or_a_run_says():
    measured = LatentDiffusion(first_stage="a stage", latent_shape=SHAPE)
    assert measured.scaling({"shift": 0.5, "scale": 3.0, "measured": 1}) == {"shift": 0.5, "scale": 3.0}
    with pytest.raises(ConfigError, match="latent_scale = None, and no run has carried"):
        measured.scaling(None)
    given = LatentDiffusion(first_stage="a stage", latent_shape=SHAPE, latent_scale=2.0, latent_shift=0.25)
    assert given.scaling(None) == {"shift": 0.25, "scale": 2.0}
