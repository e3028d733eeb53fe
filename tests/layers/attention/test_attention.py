"""Every attention backend against the definition, written out in numpy; gradients against the reference backend."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import CASES, Case, assert_same, normal

from fmjax.errors import ConfigError
from fmjax.layers.attention import attention
from fmjax.layers.attention import cpu as attention_cpu
from fmjax.layers.attention import cudnn as attention_cudnn
from fmjax.layers.attention import splash as attention_splash
from fmjax.layers.attention.reference import Ordered


def in_image(mask, t, s):
    """Figure 11 of Ramesh et al. 2021, for s <= t."""
    if t < mask.begin or s < mask.begin:
        return True
    t, s, reach = t - mask.begin, s - mask.begin, mask.kernel // 2
    if mask.kind == "row":
        return t - s in range(mask.side + 1)
    if mask.kind == "column":
        return t % mask.side == s % mask.side
    return any(s == t - up * mask.side + along for up in range(reach + 1) for along in range(-reach, reach + 1))


def by_hand(case, q, k, v, ids):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    query_ids, key_ids = (None, None) if ids is None else ids if isinstance(ids, tuple) else (ids, ids)
    out = np.zeros(q.shape)
    for b in range(q.shape[0]):
        allowed = np.array([
            [
                (not case.causal or s <= t)
                and (case.window is None or abs(t - s) < case.window)
                and (ids is None or query_ids[b, t] == key_ids[b, s])
                and (case.mask is None or in_image(case.mask, t, s))
                for s in range(k.shape[1])
            ]
            for t in range(q.shape[1])
        ])
        for h in range(q.shape[2]):
            head = h // (q.shape[2] // k.shape[2])
            logits = np.where(allowed, q[b, :, h] @ k[b, :, head].T / np.sqrt(q.shape[3]), -np.inf)
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            out[b, :, h] = weights @ v[b, :, head] / weights.sum(axis=1, keepdims=True)
    return out


@pytest.fixture(autouse=True)
def small_blocks_and_interpreter(monkeypatch):
    monkeypatch.setattr(attention_cpu, "MIN_BLOCK", 8)
    monkeypatch.setattr(attention_splash, "INTERPRET", True)


@pytest.mark.parametrize("name", CASES)
def test_reference_is_the_definition(name):
    case = CASES[name]
    arrays = case.arrays()
    found = jax.jit(functools.partial(case.run, "reference"))(*arrays)
    np.testing.assert_allclose(found, by_hand(case, *arrays), atol=1e-5)


@functools.cache
def expected_of(case):
    return case.outputs_and_gradients("reference", *case.arrays())


@pytest.mark.parametrize("backend, tolerance", [("cpu", 2e-5), ("splash", 2e-4)])
@pytest.mark.parametrize("name", CASES)
def test_backends_are_the_reference(name, backend, tolerance):
    case = CASES[name]
    assert_same(case.outputs_and_gradients(backend, *case.arrays()), expected_of(case), tolerance)


@pytest.mark.parametrize("name", ["odd", "grouped", "window_packed", "cross_packed"])
def test_the_tangent_of_the_cpu_backend_is_the_references(name, monkeypatch):
    """Of short rows and of long ones; of a vector, and of a batch of one."""
    case = CASES[name]
    *arrays, ids = case.arrays()
    along = [normal(np.random.default_rng(i + 1), x.shape) for i, x in enumerate(arrays)]

    def tangents(backend, arrays, along):
        run = lambda q, k, v: case.run(backend, q, k, v, ids)
        one = lambda first: jax.jvp(run, arrays, [first, *along[1:]])[1]
        return one(along[0]), jax.vmap(one)(along[0][None])[0]

    expected = jax.jit(lambda *args: tangents("reference", *args)[0])(arrays, along)
    for long in (False, True):
        if long:
            monkeypatch.setattr(attention_cpu, "LONG", 1)
            monkeypatch.setattr(attention_cpu, "LONG_BLOCK", 8)
        for found in jax.jit(lambda *args: tangents("cpu", *args))(arrays, along):
            np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("rows_at_once, cores", [(1, 1), (2, 1), (1, 2), (2, 3)])
def test_cpu_backend_a_few_rows_at_a_time(rows_at_once, cores, monkeypatch):
    """Rows that are computed together, and parts of a turn, both of a loop over 6 rows."""
    case = Case(rows=6, kv_heads=2, packed=True)
    monkeypatch.setattr(attention_cpu, "LOGITS_BYTES", rows_at_once * 4 * case.heads * 8 * case.length)
    monkeypatch.setattr(attention_cpu, "_num_cores", lambda: cores)
    loops = str(jax.make_jaxpr(functools.partial(case.run, "cpu"))(*case.arrays())).count("scan[")
    assert loops == (rows_at_once * cores < case.rows)
    assert_same(case.outputs_and_gradients("cpu", *case.arrays()), expected_of(case), 2e-5)


@pytest.mark.parametrize("name, rows_at_once", [*((name, 1) for name in CASES), ("packed", 2)])
def test_cpu_backend_for_long_rows_is_the_reference(name, rows_at_once, monkeypatch):
    """Blocks of queries and of keys, of one row or two at a time."""
    case = CASES[name]
    monkeypatch.setattr(attention_cpu, "LONG", 1)
    monkeypatch.setattr(attention_cpu, "LONG_BLOCK", 8)
    monkeypatch.setattr(attention_cpu, "LONG_LOGITS_BYTES", rows_at_once * 4 * case.heads * 8**2)
    assert_same(case.outputs_and_gradients("cpu", *case.arrays()), expected_of(case), 2e-5)


def test_the_memory_of_long_rows_on_cpus_grows_with_their_length():
    def temporaries(length):
        case = Case(length=length, heads=2, kv_heads=1, rows=2, head_dim=8)
        function = lambda q, k, v: case.outputs_and_gradients("cpu", q, k, v, None)
        arrays = jax.eval_shape(case.arrays)[:3]
        return jax.jit(function).lower(*arrays).compile().memory_analysis().temp_size_in_bytes

    inputs = 4 * 2 * 4096 * (2 + 1 + 1) * 8  # of 4,096 more tokens: queries, keys and values
    assert temporaries(8192) - temporaries(4096) < 3 * inputs and temporaries(8192) < 4 * 8192**2 / 8


# Several blocks of queries and of keys: three of 256 keys in the backward pass, or four of 128 (bidirectional).
SEVERAL_BLOCKS = {
    "causal": Case(length=768, heads=2, kv_heads=1, packed=True, rows=1),
    "bidirectional": Case(length=500, heads=1, kv_heads=1, causal=False, packed=True, rows=1),
    "window": Case(length=768, heads=1, kv_heads=1, window=200, rows=1),
    "cross": Case(length=384, keys=768, heads=1, kv_heads=1, causal=False, rows=1),
}


@pytest.mark.parametrize("max_parts", [64, 1])
@pytest.mark.parametrize("name", SEVERAL_BLOCKS)
def test_splash_over_several_blocks(name, max_parts, monkeypatch):
    """Beyond `max_parts` two kernels compute the gradients instead of one."""
    sizes = {"BLOCKS": (128,), "BACKWARD_BLOCKS": (256,), "ENOUGH_PARTS": 3, "MAX_PARTS": max_parts}
    for size, value in sizes.items():
        monkeypatch.setattr(attention_splash, size, value)
    case = SEVERAL_BLOCKS[name]
    kernel = attention_splash.make_kernel(np.arange(768)[None], 1, 768, True, None)
    pairs = 128 * 128 * 6 * 7 // 2, 128 * 256 * (2 * 1 + 2 * 2 + 2 * 3)
    assert kernel.tiles == (*pairs, max_parts == 64)
    assert_same(case.outputs_and_gradients("splash", *case.arrays()), expected_of(case), 2e-4)


@pytest.mark.parametrize("name", CASES)
def test_cudnn_backend_is_the_reference(name, monkeypatch):
    """On a GPU the kernel; elsewhere what is handed to it, computed by the same function's plain implementation."""
    case, dtype, tolerance = CASES[name], jnp.bfloat16, 0.05
    if jax.default_backend() != "gpu":
        dtype, tolerance = jnp.float32, 2e-5
        monkeypatch.setattr(attention_cudnn, "IMPLEMENTATION", "xla")
        monkeypatch.setattr(attention_cudnn, "DTYPES", ("float32",))
        monkeypatch.setattr(attention_cudnn, "target_platform", lambda: "gpu")
        handed = jax.nn.dot_product_attention

        def checked(q, k, v, **options):
            lengths = 1 if options["mask"] is None else 2
            assert q.shape[3] % 8 == 0 and q.shape[1] % lengths == k.shape[1] % lengths == 0
            assert options["local_window_size"] is None or options["is_causal"]
            return handed(q, k, v, **options)

        monkeypatch.setattr(jax.nn, "dot_product_attention", checked)
    assert_same(case.outputs_and_gradients("cudnn", *case.arrays(), dtype=dtype), expected_of(case), tolerance)


