"""Encoders with a masked-language-model head: packing, padding, their heads, and what a mask of theirs lets through."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import stirred

from fmjax.errors import ConfigError
from fmjax.models.bert import Bert, Roberta
from fmjax.models.magneto import MagnetoEncoder
from tests.quick_keys import quick_key

SIZES = dict(num_layers=2, hidden_size=24, intermediate_size=40, num_heads=2, vocab_size=30, max_length=16)
MODELS = {"bert": Bert(**SIZES), "roberta": Roberta(**SIZES), "magneto": MagnetoEncoder(**SIZES)}
TOKENS = jax.random.randint(jax.random.key(1), (1, 15), 0, 30)


@functools.cache
def made(name):
    module = MODELS[name]
    params = nn.unbox(jax.jit(module.init)(quick_key(0), TOKENS))["params"]
    return module, stirred(params)


@functools.partial(jax.jit, static_argnames=("module", "method"))
def apply(module, params, *inputs, method=None):
    return module.apply({"params": params}, *inputs, method=method)


@pytest.mark.parametrize("name", MODELS)
def test_packed_rows_equal_separate_texts_and_every_token_sees_its_whole_text(name):
    module, params = made(name)
    ids = jnp.array([[1] * 6 + [2] * 7 + [0] * 2])
    types = jnp.array([[0, 0, 0, 1, 1, 1] + [0] * 3 + [1] * 4 + [1, 0]]) % getattr(module, "num_token_types", 1)
    packed = apply(module, params, TOKENS, ids, None, types)
    for part in (slice(0, 6), slice(6, 13)):
        alone = apply(module, params, TOKENS[:, part], None, None, types[:, part])
        np.testing.assert_allclose(packed[:, part], alone, atol=2e-5)
    assert packed.shape == (1, 15, 30) and np.isfinite(packed).all()
    # No causal mask: the last token of a text changes what is said of its first; padding and other texts do not.
    changed = apply(module, params, TOKENS.at[0, 5].add(1).at[0, 13].add(1), ids, None, types)
    assert abs(changed - packed)[0, :5].max() > 1e-2
    np.testing.assert_allclose(changed[:, 6:13], packed[:, 6:13], atol=1e-6)


def test_berts_parts_are_its_equations():
    """Embedding, pooler and heads in numpy around the stack, whose own parity is shown elsewhere."""
    module, params = made("bert")
    types = jnp.arange(15)[None] % 2
    p = jax.tree.map(np.asarray, params)

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * p[name]["scale"] + p[name]["bias"]

    _, reads = module.apply({"params": params}, TOKENS, None, None, types, mutable=["reads"])
    reads = reads["reads"]
    summed = p["token_embedding"]["embedding"][TOKENS] + p["position_embedding"]["embedding"][:15]
    summed = summed + p["type_embedding"]["embedding"][types]
    np.testing.assert_allclose(reads["embedded"], norm(summed, "embedding_norm"), atol=1e-5)
    hidden = reads["stack"]["final"]
    found, head, relation = apply(module, params, TOKENS, None, None, types, method="pretraining")
    linear = lambda x, name: x @ p[name]["kernel"] + p[name]["bias"]
    expected = norm(jax.nn.gelu(linear(hidden, "head_transform"), approximate=False), "head_norm")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert set(head) == {"embedding", "bias"}
    expected = linear(np.tanh(linear(hidden[:, 0], "pooler")), "next_sentence_head")
    np.testing.assert_allclose(relation, expected, atol=1e-5)


def test_published_sizes():
    """Parameters of PyTorch's BertForPreTraining and RobertaForMaskedLM (110M and 125M in the papers)."""

    def count(module):
        shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
        return sum(x.size for x in jax.tree.leaves(shapes))

    assert count(Bert(vocab_size=30522)) == 110_106_428
    assert count(Roberta(vocab_size=50265)) == 124_697_433


def test_positions_beyond_the_table_are_not_numbers_and_bad_use_is_refused():
    module, params = made("roberta")
    assert params["position_embedding"]["embedding"].shape == (18, 24)  # its first two rows are nobody's
    assert np.isnan(apply(module, params, jnp.zeros((1, 17), jnp.int32))).any()
    with pytest.raises(ConfigError, match="vocab_size"):
        Bert(**(SIZES | dict(vocab_size=None))).init(quick_key(0), TOKENS)
