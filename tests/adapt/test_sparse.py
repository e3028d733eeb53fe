"""Zeros that stay: through products, gradients, any optimizer, and a run that begins with a pruned model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax import config as configs
from fmjax.adapt.sparse import Sparse
from fmjax.checkpoint_files import load_params
from fmjax.compress.pruning import Magnitude
from fmjax.errors import ConfigError
from fmjax.interop.loading import model_section
from fmjax.layers.dense import dense
from fmjax.layers.weights import MaskedWeight, merged
from fmjax.training.loop import train
from tests.small_models import byte_model


def test_a_masked_kernel_is_zero_where_it_was_and_so_is_its_gradient():
    drawn = np.random.default_rng(0)
    x, base = drawn.normal(size=(5, 6)).astype(np.float32), drawn.normal(size=(6, 4)).astype(np.float32)
    kept = drawn.random((6, 4)) < 0.5
    weight = MaskedWeight(jnp.asarray(base), jnp.asarray(kept))
    out, back = jax.vjp(lambda base: dense(x, weight.replace(base=base)), weight.base)
    np.testing.assert_allclose(out, x @ (base * kept), atol=1e-6)
    np.testing.assert_allclose(back(jnp.ones((5, 4)))[0], np.outer(x.sum(0), np.ones(4)) * kept, atol=1e-5)
    np.testing.assert_array_equal(merged(weight), base * kept)


def test_patterns_that_match_no_kernel_are_refused():
    params = {"mlp": {"up": {"kernel": jnp.ones((2, 2))}}}
    with pytest.raises(ConfigError, match="'donw' matches no parameter; kernels are: mlp/up/kernel"):
        Sparse(patterns=("donw",)).attach(params, jax.random.key(0))
    with pytest.raises(ConfigError, match="is empty"):
        Sparse(patterns=())


def test_models_without_zeros_are_refused_by_the_pattern_that_finds_none(caplog):
    full, half = jnp.ones((2, 4, 4)), jnp.ones((2, 4, 4)).at[:, :2].set(0)
    params = {"blocks": {"up": {"kernel": half}, "down": {"kernel": full}}}
    Sparse(patterns=("kernel",)).check_begun(params)
    with caplog.at_level("INFO", "fmjax"):
        Sparse(patterns=("up",)).check_begun(params)
    assert "'up' matches 50.0% are zeros" in caplog.text
    with pytest.raises(ConfigError, match="'down' matches 1 kernels .* none .* has a zero .*fmjax.compress --model"):
        Sparse(patterns=("up", "down")).check_begun(params)
    with pytest.raises(ConfigError, match="without train.init_from there are none; prune a model first"):
        Sparse().check_begun(None)


def test_a_run_that_begins_with_a_pruned_model_keeps_its_zeros(tmp_path):
    """Under an optimizer whose updates have no zeros where gradients have."""
    unpruned = byte_model()
    unpruned.save(tmp_path / "dense")
    pruned = Magnitude(pattern="2:4").compress(unpruned)
    pruned.save(tmp_path / "pruned")
    (tmp_path / "text.txt").write_text("A rose is a rose is a rose.\n" * 200)
    config = configs.resolve({
        "train": {
            "steps": 3, "batch_size": 8, "init_from": str(tmp_path / "pruned"), "ema_decay": 0.5, "eval_every": -1,
            "sample_every": -1,
        },
        "mesh": {"data": -1},
        "model": model_section(str(tmp_path / "pruned")),
        "weights": {"name": "sparse"},
        "objective": {"name": "causal_lm"},
        "data": {"source": str(tmp_path / "text.txt"), "sequence_length": 16},
        "optimizer": {"name": "muon", "learning_rate": 1e-2, "weight_decay": 0.1},
    })  # fmt: skip
    options = dict(cache_dir=tmp_path / "cache", progress=False)
    plain = config.to_dict()
    whole = configs.resolve(plain | {"train": plain["train"] | {"init_from": str(tmp_path / "dense")}})
    with pytest.raises(ConfigError, match="none of which has a zero to keep"):
        train(whole, tmp_path / "nothing", **options)
    assert not (tmp_path / "nothing" / "config.json").exists()
    train(config, tmp_path / "run", **options)
    kernel = lambda tree: np.asarray(tree["stack"]["blocks"]["mlp"]["up"]["kernel"])  # noqa: E731
    before, after = kernel(pruned.params), kernel(fmjax.load(tmp_path / "run").params)
    np.testing.assert_array_equal(after == 0, before == 0)
    assert ((after.reshape(2, 4, 4, -1) != 0).sum(2) == 2).all()
    assert np.abs(after - before)[before != 0].min() > 0
    held = load_params(tmp_path / "run", which="params")[0]["stack"]["blocks"]["mlp"]["up"]["kernel"]
    assert held["kept"].dtype == bool and np.abs(held["base"][~held["kept"]]).max() > 0
