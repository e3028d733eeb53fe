"""Masked-token and next-sentence losses against plain ones, with and without masked positions, cut and sharded."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fmjax.data.base import OpenData
from fmjax.errors import ConfigError
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.training.state import TrainState
from fmjax.training.step import make_train_step
from tests.quick_keys import quick_key

B, T, P, D, V = 8, 12, 4, 6, 30


class Encoder(nn.Module):
    """Means over the row stand in for attention."""

    next_sentence: bool = True

    def setup(self):
        self.embed = self.param("embed", nn.initializers.normal(1.0), (V, D))
        self.mix = self.param("mix", nn.initializers.normal(1.0), (2 * D, D))
        self.bias = self.param("bias", nn.initializers.normal(1.0), (V,))
        self.pair = self.param("pair", nn.initializers.normal(1.0), (D, 2))

    def features(self, tokens, segment_ids=None, positions=None, token_types=None, train=False):
        x = self.embed[tokens] * (1.0 + token_types[..., None])
        valid = (segment_ids > 0)[..., None]
        mean = (x * valid).sum(1, keepdims=True) / jnp.maximum(valid.sum(1, keepdims=True), 1)
        x = jnp.tanh(jnp.concatenate([x, jnp.broadcast_to(mean, x.shape)], -1) @ self.mix)
        return x, {"embedding": self.embed, "bias": self.bias}

    def pretraining(self, tokens, segment_ids=None, positions=None, token_types=None, train=False):
        x, head = self.features(tokens, segment_ids, positions, token_types, train)
        return x, head, x[:, 0] @ self.pair


MODULE = Encoder()


def batch_of(rows=B, labels=True, padding=0):
    """Rows with 1..P masked tokens, and `padding` more rows of zeros."""
    rng = np.random.default_rng(0)
    data = {
        "tokens": rng.integers(0, V, (rows, T)),
        "targets": rng.integers(0, V, (rows, T)),
        "segment_ids": np.ones((rows, T)),
        "positions": np.tile(np.arange(T), (rows, 1)),
        "token_types": rng.integers(0, 2, (rows, T)),
        "loss_weights": np.zeros((rows, T)),
        "masked_positions": np.zeros((rows, P)),
    }
    for row in range(rows):
        chosen = np.sort(rng.choice(np.arange(1, T), rng.integers(1, P + 1), replace=False))
        data["loss_weights"][row, chosen] = 1
        data["masked_positions"][row, : len(chosen)] = chosen
    if labels:
        data["next_sentence_labels"] = rng.integers(0, 2, rows)
    data = {k: v.astype(np.float32 if k == "loss_weights" else np.int32) for k, v in data.items()}
    return {k: np.concatenate([v, np.zeros((padding, *v.shape[1:]), v.dtype)]) for k, v in data.items()}


@pytest.fixture(scope="module")
def params():
    batch = {k: v for k, v in batch_of().items() if k in ("tokens", "segment_ids", "token_types")}
    return jax.jit(lambda key: MODULE.init(key, **batch, method="pretraining"))(quick_key(0))["params"]


def plain(params, batch):
    """Means of (masked-token loss, next-sentence loss, their accuracies), written out."""
    inputs = {k: batch[k] for k in ("tokens", "segment_ids", "token_types")}
    hidden, head, pair = MODULE.apply({"params": params}, **inputs, method="pretraining")
    logits = hidden @ head["embedding"].T + head["bias"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
    right = jnp.argmax(logits, -1) == batch["targets"]
    weights = batch["loss_weights"] / batch["loss_weights"].sum()
    rows = batch["segment_ids"][:, 0] / batch["segment_ids"][:, 0].sum()
    labels = batch["next_sentence_labels"]
    pair_losses = optax.softmax_cross_entropy_with_integer_labels(pair, labels)
    return (
        (losses * weights).sum(),
        (pair_losses * rows).sum(),
        (right * weights).sum(),
        ((jnp.argmax(pair, -1) == labels) * rows).sum(),
    )


def mean(metric):
    return float(metric[0] / metric[1])


def test_names_and_values(params):
    batch = batch_of(padding=3)
    evaluated = jax.jit(lambda: MaskedLM(chunk_size=3)(MODULE.apply, params, batch, None, False))()
    loss, pair_loss, accuracy, pair_accuracy = jax.jit(plain)(params, batch)
    assert set(evaluated) == {"loss", "accuracy", "masked_lm_loss", "next_sentence_loss", "next_sentence_accuracy"}
    found = [mean(evaluated[n]) for n in ("masked_lm_loss", "next_sentence_loss", "accuracy", "next_sentence_accuracy")]
    np.testing.assert_allclose(found, [loss, pair_loss, accuracy, pair_accuracy], rtol=1e-5)
    np.testing.assert_array_equal(evaluated["loss"], (evaluated["masked_lm_loss"], evaluated["next_sentence_loss"]))
    assert evaluated["next_sentence_loss"][1] == B  # rows of padding do not count
    trained = lambda key: MaskedLM()(MODULE.apply, params, batch, key, True)
    assert set(jax.eval_shape(trained, jax.random.key(0))) == {"loss", "masked_lm_loss", "next_sentence_loss"}
    without = jax.jit(lambda: MaskedLM()(MODULE.apply, params, batch_of(labels=False), None, False))()
    assert set(without) == {"loss", "accuracy"}
    np.testing.assert_allclose(mean(without["loss"]), loss, rtol=1e-5)


def test_masked_positions_change_what_is_computed_and_not_the_result(params):
    batch = batch_of(labels=False)
    everywhere = {k: v for k, v in batch.items() if k != "masked_positions"}

    def loss(params, batch):
        total, weight = MaskedLM()(MODULE.apply, params, batch, None, True)["loss"]
        return total / weight

    steps = [jax.jit(jax.value_and_grad(loss)).lower(params, data).compile() for data in (batch, everywhere)]
    few, all_ = steps[0](params, batch), steps[1](params, everywhere)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), few, all_)
    flops = [step.cost_analysis()["flops"] for step in steps]
    assert flops[1] - flops[0] > 6 * B * (T - P) * D * V


@pytest.mark.parametrize("parts, devices", [(1, 1), (4, 1), (2, 4)])
def test_a_step_takes_the_mean_of_both_losses_over_the_global_batch(params, parts, devices):
    batch = batch_of()
    step = make_train_step(MODULE.apply, MaskedLM(), optax.sgd(0.1), lambda n: 0.1, rules=(), accumulate_steps=parts)
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices]
    )
    whole, rows = jax.NamedSharding(mesh, jax.P()), jax.NamedSharding(mesh, jax.P("data"))
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, zero, params, optax.sgd(0.1).init(params), None)
    new, metrics = jax.jit(step)(jax.device_put(state, whole), jax.device_put(batch, rows), jax.random.key(0))
    loss, gradient = jax.jit(jax.value_and_grad(lambda p: sum(plain(p, batch)[:2])))(params)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["masked_lm_loss"] + metrics["next_sentence_loss"], loss, rtol=1e-5)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), new.params, expected)


def test_labels_need_a_head_and_a_head_without_labels_is_told(caplog):
    with_labels, without = (OpenData(train=[batch_of(labels=labels)]) for labels in (True, False))
    MaskedLM().check(MODULE, with_labels)
    with pytest.raises(ConfigError, match="Encoder has no next-sentence head"):
        MaskedLM().check(Encoder(next_sentence=False), with_labels)
    assert not caplog.text
    MaskedLM().check(Encoder(next_sentence=False), without)
    assert not caplog.text
    MaskedLM().check(MODULE, without)
    assert "data.next_sentence is not on" in caplog.text
    with pytest.raises(ConfigError, match="chunk_size"):
        MaskedLM(chunk_size=0)
