"""Products that read codes equal those with what the codes stand for, in value and derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax import native
from fmjax.cache_folder import cache_dir
from fmjax.layers import few_rows
from fmjax.layers.dense import dense
from fmjax.layers.quantized import Quantization


@pytest.fixture(scope="module", autouse=True)
def installed():
    if native.find_compiler() is None:
        pytest.skip("no C++ compiler")
    assert native.install(cache_dir() / "native")


# 1,100 outputs are several pieces of threads, and more than stay in the nearest cache.
@pytest.mark.parametrize(
    "quantization, rows, outputs, dtype",
    [
        (Quantization("int8", block=0), 1, 333, "float32"), (Quantization("int8", block=6), 8, 1100, "float32"),
        (Quantization("int4", block=6), 3, 1100, "float32"),
        (Quantization("nf4", block=12, double=True), 1, 1100, "bfloat16"),
        (Quantization("fp4", block=12, scales="power"), 7, 65, "float32"),
        (Quantization("uint4", block=12), 2, 16, "float32"),
    ],
    ids=lambda value: getattr(value, "format", None),
)  # fmt: skip
def test_products_equal_those_of_floats(quantization, rows, outputs, dtype):
    draw = np.random.default_rng(rows)
    kernel, x = (jnp.asarray(draw.normal(size=size), jnp.float32) for size in ((36, outputs), (1, rows, 36)))
    weight, x = quantization.quantize(kernel), x.astype(dtype)
    assert few_rows.reads_codes(x, weight, False)
    product = lambda x: dense(x, weight, out_dtype="float32")
    assert native.TARGET in jax.jit(product).lower(x).as_text()
    (y, dy), back = jax.jit(lambda x: (jax.jvp(product, (x,), (x,)), jax.grad(lambda x: product(x).sum())(x)))(x)
    exact = np.asarray(weight.value(), np.float64)
    expected = np.asarray(x, np.float64) @ exact
    size = np.abs(expected).max()
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * size)
    near = 1e-5 if dtype == "float32" else 2e-2  # elsewhere the weight is rounded too
    np.testing.assert_allclose(dy, expected, rtol=0, atol=near * size)
    np.testing.assert_allclose(
        np.asarray(back, np.float64), np.broadcast_to(exact.sum(axis=1), x.shape), rtol=0, atol=near * size * 10
    )


def test_stacked_weights_and_examples_beside_each_other():
    draw = np.random.default_rng(0)
    kernels = jnp.asarray(draw.normal(size=(3, 12, 12)), jnp.float32)
    weights = Quantization("int4", block=4).quantize(kernels)
    x = jnp.asarray(draw.normal(size=(5, 1, 12)), jnp.float32)
    through = lambda x: jax.lax.scan(lambda x, weight: (dense(x, weight), None), x, weights)[0]
    expected = np.asarray(x)
    for kernel in np.asarray(weights.value()):
        expected = expected @ kernel
    np.testing.assert_allclose(jax.jit(jax.vmap(through))(x), expected, rtol=1e-4, atol=1e-4)


def test_what_is_not_read_as_codes():
    weight = Quantization("int4", block=2).quantize(jnp.ones((4, 64)))
    assert not few_rows.reads_codes(jnp.ones((few_rows.MOST_ROWS + 1, 4)), weight, False)
    assert not few_rows.reads_codes(jnp.ones((1, 64)), weight, True)
    stacked = jax.tree.map(lambda x: x[None], weight)
    assert not few_rows.reads_codes(jnp.ones((1, 4)), stacked, False)
