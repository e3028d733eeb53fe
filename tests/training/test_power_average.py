"""Averages by power functions: the recursion is the integral, any width is made of two, also by a run's checkpoints."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.integrate import quad

import fmjax
from fmjax import config as configs
from fmjax import convert
from fmjax.checkpoint_files import read_item
from fmjax.commands import cli
from fmjax.errors import CheckpointError, ConfigError, InputError
from fmjax.power_average import exponent, mixture, products, share
from fmjax.tasks.made import making
from fmjax.training.loop import train
from fmjax.training.settings import TrainConfig
from fmjax.training.state import TrainState
from fmjax.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("one_device")


def integrated(values, step, sigma_rel):
    """The average at `step` of values that stay from one step to the next: the density's integral in closed form."""
    edges = (np.arange(step + 1) / step) ** (exponent(sigma_rel) + 1)
    return np.diff(edges) @ values[:step]


def test_a_width_is_the_deviation_of_its_density():
    for sigma_rel in (0.02, 0.05, 0.1, 0.25):
        gamma = exponent(sigma_rel)
        moment = lambda n: quad(lambda s: (gamma + 1) * s ** (gamma + n), 0, 1)[0]
        assert np.sqrt(moment(2) - moment(1) ** 2) == pytest.approx(sigma_rel, rel=1e-6)
    for wrong in (0.0, 0.3, -1.0):
        with pytest.raises(ValueError, match="must be above 0 and at most 0.25"):
            exponent(wrong)
    density = lambda s, t, gamma: (gamma + 1) * s**gamma / t ** (gamma + 1)
    for a, b in [((300, 6.94), (500, 16.97)), ((500, 6.94), (300, 16.97)), ((400, 3.0), (400, 3.0))]:
        found = quad(lambda s: density(s, *a) * density(s, *b), 0, min(a[0], b[0]))[0]
        assert products(*a, *b) == pytest.approx(found, rel=1e-6)


def test_the_recursion_is_the_integral():
    values = np.random.default_rng(0).normal(size=(200, 3)).cumsum(axis=0)
    for sigma_rel in (0.05, 0.2):
        gamma = exponent(sigma_rel)
        body = lambda average, one: (average + share(one[0], gamma) * (one[1] - average),) * 2
        _, found = jax.lax.scan(body, jnp.full(3, 7.0), (jnp.arange(1, 201), jnp.asarray(values)))
        for step in (1, 2, 50, 200):
            np.testing.assert_allclose(found[step - 1], integrated(values, step, sigma_rel), rtol=2e-4, atol=2e-4)


def test_any_width_is_made_of_two():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(2000, 16)).cumsum(axis=0)  # as parameters walk
    kept = [(step, width) for step in range(100, 2001, 100) for width in (0.05, 0.1)]
    averages = np.stack([integrated(values, *one) for one in kept])
    size = np.abs(values - values[-1]).mean()
    bounds = {0.05: 1e-6, 0.1: 1e-6, 0.06: 0.01, 0.08: 0.01, 0.15: 0.01, 0.2: 0.01, 0.03: 0.1}
    for sigma_rel, most in bounds.items():
        weights = mixture(*zip(*kept), 2000, sigma_rel)
        assert weights.sum() == pytest.approx(1)
        error = np.abs(weights @ averages - integrated(values, 2000, sigma_rel)).mean() / size
        assert error < most, (sigma_rel, error)
        nearest = min(np.abs(averages[-2:] - integrated(values, 2000, sigma_rel)).mean(axis=1)) / size
        assert error < max(0.3 * nearest, 1e-6)  # than the nearer of the two that were kept
    with pytest.raises(ValueError, match="at steps 1900, 2000 make its density up to 15%, and at most 10% is taken"):
        mixture(*zip(*kept[-4:]), 2000, 0.15)
    # At an earlier step, too, of those that were kept by then.
    weights = mixture(*zip(*[one for one in kept if one[0] <= 1000]), 1000, 0.07)
    assert np.abs(weights @ averages[:20] - integrated(values, 1000, 0.07)).mean() / size < 0.01


