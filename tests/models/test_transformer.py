"""The encoder-decoder: packing, cached decoding, sinusoids and initialisation by the paper's formulas."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import stirred

from fmjax.errors import ConfigError
from fmjax.layers.position import sinusoids
from fmjax.models.transformer import EncoderDecoder
from tests.quick_keys import quick_key

MODULE = EncoderDecoder(
    num_layers=2, num_decoder_layers=3, hidden_size=24, intermediate_size=40, num_heads=2, vocab_size=30, max_length=16
)
SOURCE = jax.random.randint(jax.random.key(1), (2, 9), 0, 30)
TARGET = jax.random.randint(jax.random.key(2), (2, 6), 0, 30)


@pytest.fixture(scope="module")
def params():
    params = nn.unbox(jax.jit(MODULE.init)(quick_key(0), TARGET, SOURCE))["params"]
    return stirred(params)


@pytest.fixture(scope="module")
def full(params):
    return jax.jit(lambda *inputs: MODULE.apply({"params": params}, *inputs))(TARGET, SOURCE)


def test_packed_pairs_equal_separate_pairs(params, full):
    """Two pairs in one row; the second source is cut to 7 tokens on the left by padding behind it."""
    source = jnp.concatenate([SOURCE[0], SOURCE[1], jnp.array([3, 3])])[None]
    source_ids = jnp.array([[1] * 9 + [2] * 9 + [0] * 2])
    target = jnp.concatenate([TARGET[0], TARGET[1], jnp.array([5])])[None]
    ids = jnp.array([[1] * 6 + [2] * 6 + [0]])
    apply = jax.jit(lambda *inputs: MODULE.apply({"params": params}, *inputs))
    packed = apply(target, source, ids, source_ids)
    np.testing.assert_allclose(packed[0, :6], full[0], atol=2e-5)
    np.testing.assert_allclose(packed[0, 6:12], full[1], atol=2e-5)
    assert np.isfinite(packed).all()
    # The decoder is causal, the encoder is not, and the decoder does look at the source.
    changed = apply(target.at[0, 5].add(1), source.at[0, 17].add(1), ids, source_ids)
    np.testing.assert_allclose(changed[0, :5], packed[0, :5], atol=1e-6)
    assert abs(changed[0, 6] - packed[0, 6]).max() > 1e-3


def test_cached_decoding_equals_the_full_forward_pass(params, full):
    """Both sources packed into one row of the encoder, put into rows 2 and 0 of the cache; row 1 stays idle."""
    module, unstacked = MODULE.unrolled(params)
    source = SOURCE.reshape(1, 18)
    ids, slots = jnp.array([[1] * 9 + [2] * 9]), jnp.array([[2] * 9 + [0] * 9])
    positions = jnp.tile(jnp.arange(9), 2)[None]
    stale = jax.tree.map(lambda x: x + 4, module.init_cache(3, 8, 12))
    prefill = jax.jit(
        lambda cache: module.apply({"params": unstacked}, source, ids, positions, cache, slots, method="prefill")
    )
    cache = prefill(stale)
    np.testing.assert_array_equal(cache["lengths"], [0, 4, 0])
    step = jax.jit(lambda tokens, ids, cache: module.apply({"params": unstacked}, tokens, ids, cache, method="decode"))
    for t in range(6):
        tokens = jnp.array([TARGET[1, t], 7, TARGET[0, t]])[:, None]
        logits, cache = step(tokens, jnp.array([[1], [0], [1]]), cache)
        np.testing.assert_allclose(logits[2, 0], full[0, t], atol=2e-5)
        np.testing.assert_allclose(logits[0, 0], full[1, t], atol=2e-5)
    np.testing.assert_array_equal(cache["lengths"], [6, 4, 6])


def test_sinusoids_are_the_papers():
    positions, d = np.arange(7), 10
    table = np.zeros((7, d))
    for pos in positions:
        for i in range(d // 2):
            table[pos, 2 * i] = np.sin(pos / 10000 ** (2 * i / d))
            table[pos, 2 * i + 1] = np.cos(pos / 10000 ** (2 * i / d))
    np.testing.assert_allclose(sinusoids(jnp.asarray(positions), d), table, atol=1e-6)
    halves = np.concatenate([table[:, ::2], table[:, 1::2]], axis=1)
    np.testing.assert_allclose(sinusoids(jnp.asarray(positions), d, interleaved=False), halves, atol=1e-6)


def test_initialisation_and_size():
    """Base and big have 65M and 213M parameters in the paper's table 3, with a vocabulary of 37,000."""
    base = EncoderDecoder(vocab_size=37000)
    big = EncoderDecoder(vocab_size=37000, hidden_size=1024, intermediate_size=4096, num_heads=16)
    shape = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    for module, millions in ((base, 65), (big, 213)):
        shapes = jax.eval_shape(module.init, jax.random.key(0), shape, shape)
        assert sum(x.size for x in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, rel=0.04)
    params = nn.unbox(jax.jit(MODULE.init)(quick_key(0), TARGET, SOURCE))["params"]
    up = params["encoder"]["blocks"]["mlp"]["up"]["kernel"]
    assert float(np.std(up)) == pytest.approx((2 / (24 + 40)) ** 0.5, rel=0.05)
    assert abs(up).max() <= (6 / (24 + 40)) ** 0.5
    assert float(np.std(params["token_embedding"]["embedding"])) == pytest.approx(24**-0.5, rel=0.1)


def test_bad_use_is_refused(params):
    with pytest.raises(ConfigError, match="come together"):
        MODULE.apply({"params": params}, TARGET, SOURCE, jnp.ones_like(TARGET))
    with pytest.raises(ConfigError, match="even"):
        EncoderDecoder(hidden_size=9, num_heads=3)
