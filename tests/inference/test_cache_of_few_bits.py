"""Keys and values held in eight and four bits against floats."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import ConfigError, InputError
from fmjax.inference import decoding
from fmjax.inference.continuations import Options
from fmjax.inference.engine import Engine
from fmjax.inference.engine_requests import PromptRequest
from fmjax.inference.sampler import Sampling
from fmjax.layers import held, kv_cache
from fmjax.layers.attention.decode import decode_attention
from fmjax.models.llama import Llama
from fmjax.parallel.placement import Placement
from tests.quick_keys import quick_key
from tests.tiny_decoder import TinyDecoder

B, K, D, S = 2, 2, 8, 400
TOPS = {"int8": 127, "int4": 7}


@functools.cache
def filled(format):
    """(an entry with S positions written, the same in floats, queries)."""
    rng = np.random.default_rng(0)
    key, value, q = (jnp.asarray(rng.normal(size=(B, *n, D)), jnp.float32) for n in ((S, K), (S, K), (1, 4)))
    cache = kv_cache.in_few_bits(kv_cache.init_cache(B, S, K, D, (None,), jnp.float32), format)
    step = kv_cache.begin(cache, jnp.zeros((B, S), jnp.int32), None, None, None)
    (entry,) = cache["layers"]
    written = {name: step.write(name, entry[name], x) for name, x in (("key", key), ("value", value))}
    return written, {"key": key.transpose(0, 2, 3, 1), "value": value.swapaxes(1, 2)}, q


@pytest.mark.parametrize("format", TOPS)
def test_what_is_held_is_within_half_a_step_and_takes_its_bits(format):
    written, floats, _ = filled(format)
    for name, axis in (("key", 2), ("value", 3)):
        found, expected = written[name], floats[name]
        assert found.shape == expected.shape
        step = np.abs(expected).max(axis, keepdims=True) / TOPS[format]
        assert np.all(np.abs(found.value() - expected) <= step / 2 + 1e-6)
        assert sum(x.nbytes for x in jax.tree.leaves(found)) == B * K * S * (D * {"int8": 1, "int4": 0.5}[format] + 4)


@pytest.mark.parametrize("slots", [S, 20])
@pytest.mark.parametrize("format, bound", [("int8", 0.02), ("int4", 0.25)])
def test_attention_is_that_over_the_values_held(format, bound, slots):
    written, floats, q = filled(format)
    cut = lambda x, axis: jax.tree.map(lambda part: jax.lax.slice_in_dim(part, 0, slots, axis=axis), x)
    written, floats = ({"key": cut(x["key"], 3), "value": cut(x["value"], 2)} for x in (written, floats))
    allowed = jnp.arange(slots)[None] < jnp.asarray([[slots - 3], [7]])
    found = decode_attention(q, written["key"], written["value"], allowed)
    exact = decode_attention(q, written["key"].value(), written["value"].value(), allowed)
    np.testing.assert_allclose(found, exact, atol=1e-5)
    assert np.max(np.abs(found - decode_attention(q, **floats, allowed=allowed))) < bound


def test_one_more_token_lies_where_it_belongs():
    cache = kv_cache.in_few_bits(kv_cache.init_cache(2, 4, K, D, (3,), jnp.float32), "int4")
    (entry,), new = cache["layers"], jax.random.normal(jax.random.key(0), (2, 1, K, D))
    cache["lengths"] = jnp.asarray([5, 1])
    step = kv_cache.begin(cache, jnp.zeros((2, 1), jnp.int32), None, None, None)
    for name, place in (("key", np.s_[0, :, :, 2]), ("value", np.s_[0, :, 2])):
        found = step.write_next(name, entry[name], new).value()
        codes, scales = held.whole_parts(new, "int4")
        top = np.abs(new[0, 0]).max(-1, keepdims=True) / 7
        np.testing.assert_allclose(found[place], np.round(new[0, 0] / top) * top, atol=1e-6)
        assert np.count_nonzero(found[0]) <= K * D


@functools.cache
def engine(window=None):
    sizes = dict(num_layers=2, hidden_size=32, intermediate_size=48, num_heads=4, vocab_size=40, max_length=64)
    module = Llama(**sizes, num_kv_heads=2, window=window)
    params = nn.unbox(jax.jit(module.init)(quick_key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    drawn = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + 0.3 * drawn.normal(size=x.shape).astype(np.float32), params)
    return Engine(module, params, batch_size=2, max_length=48)


PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [5], [9, 8]]


def drawn(made, **options):
    return made.generate([PromptRequest(p, 10, Sampling(0.0), 0, 0) for p in PROMPTS], **options)


@pytest.mark.parametrize("window", [None, 5])
def test_greedy_continuations_are_close_to_those_of_floats(window):
    exact = drawn(engine(window))
    for format, least, bound in (("int8", 0.9, 0.1), ("int4", 0.2, 1.5)):
        found = drawn(engine(window), cache=format)
        agree = [np.cumprod(np.equal(a.tokens, b.tokens)).astype(bool) for a, b in zip(found, exact)]
        assert np.mean(np.concatenate(agree)) >= least
        for a, b, same in zip(found, exact, agree):
            assert np.max(np.abs(np.subtract(a.logprobs, b.logprobs)[same]), initial=0) < bound


def test_devices_draw_what_one_draws():
    made, placement = engine(), Placement.make({"data": 2, "tensor": 2, "fsdp": 2})
    exact = drawn(made, cache="int8")
    module = made.module.clone(scan_layers=True)
    with placement.inference():
        found = drawn(Engine(module, stacked(made.weights.params), batch_size=2, max_length=48), cache="int8")
    assert [one.tokens for one in found] == [one.tokens for one in exact]


def stacked(params):
    from fmjax.layers.weights import merged

    params = merged(params)
    blocks = [params["stack"].pop(f"blocks_{i}") for i in range(2)]
    params["stack"]["blocks"] = jax.tree.map(lambda *x: jnp.stack(x), *blocks)
    return params


def test_other_caches_and_formats_are_refused():
    with pytest.raises(ConfigError, match="cache='int7' is not known; did you mean 'int4'|cache='int7' is not known"):
        Options(cache="int7")
    with pytest.raises(InputError, match="cache = 'int8': the cache of TinyDecoder holds no keys and values of layers"):
        decoding.init_cache(TinyDecoder(), 2, 8, kept="int8")
