"""Embeddings against the plain forward pass of each text by itself."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import ConfigError, InputError
from fmjax.inference import embedding
from fmjax.models.bert import Bert
from fmjax.models.llama import Llama
from tests.quick_keys import quick_key

SIZES = dict(num_layers=2, hidden_size=16, intermediate_size=24, num_heads=2, vocab_size=40, max_length=64)
LENGTHS = [3, 40, 1, 7, 64, 12, 1, 5]


@pytest.fixture(scope="module", params=[Bert(**SIZES), Llama(**SIZES)], ids=["encoder", "decoder"])
def model(request):
    params = nn.unbox(jax.jit(request.param.init)(quick_key(0), jnp.zeros((1, 4), jnp.int32)))["params"]
    return request.param, jax.tree.map(lambda x: x * 4, params)


def test_pooled_vectors_are_those_of_each_text_alone(model):
    module, params = model
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 40, n).tolist() for n in LENGTHS]
    hidden = jax.jit(lambda tokens, ids: module.apply({"params": params}, tokens, ids, method="hidden"))
    alone = []
    for text in texts:
        padded = np.zeros((2, 1, 64), np.int32)
        padded[0, 0, : len(text)], padded[1, 0, : len(text)] = text, 1
        alone.append(np.asarray(hidden(*padded))[0, : len(text)])
    pools = {"mean": lambda x: x.mean(0), "first": lambda x: x[0], "last": lambda x: x[-1]}
    for pooling, pool in pools.items():
        found = embedding.embed(module, params, texts, pooling=pooling, tokens_per_batch=128)
        np.testing.assert_allclose(found, [pool(x) for x in alone], atol=2e-5)
    unit = embedding.embed(module, params, texts, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    before = dict(embedding.TRACES)
    embedding.embed(module, params, [[7] * n for n in LENGTHS], normalize=True)
    assert embedding.TRACES == before


def test_bad_input_is_refused(model):
    module, params = model
    assert embedding.embed(module, params, []).shape == (0, 16)
    with pytest.raises(InputError, match="text 1 has no tokens"):
        embedding.embed(module, params, [[1], []])
    with pytest.raises(InputError, match="65 tokens.*64"):
        embedding.embed(module, params, [[1] * 65])
    with pytest.raises(ConfigError, match="did you mean 'mean'"):
        embedding.embed(module, params, [[1]], pooling="men")


def test_on_a_cpu_few_places_are_padding(monkeypatch):
    places = []

    def pooled(module, params, tokens, *_, count, **__):
        places.append(tokens.size)
        return np.zeros((count, 16))

    monkeypatch.setattr(embedding, "pooled", pooled)
    embedding.embed(Bert(**SIZES | {"max_length": 512}), {}, [[7] * 25] * 200)
    assert 5000 <= sum(places) <= 6144 and set(places) == {1024}