def test_cpu_blocks_cover_what_a_mask_allows_and_skip_the_rest(monkeypatch):
    monkeypatch.setattr(attention_cpu, "MIN_BLOCK", 128)
    assert attention_cpu.blocks(512, 512, True, None) == [(i, i + 128, 0, i + 128) for i in (0, 128, 256, 384)]
    assert attention_cpu.blocks(300, 300, True, 100)[-1] == (256, 300, 157, 300)
    assert attention_cpu.blocks(300, 300, False, None) == [(0, 300, 0, 300)]
    assert len(attention_cpu.blocks(100_000, 100_000, True, None)) == attention_cpu.MAX_BLOCKS


def test_positions_place_queries_among_cached_keys():
    """Four queries at positions 20.. of 24 keys held in shuffled slots, as in a cache."""
    case = Case(window=7)
    q, k, v, _ = case.arrays()
    full = case.run("reference", q, k, v, None)
    order = np.random.default_rng(0).permutation(24)
    positions = (jnp.arange(20, 24)[None].repeat(2, 0), jnp.asarray(order)[None].repeat(2, 0))
    found = attention(q[:, 20:], k[:, order], v[:, order], positions=positions, window=7)
    np.testing.assert_allclose(found, full[:, 20:], atol=1e-5)


def test_bfloat16_computes_the_softmax_in_float32():
    case = CASES["packed"]
    q, k, v, ids = case.arrays()
    half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    exact = case.run("reference", *(x.astype(jnp.float32) for x in half), ids)
    for backend in ("reference", "cpu"):
        out = jax.jit(lambda *x, backend=backend: case.run(backend, *x, ids))(*half)
        assert out.dtype == jnp.bfloat16
        np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.03)


