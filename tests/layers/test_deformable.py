"""Deformable sums and depthwise convolutions against loops over pixels."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import ConfigError
from fmjax.layers.conv import Conv
from fmjax.layers.deformable import DeformableConv
from fmjax.layers.deformed_sum import deformed_sum, gathered
from tests.quick_keys import quick_key


def drawn(longest, size=3, shape=(2, 4, 5, 2, 3), seed=0):
    """(x, offsets, weights, cotangent) with offsets of up to `longest` pixels."""
    rng = np.random.default_rng(seed)
    batch, height, width, groups, _ = shape
    inner = (batch, height, width, groups, size**2)
    weights = rng.uniform(size=inner) + 0.1
    arrays = (rng.normal(size=shape), rng.uniform(-longest, longest, (*inner, 2)), weights, rng.normal(size=shape))
    return tuple(jnp.asarray(array, jnp.float32) for array in arrays)


def by_loop(x, offsets, weights, size):
    """The definition, a pixel at a time, in float64."""
    x, offsets, weights = (np.asarray(array, np.float64) for array in (x, offsets, weights))
    batch, height, width, groups, _ = x.shape
    out = np.zeros(x.shape)
    for b, i, j, g in np.ndindex(batch, height, width, groups):
        for k in range(size**2):
            column = j + k // size - size // 2 + offsets[b, i, j, g, k, 0]
            row = i + k % size - size // 2 + offsets[b, i, j, g, k, 1]
            for r in (int(np.floor(row)), int(np.floor(row)) + 1):
                for c in (int(np.floor(column)), int(np.floor(column)) + 1):
                    if 0 <= r < height and 0 <= c < width:
                        near = (1 - abs(row - r)) * (1 - abs(column - c))
                        out[b, i, j, g] += weights[b, i, j, g, k] * near * x[b, r, c, g]
    return out


@pytest.mark.parametrize("longest, size, reach", [(2.0, 3, 2), (0.9, 3, 1), (3.5, 3, 2), (1.0, 1, 1), (1.0, 5, 1)])
def test_a_deformed_sum_is_the_loop_over_taps(longest, size, reach):
    """Within the reach, and beyond it, where pixels are gathered."""
    x, offsets, weights, _ = drawn(longest, size)
    expected = by_loop(x, offsets, weights, size)
    both = jax.jit(lambda *arrays: (deformed_sum(*arrays, size, reach), gathered(*arrays, size)))
    for found in both(x, offsets, weights):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("longest", [2.0, 3.5], ids=["within", "beyond"])
def test_gradients_are_finite_differences_of_the_loop(longest):
    arrays = drawn(longest, shape=(1, 3, 4, 2, 2))
    cotangent, rng = np.asarray(arrays[3], np.float64), np.random.default_rng(1)
    gradients = jax.jit(jax.grad(lambda *a: (deformed_sum(*a) * arrays[3]).sum(), (0, 1, 2)))(*arrays[:3])
    for place, gradient in enumerate(gradients):
        for _ in range(12):
            index = tuple(rng.integers(n) for n in gradient.shape)
            sides = []
            for step in (1e-6, -1e-6):
                moved = [np.array(array, np.float64) for array in arrays[:3]]
                moved[place][index] += step
                sides.append((by_loop(*moved, 3) * cotangent).sum())
            assert gradient[index] == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-4), (place, index)


def test_windows_and_gathers_have_one_gradient_and_one_tangent():
    *arrays, cotangent = drawn(1.9)
    tangents = tuple(np.random.default_rng(1).normal(size=array.shape).astype(np.float32) for array in arrays)

    def derivatives(reach):
        function = lambda *a: deformed_sum(*a, reach=reach)
        both = lambda a, t: (jax.vjp(function, *a)[1](cotangent), jax.jvp(function, a, t)[1])
        return jax.jit(both)(tuple(arrays), tangents)

    (first, moved), (second, as_well) = derivatives(2), derivatives(None)
    for a, b in zip(first, second):
        np.testing.assert_allclose(a, b, atol=2e-5)
    np.testing.assert_allclose(moved, as_well, atol=1e-4)


def test_without_offsets_it_is_a_depthwise_average():
    x, offsets, weights, _ = drawn(1.0)
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0), (0, 0)])
    mean = sum(padded[:, i : i + 4, j : j + 5] for i in range(3) for j in range(3)) / 9
    found = deformed_sum(x, jnp.zeros_like(offsets), jnp.full_like(weights, 1 / 9))
    np.testing.assert_allclose(found, mean, atol=1e-6)


@pytest.mark.parametrize("size", [3, 5])
def test_a_depthwise_convolution_is_xlas(size):
    """The layer takes the fast way, forward and backward, with what XLA computes."""
    x, cotangent = jax.random.normal(jax.random.key(0), (2, 2, 6, 7, 4))
    layer = Conv(4, size, groups=4)
    params = nn.unbox(jax.jit(layer.init)(quick_key(1), x))["params"] | {"bias": jnp.arange(4.0)}

    def by_xla(params, x):
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, params["kernel"], (1, 1), "SAME", None, None, layout, 4)
        return y + params["bias"]

    def both_ways(f):
        out, pull = jax.vjp(f, params, x)
        return out, pull(cotangent)

    by_layer = lambda params, x: layer.apply({"params": params}, x)
    ours, theirs = (jax.jit(both_ways, static_argnums=0)(f) for f in (by_layer, by_xla))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)
    assert "conv_general" not in str(jax.make_jaxpr(lambda x: layer.apply({"params": params}, x))(x))


def test_the_layer_by_its_definition():
    """Offsets and weights of the unprojected input, a group each; at the start an average over 3x3 pixels."""
    x, layer = jax.random.normal(jax.random.key(0), (1, 4, 4, 6)), DeformableConv(groups=2)
    params = nn.unbox(jax.jit(layer.init)(quick_key(1), x))["params"]
    value = x @ params["value"]["kernel"]
    padded = np.pad(value, [(0, 0), (1, 1), (1, 1), (0, 0)])
    mean = sum(padded[:, i : i + 4, j : j + 4] for i in range(3) for j in range(3)) / 9
    np.testing.assert_allclose(layer.apply({"params": params}, x), mean @ params["out"]["kernel"], atol=1e-5)
    drawn = iter(jax.random.split(jax.random.key(2), 20))
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(next(drawn), p.shape), params)
    local = Conv(6, groups=6).apply({"params": params["depthwise"]}, x)
    local = (local - local.mean(-1, keepdims=True)) / jnp.sqrt(local.var(-1, keepdims=True) + 1e-6)
    local = jax.nn.gelu(local * params["norm"]["scale"] + params["norm"]["bias"], approximate=False)
    of = lambda name, x: x @ params[name]["kernel"] + params[name]["bias"]
    taps = np.array([(column, row) for column in (-1, 0, 1) for row in (-1, 0, 1)])
    offsets = 1.5 * (taps + of("offset", local).reshape(1, 4, 4, 2, 9, 2)) - taps  # the square of taps is scaled too
    weights = jax.nn.softmax(of("weight", local).reshape(1, 4, 4, 2, 9))
    y = by_loop(of("value", x).reshape(1, 4, 4, 2, 3), offsets, weights, 3)
    scaled = DeformableConv(groups=2, offset_scale=1.5)
    np.testing.assert_allclose(scaled.apply({"params": params}, x), of("out", y.reshape(x.shape)), atol=1e-4)
    with pytest.raises(ConfigError, match="groups=4: 6 channels do not divide into that many groups"):
        DeformableConv(groups=4).init(quick_key(0), x)
