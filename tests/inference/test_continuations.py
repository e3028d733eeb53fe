"""Texts: stop strings, samples, details, and what is given out as the tokens come."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import InputError
from fmjax.inference.text_stream import StoppedText
from fmjax.load import Model
from fmjax.models.gpt import GPT
from tests.quick_keys import quick_key

BYTES = ByteTokenizer()


class Abc(ByteTokenizer):
    """Bytes, of which a continuation has only a, b and c, so that short strings occur in it."""

    def decode(self, tokens):
        return super().decode([97 + token % 3 if token < 256 else token for token in tokens])


@pytest.fixture(scope="module")
def model():
    module = GPT(num_layers=1, hidden_size=16, num_heads=2, max_length=64, vocab_size=258, init_std=0.5)
    params = nn.unbox(jax.jit(module.init)(quick_key(0), jnp.zeros((1, 4), jnp.int32))["params"])
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


@pytest.mark.parametrize("text", ["\u20ac", "\u00e9!", "a\U0001f600b"])
@pytest.mark.parametrize("stops", [[], ["END"]])
def test_a_prompt_that_ends_inside_a_character_loses_no_text(text, stops):
    tokens = list(f"so {text}".encode())
    for border in range(2, len(tokens)):
        prompt, rest = tokens[:border], tokens[border:]
        pieces = [StoppedText(BYTES, prompt, stops) for _ in range(2)]
        at_once = pieces[0].push(rest, last=True)
        one_by_one = "".join(pieces[1].push([t], last=i == len(rest) - 1) for i, t in enumerate(rest))
        whole = bytes(prompt).decode(errors="ignore")
        assert at_once == one_by_one == f"so {text}"[len(whole) :]
    # A sign that is the prompt's own is no part of what follows.
    known = StoppedText(BYTES, list("so \ufffd".encode()) + tokens[3:4], stops)
    assert known.push(tokens[4:], last=True) == (text if tokens[3] >= 128 else text[1:])


def test_without_a_tokenizer_token_ids_give_token_ids(model):
    without = Model(model.module, model.params)
    ids = [list(b"ab"), np.array([99, 100])]
    options = dict(max_new_tokens=6, seed=1, num_samples=2)
    drawn = without.complete(ids, **options)
    assert [one.tokens for one in drawn] == [one.tokens for one in model.complete(ids, stop_ids=[], **options)]
    assert {one.text for one in drawn} == {""} and {one.finish for one in drawn} == {"length"}
    beams, known = (m.beam_search(ids, num_beams=2, max_new_tokens=4) for m in (without, model))
    assert [b.tokens for (b,) in beams] == [b.tokens for (b,) in known] and beams[0][0].text == ""
    for call in (without.generate, without.stream):
        with pytest.raises(InputError, match="no tokenizer.*Model.complete"):
            call(ids)
    with pytest.raises(InputError, match="no tokenizer"):
        without.complete(["ab"])
    with pytest.raises(InputError, match="use stop_ids"):
        without.complete(ids, stop=["x"])


@pytest.mark.parametrize(
    "prompts, message",
    [
        ([1, 2, 3], "prompt 0 must be a text or a list of token ids, got 1"),
        (["a", b"x"], "prompt 1 must be .*b'x'"),
        ([[1.5]], "prompt 0 must be"),
        (["a", None], "prompt 1 must be"),
        (5, "expected a list of texts, got 5"),
        ("a", "put it in a list"),
    ],
)
def test_what_is_no_prompt_is_refused(model, prompts, message):
    with pytest.raises(InputError, match=message):
        model.generate(prompts)


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
        ({"seed": -1}, "seed must be a whole number from 0 to 4294967295, got -1"),
        ({"seed": 2**32}, "seed must be a whole number from 0"),
        ({"stop_ids": 5}, "put it in a list"),
        ({"copies": 5}, "copies must be a list"),
        ({"copies": [-1]}, "copy must be a whole number from 0"),
        ({"copies": [2**32]}, "copy must be a whole number from 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"batch_size": -1}, "batch_size must be a whole number"),
        ({"temperature": None}, "temperature must be"),
        ({"temperature": "1"}, "temperature must be"),
        ({"top_k": "2"}, "top_k must be"),
        ({"top_k": float("nan")}, "top_k must be"),
        ({"top_k": 2.5}, "top_k must be"),
        ({"top_k": 2**31}, "top_k must be"),
        ({"top_p": "1"}, "top_p must be"),
        ({"min_p": None}, "min_p must be"),
        ({"repetition_penalty": "1"}, "repetition_penalty must be"),
        ({"cache_length": 0}, "cache_length must be"),
        ({"cache_length": 65}, "cache_length must be a whole number from 1 to 64"),
        ({"cache_length": 10}, "cache_length=10 is less than the 64 places"),
    ],
)
def test_values_that_no_run_can_use_are_refused(model, options, message):
    with pytest.raises(InputError, match=message):
        model.generate(["a"], **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_beams": 2.5}, "num_beams must be a whole number of at least 1, got 2.5"),
        ({"num_beams": 0}, "num_beams must be"),
        ({"num_beams": 259}, "num_beams=259 is more than the vocabulary's 258 tokens"),
        ({"num_results": 1.5}, "num_results must be"),
        ({"num_results": 0}, "num_results must be"),
        ({"num_results": 5}, "num_results must be from 1 to num_beams = 4"),
        ({"batch_size": 2.5}, "batch_size must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"max_new_tokens": 0}, "max_new_tokens must be"),
        ({"length_penalty": "1"}, "length_penalty must be"),
    ],
)
def test_values_that_no_beam_search_can_use_are_refused(model, options, message):
    with pytest.raises(InputError, match=message):
        model.beam_search(["a"], **options)


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