def test_dropout_of_probabilities_keeps_their_mean():
    q, k, v, _ = Case(causal=False).arrays()
    keys = jax.random.split(jax.random.key(3), 400)
    drop = jax.vmap(lambda key: attention(q, k, v, causal=False, dropout_rate=0.3, dropout_key=key))
    out = jax.jit(drop)(keys)
    # The spread that a share r of dropped probabilities p gives: sum_s p_s^2 v_s^2 r / (1 - r).
    probabilities = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1]))
    variance = jnp.einsum("bhts,bshd->bthd", probabilities**2, v**2) * 0.3 / 0.7
    np.testing.assert_allclose(out.var(axis=0).mean(), variance.mean(), rtol=0.05)
    # 1536 means of 400: within five standard errors each, and together as far off as their standard errors say.
    errors = (out.mean(axis=0) - attention(q, k, v, causal=False)) / jnp.sqrt(variance / 400)
    assert jnp.abs(errors).max() < 5 and jnp.square(errors).mean() < 1.3


def test_what_a_backend_cannot_do_is_refused():
    q, k, v, ids = CASES["packed"].arrays()
    positions = jnp.arange(37)[None]
    for backend in ("cpu", "splash"):
        with pytest.raises(ConfigError, match=f"{backend}.*positions"):
            attention(q, k, v, positions=positions, backend=backend)
        with pytest.raises(ConfigError, match=f"{backend}.*dropout"):
            attention(q, k, v, dropout_rate=0.1, backend=backend)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_splash, "INTERPRET", False)
        with pytest.raises(ConfigError, match="splash.*is a kernel for TPUs, and the program is for 'cpu'"):
            attention(q, k, v, backend="splash")
    with pytest.raises(ConfigError, match="cudnn.*GPU"):
        attention(q, k, v, backend="cudnn")
    with pytest.raises(ConfigError, match="splash"):
        attention(q, k, v, backend="splsh")
    with pytest.raises(ConfigError, match="positions for both"):
        attention(q[:, :5], k, v)
    with pytest.raises(ConfigError, match="multiple of K"):
        attention(q, k[:, :, :3], v[:, :, :3])
    with pytest.raises(ConfigError, match="window=0"):
        attention(q, k, v, window=0)


