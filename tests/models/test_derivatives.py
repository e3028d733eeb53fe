"""Derivatives of both modes through whole models, and of each mode through the other."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.layers.transformer import Transformer
from fmjax.layers.transformer_config import TransformerConfig
from fmjax.models.bert import Bert
from fmjax.models.dit import DiT
from fmjax.models.gpt import GPT
from fmjax.objectives.causal_lm import CausalLM
from tests.quick_keys import quick_key

SIZES = dict(num_layers=2, hidden_size=16, num_heads=2)
TOKENS = jax.random.randint(jax.random.key(1), (2, 9), 0, 20)
IMAGES = jax.random.normal(jax.random.key(2), (2, 4, 4, 1))
TEXT = SIZES | dict(intermediate_size=32, vocab_size=20, max_length=16)
MODELS = {
    "gpt": (GPT(**TEXT), (TOKENS,)),
    "gpt, rematerialised and local": (
        GPT(**TEXT, remat="dots", window=3, layer_pattern=("global", "local")),
        (TOKENS,),
    ),
    "bert": (Bert(**TEXT), (TOKENS,)),
    "dit": (DiT(**SIZES, image_size=4, num_channels=1, num_classes=0), (IMAGES, jnp.array([0.2, 0.7]))),
}


@functools.cache
def made(name):
    module, inputs = MODELS[name]
    params = nn.unbox(jax.jit(module.init)(quick_key(0), *inputs))["params"]
    return module, like(params, 3, params), inputs


def like(tree, seed, plus=None):
    """Random numbers of a tree's shapes, on top of those of another."""
    drawn = np.random.default_rng(seed)
    found = jax.tree.map(lambda x: (0.2 * drawn.normal(size=x.shape)).astype(np.float32), tree)
    return found if plus is None else jax.tree.map(np.add, found, plus)


@pytest.mark.parametrize("attention", ["reference", "cpu"])
@pytest.mark.parametrize("name", MODELS)
def test_a_models_tangent_is_its_change(name, attention):
    module, params, inputs = made(name)
    module = module.clone(attention=attention)
    along = like(params, 4)
    run = lambda params: module.apply({"params": params}, *inputs)
    tangent = jax.jit(lambda params: jax.jvp(run, (params,), (along,))[1])(params)
    at = jax.jit(run)
    moved = lambda by: np.asarray(at(jax.tree.map(lambda x, t: x + np.float32(by) * t, params, along)), np.float64)
    np.testing.assert_allclose(tangent, (moved(5e-3) - moved(-5e-3)) / 1e-2, atol=5e-3 * abs(tangent).max())


def test_the_gradient_of_a_flows_derivative_along_its_path_is_the_same_either_way():
    """d/d params of |dv/dt + dv/dx v|^2, as flow maps have it: the total derivative by a jvp, and by a vjp of a vjp."""
    module, params, (x, times) = made("dit")
    module = module.clone(attention="cpu")

    def forward(velocity, x, times):
        return jax.jvp(velocity, (x, times), (velocity(x, times), jnp.ones_like(times)))[1]

    def twice_backward(velocity, x, times):
        out, pull = jax.vjp(velocity, x, times)
        return jax.vjp(pull, jnp.zeros_like(out))[1]((out, jnp.ones_like(times)))[0]

    def gradient(total):
        velocity = lambda params: lambda x, times: module.apply({"params": params}, x, times)
        return jax.jit(jax.grad(lambda params: jnp.sum(total(velocity(params), x, times) ** 2)))(params)

    found, expected = gradient(forward), gradient(twice_backward)
    scale = max(float(abs(x).max()) for x in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * scale), found, expected)


def test_a_loss_has_the_tangent_that_its_gradient_says():
    module, params, (tokens,) = made("gpt")
    along, weights = like(params, 4), jnp.ones(tokens.shape)
    batch = {"tokens": tokens, "targets": tokens[:, ::-1], "loss_weights": weights.at[:, 0].set(0.5)}
    loss = lambda params: CausalLM(chunk_size=4)(module.apply, params, batch, None, train=True)["loss"][0]
    tangent, gradient = jax.jit(lambda p: (jax.jvp(loss, (p,), (along,))[1], jax.grad(loss)(p)))(params)
    expected = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(along)))
    np.testing.assert_allclose(tangent, expected, rtol=1e-4)


def test_remat_dots_saves_the_products_with_weights():
    def saved(remat):
        """Numbers a layer that the backward pass is left with."""
        c = TransformerConfig(
            **SIZES, intermediate_size=64, num_kv_heads=2, head_dim=8, remat=remat, attention="reference"
        )
        module, x = Transformer(c), jnp.zeros((1, 8, 16))
        params = module.init(quick_key(0), x)
        pull = jax.eval_shape(lambda x: jax.vjp(lambda x: module.apply(params, x)[0], x)[1], x)
        return sum(leaf.size for leaf in jax.tree.leaves(pull) if leaf.shape[:2] == (2, 1)) // 2

    inputs, products = 8 * 16, 8 * (4 * 16 + 2 * 64 + 16)
    assert saved("full") == inputs
    assert inputs < saved("dots") <= inputs + products
