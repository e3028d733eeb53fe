"""The small layers against numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from fmjax.errors import ConfigError
from fmjax.layers.attention import cpu
from fmjax.layers.dense import dense
from fmjax.layers.embed import Embedding
from fmjax.layers.norm import group_norm, layer_norm, rms_norm
from fmjax.layers.patchify import patchify, unpatchify
from fmjax.layers.position import Rope, apply_rope, positions_from_segments
from fmjax.layers.weights import LoRAWeight, Turned, merged


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("sizes", [(6, 4), (4, 6)])
def test_dense_and_its_gradients(sizes, transpose):
    rng = np.random.default_rng(0)
    fan_in, fan_out = sizes
    x, g = rng.normal(size=(2, 3, fan_in)), rng.normal(size=(2, 3, fan_out))
    w, b = rng.normal(size=(fan_out, fan_in) if transpose else sizes), rng.normal(size=fan_out)
    matrix = w.T if transpose else w

    def loss(x, w, b):
        return jnp.sum(dense(x, w, b, transpose=transpose) * g)

    args = [jnp.asarray(a, jnp.float32) for a in (x, w, b)]
    np.testing.assert_allclose(loss(*args), np.sum((x @ matrix + b) * g), rtol=1e-5)
    d_x, d_w, d_b = jax.grad(loss, argnums=(0, 1, 2))(*args)
    np.testing.assert_allclose(d_x, g @ matrix.T, atol=1e-5)
    d_matrix = np.einsum("abi,abj->ij", x, g)
    np.testing.assert_allclose(d_w, d_matrix.T if transpose else d_matrix, atol=1e-5)
    np.testing.assert_allclose(d_b, g.sum((0, 1)), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 4), (0, 2), (16, 5)])
def test_dense_with_a_kernel_that_lies_the_other_way(shape):
    rng = np.random.default_rng(0)
    x, w, b = rng.normal(size=(*shape, 6)), rng.normal(size=(6, 4)), rng.normal(size=4)
    args = [jnp.asarray(a, jnp.float32) for a in (x, w.T, b)]
    out = jax.jit(lambda x, w, b: dense(x, Turned(w), b))(*args)
    np.testing.assert_allclose(out, x @ w + b, atol=1e-5)
    np.testing.assert_array_equal(merged({"kernel": Turned(args[1])})["kernel"], args[1].T)


def test_dense_in_bfloat16_keeps_float32_gradients_for_float32_weights():
    x, w = jnp.ones((4096, 3)), jnp.full((3, 2), 0.1)
    out = dense(x, w, dtype="bfloat16")
    assert out.dtype == jnp.bfloat16
    grad = jax.grad(lambda w: jnp.sum(dense(x, w, dtype="bfloat16").astype(jnp.float32) * 0.01))(w)
    assert grad.dtype == jnp.float32
    np.testing.assert_allclose(grad, 40.96, rtol=5e-3)  # summed in bfloat16 it would stop growing long before
    assert dense(x, w, dtype="bfloat16", out_dtype=jnp.float32).dtype == jnp.float32


def random_arrays(*shapes):
    return [
        jax.random.normal(key, shape) for key, shape in zip(jax.random.split(jax.random.key(0), len(shapes)), shapes)
    ]


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 0.05)])
@pytest.mark.parametrize("transpose", [False, True])
def test_the_tangent_of_dense_is_that_of_a_product(dtype, tolerance, transpose):
    x, w, d_x, d_w = random_arrays((2, 3, 6), (6, 4), (2, 3, 6), (6, 4))
    turn = (lambda w: w.T) if transpose else (lambda w: w)
    function = lambda x, w: dense(x, w, dtype=dtype, transpose=transpose, out_dtype="float32")
    found = jax.jvp(function, (x, turn(w)), (d_x, turn(d_w)))[1]
    linear = jax.linearize(function, x, turn(w))[1](d_x, turn(d_w))
    np.testing.assert_allclose(found, d_x @ w + x @ d_w, atol=tolerance)
    np.testing.assert_allclose(linear, found, atol=tolerance)


def test_the_tangent_of_dense_through_other_weights():
    x, base, a, b, d_x, d_base, d_a, d_b = random_arrays((3, 6), (6, 4), (6, 2), (2, 4), (3, 6), (6, 4), (6, 2), (2, 4))
    low = LoRAWeight(base, a, b, 0.5), LoRAWeight(d_base, d_a, d_b, 0.5)
    found = jax.jvp(dense, (x, low[0]), (d_x, low[1]))[1]
    matrix, change = base + 0.5 * a @ b, d_base + 0.5 * (d_a @ b + a @ d_b)
    np.testing.assert_allclose(found, d_x @ matrix + x @ change, atol=1e-5)
    for rows in (1, 2, 3):
        turned = jax.jvp(dense, (x[:rows], Turned(base.T)), (d_x[:rows], Turned(d_base.T)))[1]
        np.testing.assert_allclose(turned, (d_x @ base + x @ d_base)[:rows], atol=1e-5)


def test_derivatives_of_dense_of_second_order_and_under_vmap():
    x, w, d_x, d_w = random_arrays((5, 6), (6, 4), (5, 6), (6, 4))
    ours = lambda x, w: jnp.sum(jnp.sin(dense(x, w)))
    plain = lambda x, w: jnp.sum(jnp.sin(x @ w))
    both = lambda make: [jax.jit(make(f))(x, w) for f in (ours, plain)]
    orders = {
        "forward over reverse": lambda f: jax.jacfwd(jax.grad(f, 1), 1),
        "reverse over reverse": lambda f: jax.jacrev(jax.grad(f, 1), 0),
        "reverse over forward": lambda f: jax.grad(lambda x, w: jax.jvp(f, (x, w), (d_x, d_w))[1], (0, 1)),
        "gradients of each row": lambda f: jax.vmap(jax.grad(f, 1), (0, None)),
        "of each kernel": lambda f: lambda x, w: jax.vmap(jax.grad(f, (0, 1)), (None, 0))(x, jnp.stack([w, 2 * w])),
        "of each row of each kernel": lambda f: lambda x, w: jax.vmap(
            jax.vmap(jax.grad(f, (0, 1)), (0, None)), (None, 2)
        )(x, jnp.stack([w, 2 * w], 2)),
    }
    for name, make in orders.items():
        close = functools.partial(np.testing.assert_allclose, atol=1e-5, err_msg=name)
        jax.tree.map(close, *both(make))


def test_gradients_in_bfloat16_are_summed_in_float32_through_a_tangent_too():
    """The sum of 4,096 rows of 0.01 would stop growing in bfloat16; rounded to it once it would be 41."""
    x, w = jnp.ones((4096, 3)), jnp.full((3, 2), 0.1)

    def loss(x, w):
        return jnp.sum(dense(x, w, dtype="bfloat16").astype(jnp.float32) * 0.0100097656)  # of bfloat16

    exact = 4096 * 0.0100097656
    np.testing.assert_allclose(jax.grad(loss, 1)(x, w), exact, rtol=1e-6)
    through = jax.grad(lambda w: jax.jvp(lambda x: loss(x, w), (x,), (x,))[1])(w)
    primal = jax.grad(lambda w: jax.jvp(lambda x: loss(x, w), (x,), (x,))[0])(w)
    np.testing.assert_allclose([through, primal], exact, rtol=1e-6)


def test_an_embedding_gives_rows_in_its_dtype_and_sums_their_gradients_in_the_tables():
    table, along = random_arrays((5, 3), (5, 3))
    index = jnp.zeros((4096,), jnp.int32).at[0].set(4)
    for dtype, tolerance in (("float32", 1e-6), ("bfloat16", 1e-2)):
        module = Embedding(5, 3, dtype=dtype)
        look_up = lambda table, index=index, module=module: module.apply({"params": {"embedding": table}}, index)
        rows, tangent = jax.jvp(look_up, (table,), (along,))
        assert rows.dtype == tangent.dtype == dtype
        np.testing.assert_allclose(rows[:2].astype(jnp.float32), table[jnp.array([4, 0])], atol=tolerance)
        np.testing.assert_allclose(tangent[:2].astype(jnp.float32), along[jnp.array([4, 0])], atol=tolerance)
        grad = jax.grad(lambda table: jnp.sum(look_up(table).astype(jnp.float32)) * 0.5)(table)
        np.testing.assert_array_equal(grad[:, 0], [2047.5, 0, 0, 0, 0.5])
        outside = look_up(table, jnp.array([-1, 5, 0]))
        assert jnp.isnan(outside).all(-1).tolist() == [True, True, False]
        grad = jax.grad(lambda table: jnp.sum(jnp.nan_to_num(look_up(table, jnp.array([-1, 5])))))(table)
        np.testing.assert_array_equal(grad, 0)


def test_norms_and_their_gradients():
    rng = np.random.default_rng(1)
    x, scale, bias = rng.normal(1, 2, (2, 3, 8)), rng.normal(size=8), rng.normal(size=8)

    def layer(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3) * scale + bias

    def rms(x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * scale

    args = [jnp.asarray(a, jnp.float32) for a in (scale, bias)]
    mine = {
        layer: lambda x: layer_norm(x, *args, 1e-3),
        rms: lambda x: rms_norm(x, args[0], 1e-3),
    }
    weight, step = rng.normal(size=x.shape), rng.normal(size=x.shape) * 1e-5
    for exact, function in mine.items():
        np.testing.assert_allclose(function(jnp.asarray(x, jnp.float32)), exact(x), atol=1e-5)
        change = np.sum((exact(x + step) - exact(x - step)) * weight) / 2
        grad = jax.grad(lambda x: jnp.sum(function(x) * weight))(jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(np.sum(np.asarray(grad) * step), change, rtol=1e-4)
    # Far from zero and in bfloat16, sums of squares in the compute dtype would lose everything.
    far = jnp.asarray(x + 100, jnp.bfloat16)
    assert layer_norm(far, *args, 1e-3).dtype == jnp.bfloat16
    np.testing.assert_allclose(
        layer_norm(far, *args, 1e-3).astype(np.float32), layer(np.asarray(far, np.float64)), atol=0.05
    )


def test_group_norm_and_its_gradients():
    rng = np.random.default_rng(1)
    arrays = rng.normal(4, 2, (2, 3, 5, 8)), rng.normal(size=8), rng.normal(size=8)

    def exact(x, scale, bias):
        y = x.reshape(2, 15, 4, 2)
        y = (y - y.mean((1, 3), keepdims=True)) / np.sqrt(y.var((1, 3), keepdims=True) + 1e-3)
        return y.reshape(x.shape) * scale + bias

    norm = jax.jit(lambda *args: group_norm(*args, 4, 1e-3))
    weight, given = rng.normal(size=arrays[0].shape), [jnp.asarray(a, jnp.float32) for a in arrays]
    np.testing.assert_allclose(norm(*given), exact(*arrays), atol=1e-5)
    grads = jax.jit(jax.grad(lambda *args: jnp.sum(norm(*args) * weight), argnums=(0, 1, 2)))(*given)
    for index, grad in enumerate(grads):
        step = rng.normal(size=grad.shape) * 1e-5
        moved = [exact(*(a + sign * step * (i == index) for i, a in enumerate(arrays))) for sign in (1, -1)]
        change = np.sum((moved[0] - moved[1]) * weight) / 2
        np.testing.assert_allclose(np.sum(np.asarray(grad) * step), change, rtol=1e-3)
    far = (given[0] + 100).astype(jnp.bfloat16)
    found = norm(far, *given[1:])
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(np.float32), exact(np.asarray(far, np.float64), *arrays[1:]), atol=0.05)


def test_rope_turns_pairs_and_sees_only_distances():
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(1, 5, 2, 6)), jnp.float32)
    positions = jnp.arange(5)[None] + 7
    turned = apply_rope(x, Rope(100.0).table(positions, 6))
    for i in range(3):
        angle = np.asarray(positions[0]) * 100.0 ** (-2 * i / 6)
        pair = np.asarray(x[0, :, :, i]) + 1j * np.asarray(x[0, :, :, i + 3])
        expected = pair * np.exp(1j * angle)[:, None]
        np.testing.assert_allclose(turned[0, :, :, i], expected.real, atol=1e-5)
        np.testing.assert_allclose(turned[0, :, :, i + 3], expected.imag, atol=1e-5)


def test_positions_restart_with_each_segment():
    ids = jnp.array([[1, 1, 1, 2, 2, 0, 0], [4, 5, 5, 5, 5, 5, 6]])
    np.testing.assert_array_equal(positions_from_segments(ids), [[0, 1, 2, 0, 1, 0, 1], [0, 0, 1, 2, 3, 4, 0]])


def test_patches_are_read_row_by_row_and_put_back():
    images = np.random.default_rng(0).normal(size=(2, 6, 9, 2)).astype(np.float32)
    patches = patchify(images, 3)
    for index, (top, left) in enumerate([(0, 0), (0, 3), (0, 6), (3, 0), (3, 3), (3, 6)]):
        expected = images[:, top : top + 3, left : left + 3].reshape(2, -1)
        np.testing.assert_array_equal(patches[:, index], expected)
    np.testing.assert_array_equal(unpatchify(patches, 3, 6, 9), images)
    with pytest.raises(ConfigError, match="6x9 pixels do not divide into patches of 4x4"):
        patchify(images, 4)


def test_gradients_inside_shard_map_are_those_outside():
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    keys = jax.random.split(jax.random.key(0), 5)
    x, w = jax.random.normal(keys[0], (4, 6, 8)), jax.random.normal(keys[1], (8, 8))
    table, index = jax.random.normal(keys[2], (5, 8)), jax.random.randint(keys[3], (4, 6), 0, 5)
    ids = jnp.ones((4, 6), jnp.int32)

    def loss(params, x, index, ids):
        rows = Embedding(5, 8).apply({"params": {"embedding": params["table"]}}, index)
        q = dense(x + rows, params["w"]).reshape(*x.shape[:2], 2, 4)
        # Keys and values that are the same on both devices.
        k = jnp.broadcast_to(params["k"], (len(x), 6, 2, 4))
        options = dict(segment_ids=(ids, ids), positions=None, causal=True, window=None, scale=0.5)
        return jnp.sum(cpu.run(q, k, k, **options) ** 2)

    params = {"w": w, "table": table, "k": jax.random.normal(keys[4], (6, 2, 4))}
    specs = dict(in_specs=(PartitionSpec(), *[PartitionSpec("data")] * 3), out_specs=PartitionSpec())
    inside = jax.jit(jax.shard_map(jax.grad(loss), mesh=mesh, **specs))(params, x, index, ids)
    outside = jax.jit(jax.grad(loss))(params, x, index, ids)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), inside, outside)
