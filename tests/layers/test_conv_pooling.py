"""Convolutions and pooling against loops over windows, and batch normalisation against its formula."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import ConfigError
from fmjax.layers.batch_norm import BatchNorm
from fmjax.layers.conv import Conv, conv_flops
from fmjax.layers.pooling import average_pool, global_pool, max_pool
from tests.quick_keys import quick_key

X = np.random.default_rng(0).normal(size=(2, 7, 7, 6)).astype(np.float32)


def windows(x, size, stride, padding, fill):
    """(row, column, window [B, size, size, C]) of every place."""
    x = np.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)], constant_values=fill)
    places = range((x.shape[1] - size) // stride + 1)
    return [(i, j, x[:, i * stride :, j * stride :][:, :size, :size]) for i in places for j in places]


def over_windows(function, size, stride, padding, fill=0.0):
    found = [(i, j, function(window)) for i, j, window in windows(X, size, stride, padding, fill)]
    side = found[-1][0] + 1
    return np.stack([one for *_, one in found], 1).reshape(len(X), side, side, -1)


@pytest.mark.parametrize("groups, stride, padding", [(1, 2, 1), (2, 1, 0), (6, 3, 2)])
def test_a_convolution_is_the_sum_over_its_windows_and_group(groups, stride, padding):
    conv = Conv(12, 3, stride, use_bias=False, groups=groups, padding=padding)
    kernel = np.random.default_rng(1).normal(size=(3, 3, 6 // groups, 12)).astype(np.float32)
    inputs = np.arange(6).reshape(groups, -1).repeat(12 // groups, axis=0)  # of each output

    def one(window):
        return np.stack([(window[..., inputs[o]] * kernel[..., o]).sum((1, 2, 3)) for o in range(12)], -1)

    assert set(nn.unbox(conv.init(quick_key(0), X))["params"]) == {"kernel"}
    found = conv.apply({"params": {"kernel": kernel}}, X)
    np.testing.assert_allclose(found, over_windows(one, 3, stride, padding), atol=1e-4)


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="groups=4: 6 channels to 8 do not divide"):
        Conv(8, groups=4).init(quick_key(0), X)
    with pytest.raises(ConfigError, match="a transposed convolution has one group here"):
        Conv(6, groups=2, transpose=True).init(quick_key(0), X)


@pytest.mark.parametrize("size, stride, padding", [(3, 2, 1), (2, 2, 0)])
def test_pooling_is_over_windows(size, stride, padding):
    largest = over_windows(lambda w: w.max((1, 2)), size, stride, padding, -np.inf)
    np.testing.assert_array_equal(max_pool(X, size, stride, padding), largest)
    means = over_windows(lambda w: np.nanmean(w, (1, 2)), size, stride, padding, np.nan)
    np.testing.assert_allclose(average_pool(X, size, stride, padding), means, atol=1e-6)
    counted = over_windows(lambda w: w.mean((1, 2)), size, stride, padding)
    np.testing.assert_allclose(average_pool(X, size, stride, padding, count_padding=True), counted, atol=1e-6)
    gradient = jax.grad(lambda x: (max_pool(x, size, stride, padding) * largest).sum())(jnp.asarray(X))
    assert np.isclose(gradient.sum(), largest.sum(), rtol=1e-4)  # each goes to the pixel that was the largest
    np.testing.assert_allclose(global_pool(X), X.mean((1, 2)), atol=1e-6)


def test_batch_norm_by_its_formula():
    layer = BatchNorm(epsilon=1e-3, decay=0.7)
    variables = nn.unbox(layer.init(quick_key(0), X))
    params = {"scale": jnp.arange(1.0, 7.0), "bias": jnp.arange(6.0)}
    mean, var, n = X.mean((0, 1, 2)), X.var((0, 1, 2)), X.size // 6
    out, state = layer.apply(variables | {"params": params}, X, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(out, (X - mean) / np.sqrt(var + 1e-3) * params["scale"] + params["bias"], atol=1e-5)
    running = state["batch_stats"]
    np.testing.assert_allclose(running["mean"], 0.3 * mean, atol=1e-6)
    np.testing.assert_allclose(running["var"], 0.7 + 0.3 * var * n / (n - 1), rtol=1e-6)
    out = layer.apply({"params": params, **state}, X)
    expected = (X - running["mean"]) / np.sqrt(running["var"] + 1e-3) * params["scale"] + params["bias"]
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert layer.apply({"params": params, **state}, X.astype(jnp.bfloat16), train=True).dtype == jnp.bfloat16


def test_flops_leave_out_what_pads():
    """Of 8 pixels at stride 2 with one on each side, 4 places: their windows have 2, 3, 3 and 3 pixels inside."""
    assert conv_flops(1, 1, 4, 8, padding=0) == 6 * 4 * 8
    assert conv_flops(4, 3, 1, 1, 2, padding=1) == 6 * (2 + 3 + 3 + 3) ** 2
    assert conv_flops(4, 3, 1, 1, 2, padding=1, first=True) == 4 * 11**2
