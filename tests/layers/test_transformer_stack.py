"""Stacks whose layers are of several kinds: scanned over periods of the pattern, they are the layers one by one."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.layers.position import Rope
from fmjax.layers.transformer import Transformer, unstack_layers
from fmjax.layers.transformer_config import LayerKind, TransformerConfig
from tests.quick_keys import quick_key

WIDTH, BATCH, LENGTH = 8, 2, 6
CONFIG = TransformerConfig(
    num_layers=5, hidden_size=WIDTH, intermediate_size=12, num_heads=2, num_kv_heads=1, head_dim=4,
    pattern=(LayerKind(2, Rope(100.0)), LayerKind(None, None)), cross_attention=True,
)  # fmt: skip
X, MEMORY = jnp.asarray(np.random.default_rng(0).normal(size=(2, BATCH, LENGTH, WIDTH)), jnp.float32)


def made(num_layers, **fields):
    config = dataclasses.replace(CONFIG, num_layers=num_layers, **fields)
    module = Transformer(config)
    params = nn.unbox(jax.jit(module.init)(quick_key(0), X, memory=(MEMORY, None)))["params"]
    return module, jax.tree.map(lambda x: 5 * x, params)


def plus(leaf, name="residual"):
    return {name: {"add": leaf}}


@pytest.mark.parametrize("num_layers, remat", [(5, "save_named:q,mlp_hidden"), (3, "full")])
def test_a_scan_over_periods_is_the_layers_one_by_one(num_layers, remat):
    """Outputs, gradients, reads and the effect of edits; with layers left over, and with one period alone."""
    module, params = made(num_layers, remat=remat)
    plain = Transformer(dataclasses.replace(module.config, scan_layers=False, remat="none"))
    offsets = jax.random.normal(jax.random.key(3), (num_layers, 1, 1, WIDTH))

    def outputs(module, tree):
        variables = {"params": tree["params"], "edits": tree["edits"]}
        (y, _), state = module.apply(variables, X, memory=(MEMORY, None), mutable=["reads"])
        return jnp.mean(y**2), (y, state["reads"])

    run = jax.jit(jax.value_and_grad(outputs, argnums=1, has_aux=True), static_argnums=0)
    stacked = {"params": params, "edits": {"blocks": plus(offsets)}}
    (_, (y, reads)), gradient = run(module, stacked)
    (_, (expected, expected_reads)), expected_gradient = run(plain, unstack_layers(stacked))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
    close(y, expected)
    assert reads["blocks"]["attention"]["q"].shape == (num_layers, BATCH, LENGTH, 2, 4)
    jax.tree.map(close, unstack_layers(reads), dict(expected_reads))
    jax.tree.map(close, unstack_layers(gradient), expected_gradient)


def test_parameters_do_not_depend_on_the_kinds():
    """They are made and kept as those of layers of one kind: the same names, shapes and values."""
    _, mixed = made(5)
    _, alike = made(5, pattern=(LayerKind(),))
    assert mixed["blocks"]["mlp"]["up"]["kernel"].shape == (5, WIDTH, 12)
    jax.tree.map(np.testing.assert_array_equal, mixed, alike)


def test_each_layer_drops_out_by_a_key_of_its_own():
    """Where each half adds ones, dropped out at a half, a layer adds 0, 2, 4 or 6 to an element, and no two alike."""
    module, params = made(5, dropout=0.5)
    always = {"value": jnp.ones((5, 1, 1, 1)), "mask": jnp.ones((5, 1, 1, 1), bool)}
    edits = {"blocks": {f"{half}_out": always for half in ("attention", "cross", "mlp")}}
    inputs = dict(memory=(MEMORY, None), train=True, rngs={"dropout": jax.random.key(1)}, mutable=["reads"])
    _, state = jax.jit(lambda: module.apply({"params": params, "edits": edits}, X, **inputs))()
    residual = np.asarray(state["reads"]["blocks"]["residual"])
    added = np.diff(np.concatenate([X[None], residual]), axis=0).round(3)
    assert set(added.ravel().tolist()) == {0.0, 2.0, 4.0, 6.0}
    assert len({layer.tobytes() for layer in added + 0.0}) == 5


@pytest.mark.parametrize(
    "num_layers, kinds, period",
    [(6, "a", 1), (6, "aa", 1), (6, "ab", 2), (5, "ababa", 2), (6, "aab", 3), (2, "aab", 1)],
)
def test_the_period_is_the_shortest(num_layers, kinds, period):
    pattern = tuple(LayerKind({"a": 2, "b": None}[kind]) for kind in kinds)
    assert dataclasses.replace(CONFIG, num_layers=num_layers, pattern=pattern).period == period
