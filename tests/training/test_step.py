"""The train step: one loss and one gradient, however the batch is cut, and state that only changes as it should."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fmjax.training.evaluation import PaddedRows
from fmjax.training.state import TrainState
from fmjax.training.step import make_eval_step, make_train_step


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x @ self.param("w", nn.initializers.normal(1.0), (x.shape[-1], 1))


@dataclasses.dataclass(frozen=True)
class SquaredError:
    def __call__(self, apply_fn, params, batch, key, train):
        error = (apply_fn({"params": params}, batch["x"])[:, 0] - batch["y"]) ** 2
        return {"loss": ((error * batch["loss_weights"]).sum(), batch["loss_weights"].sum())}


def batch(rows=8, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 3, rows).astype(np.float32)  # uneven, with zeros
    return {
        "x": rng.normal(size=(rows, 3)).astype(np.float32),
        "y": rng.normal(size=rows).astype(np.float32),
        "loss_weights": weights,
    }


def start(optimizer, ema=False):
    params = Linear().init(jax.random.key(0), np.zeros((1, 3)))["params"]
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, zero, params, optimizer.init(params), params if ema else None)


def step_with(optimizer=None, **options):
    optimizer = optimizer or optax.sgd(0.1)
    step = make_train_step(Linear().apply, SquaredError(), optimizer, lambda n: 0.1, rules=(), **options)
    return jax.jit(step), start(optimizer, options.get("ema_decay", 0) > 0)


def closed_form(params, batch):
    """Loss, gradient and parameters after one step of SGD at 0.1, by hand."""
    w, x, y, weight = np.asarray(params["w"])[:, 0], batch["x"], batch["y"], batch["loss_weights"]
    error = x @ w - y
    gradient = 2 * (weight * error) @ x / weight.sum()
    return (weight * error**2).sum() / weight.sum(), np.linalg.norm(gradient), w - 0.1 * gradient


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_loss_and_update_are_the_weighted_mean_however_the_batch_is_cut(parts):
    step, state = step_with(accumulate_steps=parts)
    new, metrics = step(state, batch(), jax.random.key(1))
    loss, norm, w = closed_form(state.params, batch())
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-6)
    np.testing.assert_allclose(new.params["w"][:, 0], w, rtol=1e-6)
    assert int(new.step) == 1 and float(metrics["finite"]) == 1.0


def test_accumulation_deals_rows_so_that_each_device_keeps_its_own():
    step, _ = step_with(accumulate_steps=2)
    from fmjax.training.step import _split

    np.testing.assert_array_equal(_split(jnp.arange(8), 2), [[0, 2, 4, 6], [1, 3, 5, 7]])


def test_a_batch_without_weight_changes_nothing_and_stays_finite():
    step, state = step_with()
    new, metrics = step(state, batch() | {"loss_weights": np.zeros(8, np.float32)}, jax.random.key(1))
    np.testing.assert_array_equal(new.params["w"], state.params["w"])
    assert float(metrics["loss"]) == 0.0 and float(metrics["finite"]) == 1.0


def test_moving_average_follows_the_parameters():
    step, state = step_with(ema_decay=0.75)
    first, _ = step(state, batch(), jax.random.key(1))
    np.testing.assert_allclose(first.ema["w"], 0.75 * state.params["w"] + 0.25 * first.params["w"], rtol=1e-6)


def test_updates_that_are_not_finite_are_skipped_and_counted_when_told_so():
    bad = batch() | {"y": np.full(8, np.nan, np.float32)}
    step, state = step_with(optax.adam(0.1), nonfinite="skip", ema_decay=0.5)
    new, metrics = step(state, bad, jax.random.key(1))
    assert float(metrics["finite"]) == 0.0 and int(new.skipped) == 1 and int(new.step) == 1
    for field in ("params", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(new, field), getattr(state, field))
    new, metrics = step(new, batch(), jax.random.key(1))
    assert float(metrics["finite"]) == 1.0 and int(new.skipped) == 1
    assert not np.array_equal(new.params["w"], state.params["w"])


def test_an_update_that_overflows_is_not_finite_though_its_gradient_is():
    step, state = step_with(optax.sgd(1e30), nonfinite="skip")
    new, metrics = step(state, batch(), jax.random.key(1))
    assert np.isfinite(metrics["grad_norm"]) and float(metrics["finite"]) == 0.0 and int(new.skipped) == 1
    np.testing.assert_array_equal(new.params["w"], state.params["w"])
    step, state = step_with()
    new, metrics = step(state, batch(), jax.random.key(1))
    np.testing.assert_allclose(metrics["update_norm"], np.linalg.norm(new.params["w"] - state.params["w"]), rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class TwoErrors:
    """Squared error an example, with weights, plus absolute error a row where there is any."""

    def __call__(self, apply_fn, params, batch, key, train):
        error = apply_fn({"params": params}, batch["x"])[:, 0] - batch["y"]
        squared = ((error**2 * batch["loss_weights"]).sum(), batch["loss_weights"].sum())
        absolute = ((abs(error) * batch["rows"]).sum(), batch["rows"].sum())
        return {"loss": (squared, absolute), "absolute": absolute}


def two_batch(rows=8):
    return batch(rows) | {"rows": np.array([1, 0, 0, 1, 1, 0, 1, 1][:rows], np.float32)}


@pytest.mark.parametrize("parts", [1, 2, 8])
@pytest.mark.parametrize("devices", [1, 4])
def test_a_loss_of_two_terms_is_the_sum_of_their_means_however_the_batch_is_cut(parts, devices):
    data, state = two_batch(), start(optax.sgd(0.1))
    step = make_train_step(Linear().apply, TwoErrors(), optax.sgd(0.1), lambda n: 0.1, rules=(), accumulate_steps=parts)
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices]
    )
    sharded = jax.device_put(data, jax.NamedSharding(mesh, jax.P("data")))
    new, metrics = jax.jit(step)(jax.device_put(state, jax.NamedSharding(mesh, jax.P())), sharded, jax.random.key(1))
    w, x = np.asarray(state.params["w"])[:, 0], data["x"]
    error = x @ w - data["y"]
    weights, rows = data["loss_weights"] / data["loss_weights"].sum(), data["rows"] / data["rows"].sum()
    gradient = 2 * (weights * error) @ x + (rows * np.sign(error)) @ x
    np.testing.assert_allclose(metrics["loss"], weights @ error**2 + rows @ abs(error), rtol=1e-6)
    np.testing.assert_allclose(metrics["absolute"], rows @ abs(error), rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(new.params["w"][:, 0], w - 0.1 * gradient, rtol=1e-5)


def test_the_means_of_two_terms_are_taken_over_a_whole_evaluation():
    from fmjax.training.evaluation import _means

    step = jax.jit(make_eval_step(Linear().apply, TwoErrors(), rules=()))
    data, state = two_batch(), start(optax.sgd(0.1))
    halves = [step(state.params, {k: v[part] for k, v in data.items()}, None) for part in (slice(4), slice(4, 8))]
    whole = _means("eval", step(state.params, data, None))
    pooled = _means("eval", jax.tree.map(jnp.add, *halves))
    assert set(whole) == {"eval/loss", "eval/absolute"}
    np.testing.assert_allclose(pooled["eval/loss"], whole["eval/loss"], rtol=1e-6)
    error = data["x"] @ np.asarray(state.params["w"])[:, 0] - data["y"]
    expected = np.average(error**2, weights=data["loss_weights"]) + np.average(abs(error), weights=data["rows"])
    np.testing.assert_allclose(whole["eval/loss"], expected, rtol=1e-5)


def test_the_weights_of_several_terms_cost_no_second_pass():
    def cost(objective, parts):
        step = make_train_step(
            Linear().apply, objective, optax.sgd(0.1), lambda n: 0.1, rules=(), accumulate_steps=parts
        )
        data = two_batch() | {"x": np.zeros((8, 4096), np.float32)}
        params = {"w": jnp.zeros((4096, 1))}
        state = TrainState(jnp.int32(0), jnp.int32(0), params, optax.sgd(0.1).init(params), None)
        return jax.jit(step).lower(state, data, jax.random.key(0)).compile().as_text().count(" dot(")

    assert cost(TwoErrors(), 2) == cost(SquaredError(), 2) == 2


def test_rows_of_padding_do_not_count_in_an_evaluation():
    whole, state = batch(6, seed=3), start(optax.sgd(0.1))
    examples = [{k: v[i] for k, v in whole.items()} for i in range(6)]
    padded = PaddedRows(examples)
    step = jax.jit(make_eval_step(Linear().apply, SquaredError(), rules=()))
    stacked = {k: np.stack([padded[i][k] for i in range(8)]) for k in whole}
    for a, b in zip(
        jax.tree.leaves(step(state.params, stacked, None)), jax.tree.leaves(step(state.params, whole, None))
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)
