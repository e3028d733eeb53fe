"""MaskGIT's condition: padding says nothing, no caption is none, and a hidden code is like no other."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import ConfigError
from fmjax.layers.flops import transformer_flops
from fmjax.layers.modulation import NO_LABEL
from fmjax.models.maskgit import MaskGIT
from tests.quick_keys import quick_key

SIZES = dict(num_layers=2, hidden_size=16, num_heads=2, num_codes=5, num_places=4, init_std=0.5)
CODES = jnp.array([[0, 5, 2, 5]])


def applied(module, *inputs):
    variables = nn.unbox(jax.jit(module.init)(quick_key(0), *inputs))
    return jax.jit(functools.partial(module.apply, variables)), variables


def test_padding_and_what_stands_in_it_say_nothing_and_no_caption_is_none():
    module = MaskGIT(vocab_size=9, max_length=6, **SIZES)
    tokens, segments = jnp.array([[3, 4, 0, 0]]), jnp.array([[1, 1, 0, 0]])
    apply, _ = applied(module, CODES, None, tokens, segments)
    found = apply(CODES, None, tokens, segments)
    assert found.shape == (1, 4, 5)
    for other, ids in [([[3, 4, 7, 8]], segments), ([[3, 4, 0, 0, 0, 0]], [[1, 1, 0, 0, 0, 0]]), ([[3, 4]], [[1, 1]])]:
        np.testing.assert_allclose(apply(CODES, None, jnp.array(other), jnp.array(ids)), found, atol=1e-5)
    assert np.abs(apply(CODES, None, jnp.array([[4, 3, 0, 0]]), segments) - found).max() > 1e-3
    none = apply(CODES, None, tokens, jnp.zeros_like(segments))
    np.testing.assert_allclose(apply(CODES, None, tokens + 1, jnp.zeros_like(segments)), none, atol=1e-5)
    assert np.abs(none - found).max() > 1e-3
    # Codes see each other both ways, and a hidden one is not any of them.
    for place in (0, 3):
        other = apply(CODES.at[0, place].set(1), None, tokens, segments)
        assert (np.abs(other - found).max(axis=-1) > 1e-4).all()
    with pytest.raises(ConfigError, match="captions of 7 tokens do not fit into max_length = 6"):
        apply(CODES, None, jnp.zeros((1, 7), int), jnp.zeros((1, 7), int))
    with pytest.raises(ConfigError, match="there are no captions"):
        apply(CODES)


def test_classes_have_a_row_each_and_none_has_one():
    module = MaskGIT(num_classes=3, **SIZES)
    apply, variables = applied(module, CODES, jnp.array([0]))
    found = [apply(CODES, jnp.array([label])) for label in (0, 1, 2, NO_LABEL)]
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(found) for b in found[:i])
    assert variables["params"]["label"]["embedding"].shape == (4, 16)
    with pytest.raises(ConfigError, match="an image has a class or a caption"):
        MaskGIT(num_classes=3, vocab_size=9, **SIZES)
    head = 6 * 4 * 16 * (16 + 5)
    assert module.flops_per_example({}) == head + transformer_flops(
        module.transformer, vocab_size=0, sequence_length=5
    )
