"""The discrete autoencoder's bound in numpy, the density of its pixels by quadrature, its schedules, and a run."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax import config as configs
from fmjax.data.codecs.image import ImageCodec
from fmjax.errors import ConfigError
from fmjax.layers import logit_laplace
from fmjax.models import discrete_vae
from fmjax.models.vqgan import VQGAN
from fmjax.objectives.discrete_vae import DiscreteVAE, drawn
from fmjax.training.loop import train
from fmjax.training.step import with_keys

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.parametrize("location, log_scale", [(0.0, 0.0), (1.3, -1.0), (-2.0, -3.0), (0.4, 0.4)])
def test_the_pixels_density_is_one_distribution(location, log_scale):
    """Its integral is 1 and its median sigmoid(location); below scale 1, where it is bounded, by plain quadrature."""
    logits = np.linspace(-60, 60, 600_001)
    values = 1 / (1 + np.exp(-logits))
    inside = (values > 1e-12) & (values < 1 - 1e-12)
    with jax.enable_x64(True):
        density = np.exp(-np.asarray(logit_laplace.nats(values[inside], location, log_scale)))
    whole = np.trapezoid(density, values[inside])
    assert whole == pytest.approx(1, abs=1e-3)
    below = values[inside] <= 1 / (1 + np.exp(-location))
    assert np.trapezoid(density[below], values[inside][below]) == pytest.approx(0.5, abs=1e-3)


def test_pixels_come_back_from_the_open_interval():
    images = jnp.linspace(-1, 1, 256)
    values = logit_laplace.to_open(images)
    np.testing.assert_allclose((values.min(), values.max()), (0.1, 0.9), rtol=1e-6)
    np.testing.assert_allclose(logit_laplace.to_images(values), images, atol=1e-6)
    np.testing.assert_array_equal(logit_laplace.to_images(jnp.array([0.01, 0.95])), [-1, 1])
    location = jnp.log(values) - jnp.log1p(-values)
    slopes = jax.grad(lambda x: logit_laplace.nats(values, x, -1.0).sum())(location + 0.1)
    np.testing.assert_allclose(slopes, np.e, rtol=1e-5)  # 1 / scale, above the median


ROWS, PLACES, CODES = 5, 3, 4
TABLE = np.random.default_rng(3).normal(size=(CODES, 2)).astype(np.float32)


def apply(variables, x, method):
    """A module whose codes are logits of the pixels, and whose pixels those of a table."""
    if method == "code_logits":
        return variables["params"] * x.reshape(ROWS, PLACES, CODES)
    if method == "images_of":
        return jnp.broadcast_to(TABLE[x][:, :, :1, None], (ROWS, PLACES, CODES, 1))
    pixels = x @ TABLE
    return tuple(jnp.broadcast_to(pixels[:, :, i, None, None], (ROWS, PLACES, CODES, 1)) for i in range(2))


def test_the_bound_is_the_papers():
    objective = DiscreteVAE(beta=6.6, beta_steps=8, temperatures=(1.0, 0.25), temperature_steps=10)
    images = np.random.default_rng(0).uniform(-1, 1, (ROWS, PLACES, CODES, 1)).astype(np.float32)
    weights = np.array([1, 0, 1, 1, 1], np.float32)
    data = with_keys({"images": images, "loss_weights": weights}, jax.random.key(1))
    step, kept = 4, weights > 0
    sums, _ = objective(apply, jnp.float32(1.5), data, None, False, carry={"step": jnp.int32(step)})
    found = objective.reduce(sums)

    temperature, beta = 0.25 + 0.75 * (1 + np.cos(0.4 * np.pi)) / 2, 3.3
    logits = 1.5 * images.reshape(ROWS, PLACES, CODES)
    noise = np.stack([jax.random.gumbel(key, (PLACES, CODES)) for key in data["keys"]])
    softmax = lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    location, log_scale = np.split(softmax((logits + noise) / temperature) @ TABLE, 2, axis=-1)
    x = (0.8 * (images[..., 0] + 1) / 2 + 0.1).astype(np.float64)
    b = np.exp(log_scale)
    density = np.exp(-np.abs(np.log(x / (1 - x)) - location) / b) / (2 * b * x * (1 - x))
    nats = -np.log(density).mean((1, 2))
    kl = (softmax(logits) * np.log(CODES * softmax(logits))).sum((1, 2))
    likeliest = logits.argmax(-1)
    apart = ((TABLE[likeliest][:, :, :1, None] - images) ** 2).mean((1, 2, 3))
    expected = {
        "loss": (nats + beta * kl / 12)[kept].mean(), "reconstruction": nats[kept].mean(), "kl": kl[kept].mean(),
        "squared_error": apart[kept].mean(), "temperature": temperature, "beta": beta,
        "codes_used": len(np.unique(likeliest[kept])) / CODES,
    }  # fmt: skip
    shares = np.bincount(likeliest[kept].reshape(-1), minlength=CODES) / likeliest[kept].size
    expected["perplexity"] = np.exp(-sum(share * np.log(share) for share in shares if share))
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_draws_are_codes_once_the_temperature_is_low_and_follow_their_shares():
    objective, logits = DiscreteVAE(temperatures=(1.0, 1e-3)), jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    noise = jax.random.gumbel(jax.random.key(0), (20_000, 4))
    assert objective.schedule(0)[0] == 1 and objective.schedule(10**6)[0] == pytest.approx(1e-3)
    shares = drawn(logits, noise, objective.schedule(10**6)[0])
    assert (shares.max(-1) > 0.99).mean() > 0.98
    np.testing.assert_allclose(shares.mean(0), jnp.exp(logits), atol=0.015)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="objective.beta_steps = -1 must be at least 0"):
        DiscreteVAE(beta_steps=-1)
    with pytest.raises(ConfigError, match="objective.temperatures = .* expected two numbers above 0"):
        DiscreteVAE(temperatures=(1.0, 0.0))
    data = lambda codec: types.SimpleNamespace(codecs={"image": codec})
    with pytest.raises(ConfigError, match="which VQGAN is not; take model.name = 'discrete_vae'"):
        DiscreteVAE().check(VQGAN(), data(ImageCodec(8, 8)))
    with pytest.raises(ConfigError, match="mean = std = 0.5, .* these data have ImageCodec"):
        DiscreteVAE().check(discrete_vae.DiscreteVAE(), data(ImageCodec(8, 8, mean=(0.4,))))


def test_a_run_counts_the_steps_of_its_schedules_and_reconstructs(tmp_path):
    config = configs.resolve({
        "train": {"batch_size": 8, "log_every": 1, "eval_every": -1, "sample_every": -1,
                  "tensorboard": False, "steps": 3, "accumulate_steps": 2},
        "model": {"name": "discrete_vae", "widths": [8, 16], "num_blocks": 1, "num_codes": 12, "code_size": 4},
        "objective": {"name": "discrete_vae", "temperature_steps": 6, "beta_steps": 3, "num_samples": 2},
        "data": {"name": "digits"}, "optimizer": {"name": "adamw", "learning_rate": 1e-2},
    })  # fmt: skip
    workdir = tmp_path / "run"
    found = train(config, workdir, cache_dir=tmp_path / "cache", progress=False)
    model = fmjax.load(workdir)
    assert model.carry["step"] == 3 and found["train/temperature"] < 1
    image = np.full((8, 8, 1), 200, np.uint8)
    (kept,) = model.generate([image])
    assert kept.shape == (8, 8, 1) and kept.dtype == np.uint8
