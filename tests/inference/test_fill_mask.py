"""Masks filled in, and embeddings of texts, through `fmjax.load.Model`, against plain forward passes."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from fmjax.data.tokenizers.loading import ByteTokenizer, load_tokenizer
from fmjax.errors import InputError
from fmjax.load import Model
from fmjax.models.bert import Bert
from fmjax.models.llama import Llama
from fmjax.models.transformer import EncoderDecoder
from tests.quick_keys import quick_key

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "sky", "is", "blue", "sun", "hot", "##ter", "."]
TOKENS = np.zeros((1, 4), np.int32)


def random_params(module, *inputs):
    params = nn.unbox(jax.jit(module.init)(quick_key(0), *inputs))["params"]
    return jax.tree.map(lambda x: x * 4, params)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    # A vocabulary padded beyond the tokenizer's: what is padding is never a guess.
    module = Bert(num_layers=2, hidden_size=16, num_heads=2, vocab_size=16, max_length=24)
    return Model(module, random_params(module, TOKENS), {}, load_tokenizer(folder))


def test_guesses_are_those_of_the_forward_pass(bert):
    texts = ["the sky is [MASK] .", "[MASK] sun is hotter than the [MASK]"]
    found = bert.fill_mask(texts, top_k=3)
    assert [len(masks) for masks in found] == [1, 2]
    for text, masks in zip(texts, found):
        ids = bert.tokenizer.encode_special(text)
        tokens = np.array([[2, *ids, 3]])
        logits = np.asarray(bert.apply(tokens), np.float64)[0, tokens[0] == 4, :13]
        expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        for guesses, p in zip(masks, expected):
            best = np.argsort(-p)[:3]
            assert [word for word, _ in guesses] == [bert.tokenizer.decode([i]) for i in best]
            np.testing.assert_allclose([value for _, value in guesses], p[best], rtol=1e-4)


def test_embeddings_are_of_the_text_as_training_framed_it(bert):
    apply = jax.jit(
        lambda params, ids, module: module.apply({"params": params}, ids, method="hidden"), static_argnums=2
    )
    hidden = lambda m, ids: np.asarray(apply(m.params, np.array([ids]), m.module))[0]
    framed = [2, *bert.tokenizer.encode("the sky is blue"), 3]
    np.testing.assert_allclose(bert.embed(["the sky is blue"])[0], hidden(bert, framed).mean(0), atol=1e-5)
    np.testing.assert_allclose(bert.embed(["the sky is blue"], pooling="first")[0], hidden(bert, framed)[0], atol=1e-5)
    module = Llama(num_layers=1, hidden_size=16, num_heads=2, vocab_size=258, max_length=24)
    llama = Model(module, random_params(module, TOKENS), {}, ByteTokenizer())
    np.testing.assert_allclose(llama.embed(["ab"])[0], hidden(llama, [256, 97, 98])[-1], atol=1e-5)
    module = EncoderDecoder(num_layers=1, hidden_size=16, num_heads=2, vocab_size=258, max_length=24)
    translator = Model(module, random_params(module, TOKENS, TOKENS), {}, ByteTokenizer())
    np.testing.assert_allclose(translator.embed(["ab"])[0], hidden(translator, [97, 98, 257]).mean(0), atol=1e-5)
    with pytest.raises(InputError, match="cannot fill_mask: that takes a masked language model"):
        llama.fill_mask(["a"])
    for model in (bert, translator):
        with pytest.raises(InputError, match="no log-likelihoods"):
            model.score([("the", " sky")])
    with pytest.raises(InputError, match="source_tokens"):
        translator.apply(TOKENS)


@pytest.mark.parametrize(
    "texts, options, message",
    [
        (["the sky"], {}, "text 0 has no mask"),
        (["[MASK]"], {"top_k": 14}, "top_k must be from 1 to the vocabulary's 13"),
        (["[MASK] " + "sun " * 30], {}, "more than the model's context of 24"),
        ("[MASK]", {}, "expected a list of texts"),
    ],
)
def test_what_cannot_be_filled_is_refused(bert, texts, options, message):
    with pytest.raises(InputError, match=message):
        bert.fill_mask(texts, **options)
