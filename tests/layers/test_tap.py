"""Taps: reading, replacing and saving activations; and that they cost nothing when unused."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from fmjax.errors import ConfigError
from fmjax.layers import mlp, transformer
from fmjax.layers.transformer_config import BLOCK_TAPS
from fmjax.models import gpt, llama
from fmjax.models.gpt import GPT
from fmjax.models.llama import Llama
from tests.quick_keys import quick_key

SIZES = dict(num_layers=3, hidden_size=16, intermediate_size=24, num_heads=2, vocab_size=20, max_length=8)
TOKENS = jnp.arange(10).reshape(2, 5)


@pytest.fixture(scope="module")
def model():
    module = Llama(**SIZES)
    params = nn.unbox(jax.jit(module.init)(quick_key(0), TOKENS))["params"]
    return module, jax.tree.map(lambda x: x * 5, params)


def run(module, params, edits=None, **kwargs):
    variables = {"params": params} | ({} if edits is None else {"edits": {"stack": {"blocks": edits}}})
    return jax.jit(lambda v: module.apply(v, TOKENS, **kwargs))(variables)


def test_reads_have_a_layer_axis_and_the_names_remat_knows(model):
    module, params = model
    logits, state = run(module, params, mutable=["reads"])
    np.testing.assert_allclose(logits, run(module, params), atol=1e-5)
    blocks = state["reads"]["stack"]["blocks"]
    assert blocks["residual"].shape == (3, 2, 5, 16)
    assert blocks["attention"]["q"].shape == (3, 2, 5, 2, 8)
    assert {path[-1] for path in traverse_util.flatten_dict(blocks)} == set(BLOCK_TAPS)
    # The last residual, normalised, is what the head reads.
    scale = params["stack"]["final_norm"]["scale"]
    last = blocks["residual"][-1]
    last = last / np.sqrt(np.mean(last**2, -1, keepdims=True) + 1e-5) * scale
    np.testing.assert_allclose(last @ params["head"], logits, atol=1e-4)


def test_init_returns_parameters_only(model):
    module, _ = model
    assert set(jax.eval_shape(module.init, jax.random.key(0), TOKENS)) == {"params"}


def test_an_edit_replaces_one_layer_and_position(model):
    """Patching the residual stream of row 0 into row 1 after the last layer gives row 0's logits there."""
    module, params = model
    logits, state = run(module, params, mutable=["reads"])
    residual = state["reads"]["stack"]["blocks"]["residual"]
    mask = np.zeros((3, 2, 5, 1), bool)
    mask[2, 1, 3] = True
    patched = run(module, params, {"residual": {"value": residual[:, ::-1], "mask": jnp.asarray(mask)}})
    np.testing.assert_allclose(patched[1, 3], logits[0, 3], atol=1e-5)
    mask[2, 1, 3] = False
    np.testing.assert_allclose(np.delete(patched[1], 3, 0), np.delete(logits[1], 3, 0), atol=1e-5)
    np.testing.assert_allclose(patched[0], logits[0], atol=1e-5)
    # A read after an edit sees the edit.
    edits = {"mlp": {"mlp_hidden": {"add": jnp.ones((3, 1, 1, 24))}}}
    _, after = run(module, params, edits, mutable=["reads"])
    before = state["reads"]["stack"]["blocks"]["mlp"]["mlp_hidden"]
    np.testing.assert_allclose(after["reads"]["stack"]["blocks"]["mlp"]["mlp_hidden"][0], before[0] + 1, atol=1e-5)


def test_gradient_to_an_edit_is_that_of_a_finite_difference(model):
    module, params = model

    def loss(amount):
        edits = {"attention_out": {"add": amount * jnp.ones((3, 1, 1, 16)) * jnp.array([0, 1, 0])[:, None, None, None]}}
        return jnp.mean(run(module, params, edits) ** 2)

    slope = (loss(0.01) - loss(-0.01)) / 0.02
    np.testing.assert_allclose(jax.grad(loss)(0.0), slope, rtol=1e-2)


def test_a_misspelt_or_malformed_edit_is_refused(model):
    module, params = model
    with pytest.raises(ConfigError, match="did you mean 'stack/blocks/residual'"):
        run(module, params, {"residuall": {"add": jnp.ones((3, 1, 1, 16))}})
    with pytest.raises(ConfigError, match="'value' and 'mask' together"):
        run(module, params, {"residual": {"value": jnp.ones((3, 1, 1, 16))}})
    with pytest.raises(ConfigError, match="shape"):
        run(module, params, {"residual": {"add": jnp.ones((3, 7, 1, 1, 16))}})


@pytest.mark.parametrize("family, remat", [(GPT, "none"), (Llama, "none"), (Llama, "full")])
def test_unused_taps_leave_the_compiled_program_as_it_is(family, remat, monkeypatch):
    module = family(**SIZES, remat=remat)
    params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), TOKENS))["params"]

    def program():
        def loss(p):
            return jnp.mean(module.apply({"params": p}, TOKENS) ** 2)

        text = jax.jit(jax.grad(loss)).lower(params).as_text()
        # Names of private functions carry counters.
        return re.sub(r"@\w+", "@f", text)

    tapped = program()
    for owner in (transformer, mlp, gpt, llama):
        monkeypatch.setattr(owner, "tap", lambda module, name, x: x)
    assert tapped == program()


def test_saving_by_name_saves_those_and_recomputes_the_rest(model):
    module, params = model

    def saved_shapes(remat):
        module_ = module.clone(remat=remat)
        _, pull = jax.vjp(lambda p: module_.apply({"params": p}, TOKENS), params)
        return [x.shape for x in jax.tree.leaves(pull) if x.shape[:3] == (3, 2, 5)]

    hidden = (3, 2, 5, 24)
    assert saved_shapes("none").count(hidden) >= 3
    assert saved_shapes("save_named:mlp_hidden").count(hidden) == 1
    assert saved_shapes("full").count(hidden) == 0
