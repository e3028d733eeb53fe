"""Weights of few bits against bitsandbytes' and numpy."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import ConfigError
from fmjax.layers import codes, scales
from fmjax.layers.dense import dense
from fmjax.layers.quantized import Quantization
from fmjax.layers.weights import merged


@pytest.fixture(scope="module")
def oracle():
    with np.load(pathlib.Path(__file__).parents[1] / "oracles" / "nf4.npz") as stored:
        return dict(stored)


def test_levels_are_those_of_bitsandbytes(oracle):
    np.testing.assert_array_equal(np.float32(codes.NF4), oracle["nf4"])
    np.testing.assert_allclose(scales.eight_bit_levels(), oracle["levels"], rtol=1e-6, atol=0)


def test_four_bits_and_their_values_are_those_of_bitsandbytes(oracle):
    kernel = oracle["weight"].T
    plain = Quantization("nf4").quantize(jnp.asarray(kernel))
    theirs = oracle["plain_codes"].reshape(24, 512).T  # pairs along `in` there too
    np.testing.assert_array_equal(plain.codes, theirs)
    np.testing.assert_array_equal(plain.scales, oracle["plain_absmax"].reshape(24, 16).T)
    np.testing.assert_allclose(plain.value(), oracle["plain_value"].T, atol=1e-7)
    double = Quantization("nf4", double=True).quantize(jnp.asarray(kernel))
    np.testing.assert_array_equal(double.codes, theirs)
    np.testing.assert_array_equal(double.scales.codes, oracle["double_absmax"].reshape(24, 16).T)
    np.testing.assert_allclose(double.value(), oracle["double_value"].T, atol=1e-6)
    assert double.shape == (1024, 24)
    assert sum(x.nbytes for x in jax.tree.leaves(double)) == 1024 * 24 // 2 + 384 + 4 * 2 + 4


@pytest.mark.parametrize("format, top", [("int8", 127), ("int4", 7)])
def test_whole_numbers_against_numpy_and_a_stack_as_its_layers(format, top):
    kernel = np.random.default_rng(0).normal(size=(2, 64, 6)).astype(np.float32)
    kernel[0, :32, 1] = 0
    weight = Quantization(format, 32).quantize(jnp.asarray(kernel))
    cut = kernel.reshape(2, 2, 32, 6)
    scale = np.abs(cut).max(2, keepdims=True) / top
    expected = np.round(cut / np.where(scale > 0, scale, 1)) * scale
    np.testing.assert_allclose(weight.value(), expected.reshape(kernel.shape), atol=1e-6)
    assert np.max(np.abs(weight.value() - kernel)) <= np.max(scale) / 2 + 1e-6
    double = Quantization(format, 32, double=True)
    for whole, *rows in zip(*map(jax.tree.leaves, (double.quantize(kernel), *map(double.quantize, kernel)))):
        np.testing.assert_array_equal(whole, np.stack(rows))


@pytest.mark.parametrize("transpose", [False, True])
def test_a_product_and_its_gradient_are_those_of_the_values(transpose):
    rng = np.random.default_rng(0)
    weight = Quantization("nf4", 16, double=True).quantize(rng.normal(size=(32, 8)).astype(np.float32))
    x = rng.normal(size=(3, 8 if transpose else 32)).astype(np.float32)
    value = merged({"kernel": weight})["kernel"]
    value = value.T if transpose else value
    out, back = jax.vjp(lambda x: dense(x, weight, transpose=transpose), x)
    np.testing.assert_allclose(out, x @ value, atol=1e-5)
    np.testing.assert_allclose(back(out)[0], out @ value.T, atol=1e-4)
    assert dense(x, weight, dtype="bfloat16", transpose=transpose).dtype == jnp.bfloat16


def test_a_scan_over_layers_keeps_codes_for_the_gradient_and_no_kernels():
    weights = Quantization("nf4", 64).quantize(jnp.ones((8, 128, 128)))

    def loss(x):
        return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(dense(x, w)), None), x, weights)[0])

    compiled = jax.jit(jax.grad(loss)).lower(jnp.ones((2, 128))).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * weights.value().size


def test_what_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"\[96, 8\] cannot be cut into blocks of 64 .* divides 96"):
        Quantization("nf4").quantize(jnp.ones((96, 8)))
    with pytest.raises(ConfigError, match="block = 9 must be even"):
        Quantization("int4", 9)
