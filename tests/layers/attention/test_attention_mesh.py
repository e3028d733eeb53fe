"""Attention over eight simulated devices, the length split too, is attention on one."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from attention_cases import CASES, Case, assert_same
from jax.sharding import AxisType

from fmjax.layers.attention import blocks as attention_blocks
from fmjax.layers.attention import mesh as attention_mesh
from fmjax.layers.attention import splash as attention_splash
from fmjax.layers.attention.image_masks import ImageMask
from fmjax.parallel.mesh import AXES, DEFAULT_RULES


@pytest.fixture(autouse=True)
def small_blocks_and_interpreter(monkeypatch):
    monkeypatch.setattr(attention_blocks, "BLOCK", (8, 8))
    monkeypatch.setattr(attention_splash, "INTERPRET", True)


def on_mesh(function, rules=DEFAULT_RULES, **sizes):
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    mesh = jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=jax.devices()[: np.prod(shape)])
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(rules.items())):
        return jax.device_get(function())


@functools.cache
def on_one(case):
    return case.outputs_and_gradients("reference", *case.arrays())


LONG = {
    "causal": Case(length=64, heads=2, kv_heads=2),
    "packed_grouped": Case(length=64, kv_heads=2, packed=True),
    "bidirectional": Case(length=40, kv_heads=1, causal=False, packed=True),
    "window": Case(length=40, window=9, kv_heads=2, packed=True),
    "banded": Case(length=40, window=9, kv_heads=1, causal=False),
    "cross": Case(length=24, keys=40, kv_heads=2, causal=False, packed=True),
    "by_heads": Case(length=40, heads=16, kv_heads=8, packed=True),
    "by_heads_banded": Case(length=40, heads=8, kv_heads=8, window=9, causal=False),
    "image": Case(length=40, kv_heads=1, mask=ImageMask("convolution", 4, 6, 3)),
    "image_by_heads": Case(length=40, heads=8, kv_heads=8, mask=ImageMask("column", 4, 6)),
    "by_heads_cross": Case(length=24, keys=40, heads=8, kv_heads=8, causal=False),
}


@pytest.mark.parametrize("name", LONG)
def test_a_split_length_is_a_whole_one(name):
    case = LONG[name]
    found = on_mesh(lambda: case.outputs_and_gradients("cpu", *case.arrays()), sequence=8)
    assert_same(found, on_one(case), 2e-5)


@pytest.mark.parametrize("name", ["packed_grouped", "window", "cross", "image"])
def test_splash_on_a_split_length(name):
    case = LONG[name]
    found = on_mesh(lambda: case.outputs_and_gradients("splash", *case.arrays()), sequence=8)
    assert_same(found, on_one(case), 2e-4)


def test_splash_on_a_split_length_of_several_blocks(monkeypatch):
    """Each device has two runs of queries, of one block each, over four blocks of keys."""
    monkeypatch.setattr(attention_splash, "BLOCKS", (128,))
    case = Case(length=512, heads=1, kv_heads=1, rows=1, packed=True)
    found = on_mesh(lambda: case.outputs_and_gradients("splash", *case.arrays()), sequence=2)
    assert_same(found, on_one(case), 2e-4)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_rows_heads_and_length_split_together(kv_heads):
    """Four key-value heads: two on a device, by heads; two: one on a device, by queries."""
    case = Case(kv_heads=kv_heads, packed=True)
    found = on_mesh(lambda: case.outputs_and_gradients("cpu", *case.arrays()), fsdp=2, tensor=2, sequence=2)
    assert_same(found, on_one(case), 2e-5)


@pytest.mark.parametrize("tensor", [2, 4])
def test_splash_maps_over_rows_and_heads(tensor):
    """Over four devices each query head gets its own copy of its key-value head."""
    case = Case(kv_heads=2, packed=True)
    found = on_mesh(lambda: case.outputs_and_gradients("splash", *case.arrays()), fsdp=2, tensor=tensor)
    assert_same(found, on_one(case), 2e-4)


def test_rows_that_do_not_divide_stay_whole():
    case = Case(rows=3, packed=True)
    found = on_mesh(lambda: case.outputs_and_gradients("cpu", *case.arrays()), data=2, sequence=4)
    assert_same(found, on_one(case), 2e-5)


def test_work_that_the_mesh_does_not_divide_is_said(caplog):
    attention_mesh._warn.cache_clear()
    case = Case(heads=6, kv_heads=6)
    assert_same(on_mesh(lambda: case.outputs_and_gradients("cpu", *case.arrays()), tensor=4), on_one(case), 2e-5)
    assert "attention of 6 heads does not divide over the 4 devices of the mesh axes ('tensor',)" in caplog.text
    case = Case(length=40, kv_heads=2)
    assert_same(on_mesh(lambda: case.outputs_and_gradients("cpu", *case.arrays()), sequence=8), on_one(case), 2e-5)
    assert "a length split 8 ways, with 2 key-value heads" in caplog.text
    assert len(caplog.records) == 2


@pytest.mark.parametrize("name", CASES)
def test_blocks_are_the_reference(name):
    """Queries in any order, as a device may hold them."""
    case = CASES[name]
    q, k, v, ids = case.arrays()
    order = np.random.default_rng(0).permutation(case.length)
    pair = None if ids is None else ids if isinstance(ids, tuple) else (ids, ids)
    ids_there = None if pair is None else (pair[0][:, order], pair[1])

    def attend(q, k, v, **_):
        out = attention_blocks.attend(
            q[:, order], k, v, jax.numpy.asarray(order), segment_ids=ids_there, causal=case.causal, window=case.window,
            mask=case.mask, scale=case.head_dim**-0.5,
        )  # fmt: skip
        return out[:, np.argsort(order)]

    there = Case.outputs_and_gradients
    blocks = type("Blocks", (), {"run": lambda self, _, q, k, v, ids: attend(q, k, v)})()
    assert_same(there(blocks, None, q, k, v, ids), on_one(case), 2e-5)


def test_no_array_grows_with_the_square_of_the_length(monkeypatch):
    monkeypatch.setattr(attention_blocks, "BLOCK", (64, 64))
    case = Case(length=4096, heads=1, kv_heads=1, rows=1)
    arrays = jax.eval_shape(case.arrays)

    def temporaries(backend):
        def compiled():
            function = lambda q, k, v: case.outputs_and_gradients(backend, q, k, v, None)
            return jax.jit(function).lower(*arrays[:3]).compile().memory_analysis().temp_size_in_bytes

        return on_mesh(compiled, sequence=8)

    square = 4 * 4096 * 4096 // 8
    assert temporaries("cpu") < square / 4 and temporaries("reference") > square


def test_causal_work_is_shared_evenly():
    def work(balanced):
        order = attention_mesh._order(64, 8, balanced)
        assert sorted(order.reshape(-1)) == list(range(64))
        return (order + 1).sum(axis=1)

    assert len(set(work(True))) == 1 and work(False).max() > 10 * work(False).min()


UNEVEN = {
    "by_heads": Case(length=37),
    "by_heads_packed": Case(length=37, packed=True),
    "by_heads_bidirectional": Case(length=37, causal=False),
    "image": Case(length=40, kv_heads=1, mask=ImageMask("convolution", 4, 6, 3)),
    "image_by_heads": Case(length=40, heads=8, kv_heads=8, mask=ImageMask("column", 4, 6)),
    "by_heads_cross": Case(length=37, keys=51, causal=False, packed=True),
    "by_queries": Case(length=37, kv_heads=2),
    "by_queries_packed": Case(length=37, kv_heads=2, packed=True),
    "by_queries_banded": Case(length=37, kv_heads=1, window=6, causal=False),
    "by_queries_cross": Case(length=24, keys=37, kv_heads=2, causal=False),
}


@pytest.mark.parametrize("name", UNEVEN)
def test_a_length_that_does_not_divide(name):
    case = UNEVEN[name]
    found = on_mesh(lambda: case.outputs_and_gradients("auto", *case.arrays()), sequence=4)
    assert_same(found, on_one(case), 2e-5)


@pytest.mark.parametrize("name", ["by_heads_cross", "by_queries_packed"])
def test_splash_on_a_length_that_does_not_divide(name):
    case = UNEVEN[name]
    found = on_mesh(lambda: case.outputs_and_gradients("splash", *case.arrays()), sequence=4)
    assert_same(found, on_one(case), 2e-4)