def test_auto_logs_its_choice_once(caplog):
    from fmjax.layers.attention import dispatch as module

    module._log_choice.cache_clear()
    q, k, v, _ = Case().arrays()
    with caplog.at_level("INFO", logger=module.__name__):
        for _ in range(3):
            attention(q, k, v)
    assert [r.message for r in caplog.records] == ["attention backend on cpu: cpu"]


@pytest.mark.parametrize("causal, window", [(True, None), (True, 100), (True, 300), (False, 200)])
@pytest.mark.parametrize("shards", [1, 2])
def test_tiles_that_splash_attention_computes(causal, window, shards):
    """Those with any pair that the mask allows, against the whole mask."""
    length = 1024
    order = np.arange(length).reshape(4, -1)
    order = order[[0, 3, 1, 2]].reshape(shards, -1) if shards == 2 else order.reshape(1, -1)
    ahead = order.reshape(-1)[:, None] - np.arange(length)[None, :]
    allowed = np.ones(ahead.shape, bool)
    if causal:
        allowed &= ahead >= 0
    if window is not None:
        allowed &= (ahead if causal else abs(ahead)) < window
    tiles = allowed.reshape(length // 128, 128, length // 256, 256).any(axis=(1, 3)).sum() * 128 * 256
    assert attention_splash.tile_pairs(order, length, causal, window, 128, 256) == tiles // shards


def test_rows_in_an_order_of_their_own_are_masked_by_it():
    """A row by index, one attended whole, one with a prefix that is; of two segments and padding."""
    q, k, v = np.random.default_rng(0).normal(size=(3, 3, 6, 2, 4)).astype(np.float32)
    order, ids = jnp.array([[0, 1, 2, 3, 4, 5], [0] * 6, [0, 0, 0, 1, 2, 3]]), jnp.array([[1, 1, 1, 1, 2, 2]] * 3)
    found = attention(q, k, v, segment_ids=Ordered(ids, order))
    last = [[0, 1, 2, 3, 4, 5], [5] * 6, [2, 2, 2, 3, 4, 5]]
    for row, head, t in itertools.product(range(3), range(2), range(6)):
        allowed = [s for s in range(6) if s <= last[row][t] and ids[row, s] == ids[row, t]]
        weights = np.exp(k[row, allowed, head] @ q[row, t, head] / 2)
        np.testing.assert_allclose(found[row, t, head], weights @ v[row, allowed, head] / weights.sum(), atol=1e-5)
    np.testing.assert_allclose(
        attention(q, k, v, segment_ids=Ordered(None, order))[0], attention(q, k, v)[0], atol=1e-5
    )
    with pytest.raises(ConfigError, match="not from both"):
        attention(q, k, v, segment_ids=Ordered(None, order), positions=order)
