"""The sequence-to-sequence objective: its names, its smoothing in training alone, what the module is called with."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fmjax.errors import ConfigError
from fmjax.objectives.seq2seq import Seq2Seq

B, T, S, D, V = 2, 7, 5, 4, 20


def apply_fn(variables, tokens, source_tokens, segment_ids, source_segment_ids, train, rngs, method):
    assert method == "features" and (rngs is None) == (not train)
    assert tokens.shape == segment_ids.shape == (B, T) and source_tokens.shape == source_segment_ids.shape == (B, S)
    return variables["params"]["hidden"], {"kernel": variables["params"]["kernel"]}


def test_loss_is_smoothed_in_training_and_plain_in_evaluation():
    rng = np.random.default_rng(0)
    params = {
        "hidden": rng.normal(size=(B, T, D)).astype(np.float32),
        "kernel": rng.normal(size=(D, V)).astype(np.float32),
    }
    ones = np.ones((B, T), np.int32)
    batch = dict(
        tokens=ones, segment_ids=ones, source_tokens=ones[:, :S], source_segment_ids=ones[:, :S], other=ones,
        targets=rng.integers(0, V, (B, T)), loss_weights=rng.integers(0, 2, (B, T)).astype(np.float32),
    )  # fmt: skip
    objective = Seq2Seq(label_smoothing=0.1, chunk_size=3)
    trained = jax.jit(lambda key: objective(apply_fn, params, batch, key, True))(jax.random.key(0))
    evaluated = jax.jit(lambda: objective(apply_fn, params, batch, None, False))()
    assert set(trained) == {"loss", "cross_entropy"} and set(evaluated) == {"loss", "accuracy"}
    plainly = lambda key: Seq2Seq(label_smoothing=0.0)(apply_fn, params, batch, key, True)
    assert set(jax.eval_shape(plainly, jax.random.key(0))) == {"loss"}
    logits = params["hidden"] @ params["kernel"]
    one_hot = jax.nn.one_hot(batch["targets"], V)
    plain = jnp.sum(optax.softmax_cross_entropy(logits, one_hot) * batch["loss_weights"])
    smoothed = jnp.sum(optax.softmax_cross_entropy(logits, optax.smooth_labels(one_hot, 0.1)) * batch["loss_weights"])
    np.testing.assert_allclose(trained["loss"][0], smoothed, rtol=1e-5)
    np.testing.assert_allclose([trained["cross_entropy"][0], evaluated["loss"][0]], plain, rtol=1e-5)
    correct = ((logits.argmax(-1) == batch["targets"]) * batch["loss_weights"]).sum()
    assert evaluated["accuracy"][0] == correct
    assert {float(weight) for _, weight in [*trained.values(), *evaluated.values()]} == {batch["loss_weights"].sum()}


def test_bad_fields_are_refused():
    for fields in ({"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"chunk_size": 0}):
        with pytest.raises(ConfigError, match=next(iter(fields))):
            Seq2Seq(**fields)
