"""The train step: one loss and one gradient, however the batch is cut, and state that only changes as it should."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fmjax.errors import ConfigError
from fmjax.objectives.base import OtherModel, Proposal, per_row
from fmjax.training.evaluation import PaddedRows, _named
from fmjax.training.gradients import split_rows
from fmjax.training.state import TrainState
from fmjax.training.step import make_eval_step, make_train_step, reduced, with_keys
from fmjax.training.trainable import Trainable
from tests.quick_keys import quick_key


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
    params = Linear().init(quick_key(0), np.zeros((1, 3)))["params"]
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
    np.testing.assert_array_equal(split_rows(jnp.arange(8), 2), [[0, 2, 4, 6], [1, 3, 5, 7]])


def test_a_batch_without_weight_changes_nothing_and_stays_finite():
    step, state = step_with()
    new, metrics = step(state, batch() | {"loss_weights": np.zeros(8, np.float32)}, jax.random.key(1))
    np.testing.assert_array_equal(new.params["w"], state.params["w"])
    assert float(metrics["loss"]) == 0.0 and float(metrics["finite"]) == 1.0
    sums = {"loss": (jnp.float32(0), jnp.float32(0)), "part": (jnp.float32(0), jnp.float32(0))}
    assert reduced(SquaredError(), sums)["loss"] == 0 and jnp.isnan(reduced(SquaredError(), sums)["part"])


def test_moving_average_follows_the_parameters():
    step, state = step_with(ema_decay=0.75)
    first, _ = step(state, batch(), jax.random.key(1))
    np.testing.assert_allclose(first.ema["w"], 0.1 * state.params["w"] + 0.9 * first.params["w"], rtol=1e-6)


def test_the_moving_average_forgets_the_initialisation_by_a_ramp_that_skipped_updates_do_not_advance():
    step, state = step_with(nonfinite="skip", ema_decay=0.3)
    expected, updates = np.array(state.params["w"]), 0
    for number in range(6):
        bad = number in (0, 2)
        rows = batch() | ({"y": np.full(8, np.nan, np.float32)} if bad else {})
        state, _ = step(state, rows, jax.random.key(1))
        if not bad:
            decay = min(0.3, (1 + updates) / (10 + updates))
            expected, updates = decay * expected + (1 - decay) * np.array(state.params["w"]), updates + 1
        np.testing.assert_allclose(state.ema["w"], expected, rtol=1e-6)


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
    means = lambda prefix, sums: _named(prefix, TwoErrors(), sums)
    step = jax.jit(make_eval_step(Linear().apply, TwoErrors(), rules=()))
    data, state = two_batch(), start(optax.sgd(0.1))
    halves = [step(state.params, {k: v[part] for k, v in data.items()}, None) for part in (slice(4), slice(4, 8))]
    whole = means("eval", step(state.params, data, None))
    pooled = means("eval", jax.tree.map(jnp.add, *halves))
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


@dataclasses.dataclass(frozen=True)
class MaskedErrors:
    """Squared error of the rows that a draw under jit keeps, plus the mean square of all predictions."""

    def __call__(self, apply_fn, params, batch, key, train):
        predicted = apply_fn({"params": params}, batch["x"])[:, 0]
        kept = per_row(lambda key: jax.random.bernoulli(key, 0.5).astype(jnp.float32), batch["keys"])
        error = (((predicted - batch["y"]) ** 2 * kept).sum(), kept.sum())
        return {
            "loss": (error, ((predicted**2).sum(), jnp.float32(len(predicted)))),
            "kept": (kept.sum(), jnp.float32(len(kept))),
        }


@pytest.mark.parametrize("parts", [2, 8])
def test_what_is_drawn_by_row_and_what_it_weighs_do_not_depend_on_accumulation(parts):
    state, key = start(optax.sgd(0.1)), jax.random.key(1)

    def run(parts):
        step = make_train_step(
            Linear().apply, MaskedErrors(), optax.sgd(0.1), lambda n: 0.1, rules=(), accumulate_steps=parts
        )
        return jax.jit(step)(state, batch(), key)

    (whole, expected), (new, metrics) = run(1), run(parts)
    for name in ("loss", "kept", "grad_norm"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-6)
    np.testing.assert_allclose(new.params["w"], whole.params["w"], rtol=1e-6)
    # By hand: the rows' keys are the ones that a batch has.
    keys = with_keys(batch(), jax.random.fold_in(key, 0))["keys"]
    kept = np.array([float(jax.random.bernoulli(k, 0.5)) for k in keys])
    assert len({str(jax.random.key_data(k)) for k in keys}) == 8 and 0 < kept.sum() < 8
    w, x, y = np.asarray(state.params["w"])[:, 0], batch()["x"], batch()["y"]
    gradient = 2 * (kept * (x @ w - y)) @ x / kept.sum() + 2 * (x @ w) @ x / 8
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient), rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class Carried:
    """Pulls predictions to a carried mean of the targets; keeps the newest targets in a queue of 12."""

    def initial(self, module, params, key):
        names = ("batch",)
        return {"mean": jnp.zeros(()), "queue": nn.LogicallyPartitioned(jnp.zeros(12), names), "slow": dict(params)}

    def __call__(self, apply_fn, params, batch, key, train, *, carry):
        error = (apply_fn({"params": params}, batch["x"])[:, 0] - carry["mean"]) ** 2 + 0 * carry["queue"].sum()
        proposal = Proposal({"sum": batch["y"].sum(), "count": jnp.float32(len(error))}, batch["y"])
        return {"loss": (error.sum(), jnp.float32(len(error)))}, proposal

    def after(self, carry, proposal, params):
        mean = 0.5 * carry["mean"] + 0.5 * proposal.sums["sum"] / proposal.sums["count"]
        queue = jnp.concatenate([proposal.rows, carry["queue"]])[:12]
        return {
            "mean": mean,
            "queue": queue,
            "slow": jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, carry["slow"], params),
        }


@pytest.mark.parametrize("parts", [1, 4])
def test_a_carry_gets_the_statistics_and_rows_of_the_whole_batch_and_the_new_parameters(parts):
    objective, state = Carried(), start(optax.sgd(0.1))
    carry = nn.unbox(objective.initial(Linear(), state.params, None))
    step = make_train_step(Linear().apply, objective, optax.sgd(0.1), lambda n: 0.1, rules=(), accumulate_steps=parts)
    first, second = batch(8, seed=1), batch(8, seed=2)
    one, _ = jax.jit(step)(dataclasses.replace(state, carry=carry), first, jax.random.key(1))
    two, _ = jax.jit(step)(one, second, jax.random.key(1))
    np.testing.assert_allclose(two.carry["mean"], 0.25 * first["y"].mean() + 0.5 * second["y"].mean(), rtol=1e-6)
    np.testing.assert_array_equal(two.carry["queue"], np.concatenate([second["y"], first["y"]])[:12])
    slow = 0.81 * state.params["w"] + 0.09 * one.params["w"] + 0.1 * two.params["w"]
    np.testing.assert_allclose(two.carry["slow"]["w"], slow, rtol=1e-6)
    # The second step pulled to what the first one carried on.
    w, x, mean = np.asarray(one.params["w"])[:, 0], second["x"], 0.5 * first["y"].mean()
    np.testing.assert_allclose(two.params["w"][:, 0], w - 0.2 * (x @ w - mean) @ x / 8, rtol=1e-5)


def test_a_skipped_update_leaves_the_carry_alone():
    objective, state = Carried(), start(optax.sgd(0.1))
    state = dataclasses.replace(state, carry=nn.unbox(objective.initial(Linear(), state.params, None)))
    step = make_train_step(Linear().apply, objective, optax.sgd(0.1), lambda n: 0.1, rules=(), nonfinite="skip")
    new, _ = jax.jit(step)(state, batch() | {"x": np.full((8, 3), np.inf, np.float32)}, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, new.carry, state.carry)


@dataclasses.dataclass(frozen=True)
class Reduced(SquaredError):
    """Reduces its sums to nothing of use."""

    made: tuple = ()

    def reduce(self, sums):
        return dict(self.made)


@pytest.mark.parametrize(
    "made, message",
    [((("error", 1.0),), "no 'loss'"), ((("loss", np.zeros(2)),), r"an array of shape \(2,\) as 'loss'")],
)
def test_a_reduction_without_a_loss_or_to_no_number_is_refused(made, message):
    step = make_train_step(Linear().apply, Reduced(made), optax.sgd(0.1), lambda n: 0.1, rules=())
    with pytest.raises(ConfigError, match=f"objective Reduced: `reduce` made {message}"):
        jax.eval_shape(step, start(optax.sgd(0.1)), batch(), jax.random.key(1))


def test_a_carry_that_is_not_finite_is_no_update():
    objective, state = Carried(), start(optax.sgd(0.1))
    state = dataclasses.replace(state, carry=nn.unbox(objective.initial(Linear(), state.params, None)))
    bad = batch() | {"y": np.full(8, np.nan, np.float32)}  # the loss looks at the carried mean alone
    step = make_train_step(Linear().apply, objective, optax.sgd(0.1), lambda n: 0.1, rules=(), nonfinite="skip")
    new, metrics = jax.jit(step)(state, bad, jax.random.key(1))
    assert np.isfinite(metrics["loss"]) and float(metrics["finite"]) == 0.0 and int(new.skipped) == 1
    jax.tree.map(np.testing.assert_array_equal, (new.carry, new.params), (state.carry, state.params))


class TwoLayers(nn.Module):
    @nn.compact
    def __call__(self, x):
        hidden = x @ self.param("inner", nn.initializers.normal(1.0), (x.shape[-1], 4))
        return hidden @ self.param("outer", nn.initializers.normal(1.0), (4, 1))


def test_only_what_trains_has_gradients_updates_and_optimizer_state():
    params = TwoLayers().init(quick_key(0), np.zeros((1, 3)))["params"]
    trainable, optimizer, zero = Trainable(("^outer$",), params), optax.adamw(0.1, weight_decay=0.5), jnp.int32(0)
    trained, rest = trainable.split(params)
    assert (trained["inner"], rest["outer"]) == (None, None)
    jax.tree.map(np.testing.assert_array_equal, trainable.merge(trained, rest), params)
    state = TrainState(zero, zero, params, optimizer.init(trained), jax.tree.map(jnp.copy, trained))
    assert sum(x.size for x in jax.tree.leaves(state.opt_state)) == 2 * 4 + 1  # two moments and a count
    step = make_train_step(
        TwoLayers().apply, SquaredError(), optimizer, lambda n: 0.1, rules=(), trainable=trainable, ema_decay=0.5
    )
    new, metrics = jax.jit(step)(state, batch(), jax.random.key(1))
    np.testing.assert_array_equal(new.params["inner"], params["inner"])
    assert new.ema["inner"] is None and not np.allclose(new.params["outer"], params["outer"])
    x, y, weight = batch()["x"] @ params["inner"], batch()["y"], batch()["loss_weights"]
    gradient = 2 * (weight * ((x @ params["outer"])[:, 0] - y)) @ x / weight.sum()
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient), rtol=1e-5)


def test_a_pattern_of_what_trains_that_matches_nothing_is_refused():
    shapes = {"head": {"kernel": jax.ShapeDtypeStruct((2,), "float32"), "table": jax.ShapeDtypeStruct((2,), "int8")}}
    with pytest.raises(ConfigError, match="train.trainable: 'hed' matches no parameter that can train.*head/kernel"):
        Trainable(("head/kernel", "hed"), shapes)
    with pytest.raises(ConfigError, match="'table' matches no parameter that can train"):
        Trainable(("table",), shapes)
    assert Trainable((), shapes).split(shapes)[0] == {"head": {"kernel": shapes["head"]["kernel"], "table": None}}


@dataclasses.dataclass(frozen=True)
class Distilled:
    def models(self):
        return {"teacher": "a path"}

    def __call__(self, apply_fn, params, batch, key, train, *, models):
        error = (apply_fn({"params": params}, batch["x"]) - models["teacher"].apply(batch["x"]))[:, 0] ** 2
        return {"loss": (error.sum(), jnp.float32(len(error)))}


def test_another_model_in_the_step_is_read_and_not_trained():
    state, teacher = start(optax.sgd(0.1)), {"w": jnp.ones((3, 1))}
    step = make_train_step(Linear().apply, Distilled(), optax.sgd(0.1), lambda n: 0.1, rules=(), accumulate_steps=2)
    models = {"teacher": OtherModel(Linear(), teacher)}
    new, metrics = jax.jit(step)(state, batch(), jax.random.key(1), models)
    start_w = np.asarray(start(optax.sgd(0.1)).params["w"])
    error = batch()["x"] @ (start_w - 1.0)
    np.testing.assert_allclose(metrics["loss"], np.mean(error**2), rtol=1e-6)
    np.testing.assert_array_equal(teacher["w"], 1.0)
