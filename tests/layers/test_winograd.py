"""Convolutions by Winograd's minimal filtering against XLA's own, and when they are taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmjax.layers import winograd
from fmjax.layers.conv import Conv
from fmjax.layers.norm import group_norm


def direct(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def arrays(*shapes):
    draw = np.random.default_rng(0)
    return [draw.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("height, width", [(8, 4), (9, 14)])
def test_it_is_xlas_with_derivatives_of_both_modes(height, width):
    """Of any sides, which tiles of 4x4 cover or stick out of."""
    x, dx, kernel, d_kernel, dy = arrays(
        *[(2, height, width, 12)] * 2, *[(3, 3, 12, 8)] * 2, (2, height, width, 8)
    )  # fmt: skip

    def all_of(conv):
        y, pull = jax.vjp(conv, x, kernel)
        # The gradient of a gradient, as a penalty on gradients takes it.
        slope = lambda x: jnp.square(jax.grad(lambda x: jnp.square(conv(x, kernel)).sum())(x)).sum() * 1e-4
        return y, *pull(dy), jax.jvp(conv, (x, kernel), (dx, d_kernel))[1], jax.grad(slope)(x)

    for found, expected in zip(*(jax.jit(lambda: all_of(conv))() for conv in (winograd.conv3x3, direct))):
        np.testing.assert_allclose(found / expected.std(), expected / expected.std(), atol=1e-5)


def test_it_is_as_exact_as_a_sum_over_windows():
    """Within four times the error of XLA's in float32, of many channels; the usual points have five times it."""
    x, kernel = arrays((4, 8, 8, 256), (3, 3, 256, 4))
    windows = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]).astype(np.float64)
    exact = sum(windows[:, i : i + 8, j : j + 8] @ kernel[i, j].astype(np.float64) for i in range(3) for j in range(3))
    error = lambda y: np.sqrt(np.mean(np.square(y - exact))) / exact.std()
    assert error(winograd.conv3x3(x, kernel)) < 4 * max(error(direct(x, kernel)), 3e-7)


def test_where_it_is_taken(monkeypatch):
    """On CPUs, in float32, of enough tiles and channels; nothing else of a convolution changes."""
    shape = lambda *sides, dtype="float32": jax.ShapeDtypeStruct(sides, dtype)
    large = shape(1, 16, 16, 128), shape(3, 3, 128, 128)
    assert winograd.is_worthwhile(*large)
    for x, kernel in (
        (shape(8, 4, 4, 512), shape(3, 3, 512, 512)),  # a tile
        (shape(8, 32, 32, 3), shape(3, 3, 3, 512)),
        (shape(64, 8, 8, 64), shape(3, 3, 64, 64)),  # too little, however many images there are
        (large[0], shape(5, 5, 128, 128)),
        [shape(*one.shape, dtype="bfloat16") for one in large],
    ):
        assert not winograd.is_worthwhile(x, kernel)
    monkeypatch.setattr(winograd, "target_platform", lambda: "gpu")
    assert not winograd.is_worthwhile(*large)


@pytest.mark.parametrize("norm", [False, True])
def test_split_over_devices_and_mapped_it_is_the_same(norm):
    """With its gradients: a convolution and a group norm of a batch in parts, and of each image by itself."""
    x, kernel, dy, scale, bias = arrays((4, 8, 6, 8), (3, 3, 8, 8), (4, 8, 6, 8), (8,), (8,))
    layer = lambda x: group_norm(x, scale, bias, 2, 1e-5) if norm else winograd.conv3x3(x, kernel)
    both = lambda x, dy: (lambda y, pull: (y, *pull(dy)))(*jax.vjp(layer, x))
    expected = jax.jit(both)(x, dy)
    rows = NamedSharding(Mesh(np.array(jax.devices()[:2]), "data"), PartitionSpec("data"))
    split = jax.jit(both, in_shardings=rows)(x, dy)
    one = lambda x, dy: [out[0] for out in both(x[None], dy[None])]
    for found in (split, jax.jit(jax.vmap(one))(x, dy)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), tuple(found), expected)


def test_a_convolution_that_it_computes():
    (x,), conv = arrays((8, 8, 8, 128)), Conv(256, padding=1)
    program = lambda params, x: conv.apply({"params": params}, x)
    params = dict(zip(("kernel", "bias"), arrays((3, 3, 128, 256), (256,))))
    assert "conv_general_dilated" not in str(jax.make_jaxpr(program)(params, x))
    expected = direct(x, params["kernel"]) + params["bias"]
    np.testing.assert_allclose(program(params, x), expected, atol=2e-5 * expected.std())