def test_a_step_averages_the_parameters_after_it_also_of_updates_that_are_left_out():
    exponents = (exponent(0.05), exponent(0.2))
    objective = lambda apply, params, batch, key, train: {"loss": ((params["w"] * batch["x"]).sum(), jnp.float32(1))}
    step = jax.jit(
        make_train_step(None, objective, optax.sgd(1.0), lambda n: 1.0, rules=(), ema_exponents=exponents,
                        nonfinite="skip")
    )  # fmt: skip
    params = {"w": jnp.zeros(1)}
    state = TrainState(jnp.int32(0), jnp.int32(0), params, optax.sgd(1.0).init(params), params, None, params)
    values = []
    for x in (1.0, -3.0, np.nan, 2.0, 5.0):
        state, _ = step(state, {"x": jnp.full((1, 1), x)}, jax.random.key(0))
        values.append(float(state.params["w"][0]))
    assert values == [-1.0, 2.0, 2.0, 0.0, -5.0] and state.skipped == 1
    for average, width in ((state.ema, 0.05), (state.wide_ema, 0.2)):
        np.testing.assert_allclose(average["w"][0], integrated(np.array(values), 5, width), rtol=1e-5)


def settings(**changes):
    return configs.resolve({
        "train": {"steps": 8, "batch_size": 8, "log_every": 1, "eval_every": -1, "checkpoint_every": 2, "keep_every": 2,
                  "ema_sigma_rel": (0.05, 0.15), "tensorboard": False} | changes,
        "model": {"name": "vit", "num_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
                  "patch_size": 4},
        "objective": {"name": "classification"},
        "data": {"name": "digits"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
    })  # fmt: skip


def test_a_run_keeps_two_resumes_and_gives_any(tmp_path):
    workdir, cut = tmp_path / "run", tmp_path / "cut"
    train(settings(), workdir, cache_dir=tmp_path / "cache", progress=False)
    shutil.copytree(workdir, cut)
    shutil.rmtree(cut / "checkpoints/8")
    train(settings(), cut, cache_dir=tmp_path / "cache", progress=False)
    saved = lambda folder, step, item: read_item(folder.absolute() / "checkpoints" / str(step) / item)
    for item in ("params", "ema", "wide_ema"):
        jax.tree.map(np.testing.assert_array_equal, saved(workdir, 8, item), saved(cut, 8, item))
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
    first = fmjax.load(workdir).params  # as evaluation has it
    jax.tree.map(np.testing.assert_array_equal, first, saved(workdir, 8, "ema"))
    jax.tree.map(close, fmjax.load(workdir, sigma_rel=0.05).params, first)
    jax.tree.map(close, fmjax.load(workdir, sigma_rel=0.15).params, saved(workdir, 8, "wide_ema"))
    shares = mixture([2, 2, 4, 4, 6, 6], [0.05, 0.15] * 3, 6, 0.1)
    parts = [saved(workdir, step, item) for step in (2, 4, 6) for item in ("ema", "wide_ema")]
    want = jax.tree.map(lambda *leaves: sum(share * leaf for share, leaf in zip(shares, leaves)), *parts)
    model = fmjax.load(workdir / "checkpoints/6", sigma_rel=0.1)
    jax.tree.map(close, model.params, want)
    argv = [f"--input={workdir / 'checkpoints/6'}", f"--output={tmp_path / 'saved'}", "--to=fmjax", "--sigma_rel=0.1"]
    assert cli.run(convert.main, argv) == 0
    saved_again = fmjax.load(tmp_path / "saved")
    jax.tree.map(close, saved_again.params, want)
    assert making.average(fmjax.load(workdir)) == {"ema_sigma_rel": 0.05}  # of what is made with it
    assert making.average(model) == making.average(saved_again) == {"ema_sigma_rel": 0.1}
    with pytest.raises(InputError, match="sigma_rel = 0.3 must be above 0 and at most 0.25"):
        fmjax.load(workdir, sigma_rel=0.3)
    plain = tmp_path / "plain"
    train(settings(ema_sigma_rel=(), steps=1), plain, cache_dir=tmp_path / "cache", progress=False)
    with pytest.raises(CheckpointError, match="has no checkpoint with averages by power functions"):
        fmjax.load(plain, sigma_rel=0.1)


def test_widths_that_cannot_be_are_refused():
    for fields, message in [
        (dict(ema_sigma_rel=(0.05,)), "must be two widths above 0 and at most 0.25"),
        (dict(ema_sigma_rel=(0.1, 0.05)), "the smaller first"),
        (dict(ema_sigma_rel=(0.1, 0.3)), "at most 0.25"),
        (dict(ema_sigma_rel=(0.05, 0.1), ema_decay=0.9), "give one of them"),
    ]:
        with pytest.raises(ConfigError, match=message):
            TrainConfig(steps=1, batch_size=1, **fields)
