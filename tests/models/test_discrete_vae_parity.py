"""DALL-E's encoder and decoder beside transformers' and PyTorch's (tests/oracles/make_discrete_vae_fixture.py)."""

import pathlib
import zlib

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import ConfigError
from fmjax.models.discrete_vae import DiscreteVAE
from fmjax.planning import counts, hlo

FIXTURE = pathlib.Path(__file__).parent / "discrete_vae.npz"
MODULE = DiscreteVAE(image_size=16, num_channels=3, num_codes=12, widths=(4, 8, 16, 32), code_size=5)


def weight(name, shape):
    """As the fixture's."""
    scale = 1.0 if len(shape) == 1 else 2 * float(np.prod(shape[:3])) ** -0.5
    return (scale * np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)).astype(np.float32)


def test_encoder_and_decoder_are_the_published_ones():
    files = np.load(FIXTURE)
    shapes = nn.unbox(jax.eval_shape(MODULE.init, jax.random.key(0), files["images"]))["params"]
    named = flax.traverse_util.flatten_dict(shapes, sep="/")
    params = {name: weight(name, leaf.shape) for name, leaf in named.items()}
    params = flax.traverse_util.unflatten_dict(params, sep="/")
    logits = MODULE.apply({"params": params}, files["images"], method="code_logits")
    np.testing.assert_allclose(logits, files["logits"], atol=1e-5 * np.abs(files["logits"]).max())
    np.testing.assert_array_equal(MODULE.apply({"params": params}, files["images"], method="codes"), logits.argmax(-1))
    found = jnp.concatenate(MODULE.apply({"params": params}, files["shares"], method="pixels"), axis=-1)
    np.testing.assert_allclose(found, files["out"], atol=1e-5 * np.abs(files["out"]).max())


def test_formula_is_the_compilers_count():
    module = MODULE.clone(num_codes=128, widths=(32, 64), image_size=8)
    params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3))))["params"]

    def loss(params, images):
        shares = jax.nn.softmax(module.apply({"params": params}, images, method="code_logits"))
        return sum(jnp.mean(x**2) for x in module.apply({"params": params}, shares, method="pixels"))

    compiled = jax.jit(jax.grad(loss)).lower(params, jnp.zeros((1, 8, 8, 3))).compile()
    found = counts.count(hlo.parse(compiled.as_text()), {}).flops
    assert found == pytest.approx(module.flops_per_example({}), rel=0.01)


@pytest.mark.parametrize("fields, message", [
    (dict(widths=(4, 6)), r"model.widths = \[4, 6\]: expected multiples of 4"),
    (dict(image_size=20), "4 levels: images of 20x20 pixels cannot be halved 3 times"),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        MODULE.clone(**fields)
