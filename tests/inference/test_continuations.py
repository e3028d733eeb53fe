"""Texts: stop strings, samples, details, and what is given out as the tokens come."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.data.tokenizer import ByteTokenizer
from fmjax.errors import InputError
from fmjax.inference.text import StoppedText
from fmjax.load import Model
from fmjax.models.gpt import GPT

BYTES = ByteTokenizer()


class Abc(ByteTokenizer):
    """Bytes, of which a continuation has only a, b and c, so that short strings occur in it."""

    def decode(self, tokens):
        return super().decode([97 + token % 3 if token < 256 else token for token in tokens])


@pytest.fixture(scope="module")
def model():
    module = GPT(num_layers=1, hidden_size=16, num_heads=2, max_length=64, vocab_size=258, init_std=0.5)
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    return Model(module, params, {}, Abc())


def shown(text, stops, size):
    """What is given out of a text that comes in chunks of `size` tokens, and the object that did."""
    stopped = StoppedText(BYTES, [256], stops)
    tokens, pieces = list(text.encode()), []
    for start in range(0, len(tokens), size):
        pieces.append(stopped.push(tokens[start : start + size], last=start + size >= len(tokens)))
    return pieces, stopped


@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize(
    "text, stops, expected, count",
    [
        ("one\n\ntwo", ["\n\n"], "one", 5),
        ("aab aaab!", ["aaab"], "aab ", 8),
        ("ab.ab:", ["ab:", "x"], "ab.", 6),
        ("first END", ["END", "st"], "fir", 5),
        ("na\u00efve \u20ac", ["\u20ac"], "na\u00efve ", 10),
        ("no stop E", ["END"], "no stop E", 9),
        ("halt", ["halt"], "", 4),
        ("plain", [], "plain", 5),
    ],
)
def test_text_ends_before_the_first_stop_string(text, stops, expected, count, size):
    pieces, stopped = shown(text, stops, size)
    assert "".join(pieces) == expected and stopped.num_tokens == count
    assert stopped.stopped == (expected != text)


def test_no_part_of_a_stop_string_is_given_out_before_it_is_certain():
    pieces, _ = shown("ab END", ["END"], 1)
    assert pieces == ["a", "b", " ", "", "", ""]
    pieces, _ = shown("ab ENOUGH", ["END"], 1)
    assert pieces == ["a", "b", " ", "", "", "ENO", "U", "G", "H"]


@pytest.mark.parametrize(
    "stop, message", [("x", r"got one string; write \['x'\]"), ([""], "not empty"), ([3], "not empty")]
)
def test_what_cannot_be_a_stop_string_is_refused(model, stop, message):
    with pytest.raises(InputError, match=message):
        model.generate(["a"], stop=stop)


def test_stop_strings_cut_texts_tokens_and_logprobs(model):
    prompts = ["one", "two", "three", "four", "five"]
    options = dict(max_new_tokens=30, temperature=1.0, seed=2)
    free = model.complete(prompts, **options)
    stop = ["ab", "ccc"]
    stopped = model.complete(prompts, stop=stop, batch_size=2, **options)
    assert {one.finish for one in stopped} == {"stop"}
    for before, after in zip(free, stopped):
        end = min(at for s in stop if (at := before.text.find(s)) >= 0)
        assert after.text == before.text[:end]
        assert after.tokens == before.tokens[: len(after.tokens)]
        text = Abc().decode(after.tokens)
        assert any(text.endswith(s) for s in stop) and len(after.logprobs) == len(after.tokens)
    pieces = [""] * 5
    for index, piece in model.stream(prompts, stop=stop, steps=1, **options):
        pieces[index] += piece
    assert pieces == [one.text for one in stopped] == model.generate(prompts, stop=stop, **options)


def test_samples_of_a_prompt_are_those_of_its_copies(model):
    options = dict(max_new_tokens=8, seed=1)
    sampled = model.generate(["x", "y"], num_samples=3, **options)
    assert len(sampled) == 6 and len(set(sampled)) > 2
    assert sampled == model.generate(["x", "x", "x", "y", "y", "y"], **options)
    assert sampled[3:4] == model.generate(["y"], **options)


def test_details_say_why_a_text_ended(model):
    plain = model.complete(["ab"], max_new_tokens=9, temperature=0)[0]
    assert plain.finish == "length" and len(plain.tokens) == len(plain.logprobs) == 9
    assert plain.text == Abc().decode(plain.tokens)
    stopped = model.complete(["ab"], max_new_tokens=9, temperature=0, stop_ids=[plain.tokens[4]])[0]
    assert stopped.finish == "stop" and stopped.tokens == plain.tokens[: plain.tokens.index(plain.tokens[4]) + 1]
    assert stopped.text == Abc().decode(stopped.tokens[:-1])
    assert model.complete(["a" * 60], max_new_tokens=20, temperature=0)[0].finish == "context"
    np.testing.assert_allclose(stopped.logprobs, plain.logprobs[: len(stopped.tokens)], atol=1e-5)


def test_the_engine_is_kept_until_the_parameters_change(model, capsys):
    engine = model.engine
    model.generate(["a"], max_new_tokens=2, progress="texts")
    assert "texts" in capsys.readouterr().err
    assert model.engine is engine
    model.kept.clear()
    assert model.engine is not engine


@pytest.mark.parametrize("name", ["max_new_tokens", "num_samples", "batch_size", "steps"])
def test_numbers_below_one_are_refused_by_name(model, name):
    with pytest.raises(InputError, match=f"{name} must be a whole number of at least 1, got 0"):
        model.generate(["a"], **{name: 0}) if name != "steps" else model.stream(["a"], steps=0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number of at least 1, got 2.5"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"seed": 2**32}, "seed must be below"),
        ({"stop_ids": 5}, "put it in a list"),
    ],
)
def test_values_that_no_run_can_use_are_refused(model, options, message):
    with pytest.raises(InputError, match=message):
        model.generate(["a"], **options)


def test_beams_as_texts(model):
    greedy = model.generate(["ab", "c"], max_new_tokens=6, temperature=0)
    one = model.beam_search(["ab", "c"], num_beams=1, max_new_tokens=6, length_penalty=0)
    assert [beams[0].text for beams in one] == greedy
    four = model.beam_search(["ab", "c"], num_beams=4, num_results=4, max_new_tokens=6, length_penalty=0)
    for (narrow,), wide in zip(one, four):
        scores = [beam.score for beam in wide]
        assert len(wide) == 4 and scores == sorted(scores, reverse=True) and scores[0] >= narrow.score - 1e-5


def test_an_unrolled_model_is_the_same_model_and_may_free_the_other(model):
    mine = Model(model.module, jax.tree.map(jnp.copy, model.params), {}, model.tokenizer)
    unrolled = mine.unrolled(donate=True)
    assert all(x.is_deleted() for x in jax.tree.leaves(mine.params["stack"]["blocks"]))
    assert unrolled.generate(["ab"], max_new_tokens=8, seed=3) == model.generate(["ab"], max_new_tokens=8, seed=3)
    assert unrolled.score([("ab", "c")])[0][0] == pytest.approx(model.score([("ab", "c")])[0][0], abs=1e-4)
    own = {id(x) for x in jax.tree.leaves(unrolled.params)}
    assert {id(x) for x in jax.tree.leaves(unrolled.engine.weights.params)} == own
