"""Continuations held to a language, against every string of a tiny vocabulary written out."""

import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from small_models import byte_model
from tiny_decoder import TinyDecoder, full_logits

from fmjax.data.tokenizers.base import Tokenizer
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import InputError
from fmjax.inference import constraints, engine_programs
from fmjax.inference.allowed_tokens import AllowedTokens
from fmjax.inference.continuations import Continuations, Options, complete
from fmjax.inference.engine import Engine
from fmjax.inference.engine_requests import PromptRequest
from fmjax.inference.sampler import Sampling, Settings, Uses, sample
from fmjax.tasks.answers import answer
from fmjax.tasks.protocol import Generate
from tests.quick_keys import quick_key

PIECES = ["", "a", "b", "ab", "ba", "aa", "1", "12", "2", '{"', '": ', "}", "b"]
"""Token 0 ends a text; the last one is spelt as another."""


class Pieces(Tokenizer):
    """A vocabulary that says nothing of how texts are cut."""

    vocab_size, eos_id, source, fingerprint = len(PIECES), 0, "pieces", "pieces"

    def decode(self, ids):
        return "".join(PIECES[i] for i in ids)

    def token_bytes(self):
        return [piece.encode() for piece in PIECES]


TOKENIZER = Pieces()
OBJECT = {
    "type": "object", "properties": {"a": {"enum": [1, 12, 21]}}, "required": ["a"], "additionalProperties": False,
}  # fmt: skip


def nested(depth):
    return {"a" * n + "b" * n for n in range(1, depth)}


def matches(pattern, longest):
    texts = ("".join(t) for n in range(longest + 1) for t in itertools.product("ab12", repeat=n))
    return {text for text in texts if re.fullmatch(pattern, text)}


LANGUAGES = {
    "choices": (constraints.choices(["a", "ab", "abba", "b2", "a"]), {"a", "ab", "abba", "b2"}),
    "regex": (constraints.regex("(ab?){1,3}|b(1|12)?"), matches("(ab?){1,3}|b(1|12)?", 6)),
    "stars": (constraints.regex("(ab|a1)*2?"), matches("(ab|a1)*2?", 8)),
    "json": (constraints.json_schema(OBJECT), {json.dumps({"a": n}) for n in (1, 12, 21)}),
    "lark": (constraints.lark('start: "a" start "b" | "ab"'), nested(9)),
}
FOLLOWED = {"stars": 5, "lark": 5}
"""Of languages without end texts of at most so many characters are followed."""


def goes_on(texts, prefix):
    """Tokens that some text goes on with after a prefix."""
    wanted = {text[: n + 1] for text in texts for n in range(len(text))}
    return {i for i, piece in enumerate(PIECES) if piece and prefix + piece in wanted}


def words_to_ids(words):
    return set(np.flatnonzero(np.unpackbits(np.asarray(words, "<u4").view(np.uint8), bitorder="little")).tolist())


@pytest.mark.parametrize("name", LANGUAGES)
def test_what_is_allowed_is_what_some_text_goes_on_with(name):
    """After every sequence of tokens that begins a text, however it is cut into tokens."""
    constraint, texts = LANGUAGES[name]
    language = constraints.language(constraint, TOKENIZER)
    waiting, followed = [()], 0
    while waiting:
        ids = waiting.pop()
        walk, prefix = language.begin(), TOKENIZER.decode(ids)
        for id in ids:
            walk.take(id)
        expected = goes_on(texts, prefix)
        assert words_to_ids(walk.allowed()) & set(range(len(PIECES))) == expected, (ids, prefix)
        assert walk.may_end() == (prefix in texts), (ids, prefix)
        followed += 1
        waiting += [(*ids, id) for id in expected if len(prefix) + len(PIECES[id]) <= FOLLOWED.get(name, 20)]
    assert followed > 5


def test_a_draw_is_of_the_restricted_distribution():
    """Exact where one token is left; chi-square against the renormalised probabilities of the others."""
    logits = jax.random.normal(jax.random.key(0), (1, 40)) * 2
    ids = [3, 31, 32, 39]
    words = np.zeros((2, 2), np.uint32)
    for id in ids:
        words[0, id // 32] |= np.uint32(1 << id % 32)
    words[1, 1] = 1 << 7
    count = 4000
    settings = Settings(*(np.full(count, value) for value in Sampling(0.7).values))
    draw = jax.jit(lambda keys, words: sample(
        jnp.broadcast_to(logits, (count, 40)), keys, settings, Uses(draw=True, allowed=True), allowed=words
    ))  # fmt: skip
    keys = jax.random.split(jax.random.key(1), count)
    tokens, logprobs = draw(keys, jnp.broadcast_to(words[0], (count, 2)))
    p = np.exp(np.asarray(logits[0], np.float64) / 0.7)
    expected = p[ids] / p[ids].sum() * count
    found = np.asarray([(np.asarray(tokens) == id).sum() for id in ids])
    assert found.sum() == count and stats.chisquare(found, expected).pvalue > 1e-3
    np.testing.assert_allclose(logprobs[0], np.log(p / p.sum())[tokens[0]], rtol=1e-5)  # the model's own
    assert set(np.asarray(draw(keys, jnp.broadcast_to(words[1], (count, 2)))[0]).tolist()) == {39}


@pytest.fixture(scope="module")
def tiny():
    module = TinyDecoder()
    params = jax.jit(module.init)(quick_key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    return Engine(module, params, batch_size=32, max_length=32), module, params


def law(module, params, prompt, texts):
    """{tokens: probability} of every way to write a text, the model's restricted at each step."""
    found, waiting = {}, [((), 1.0)]
    while waiting:
        ids, p = waiting.pop()
        prefix = TOKENIZER.decode(ids)
        allowed = sorted(goes_on(texts, prefix) | ({0} if prefix in texts else set()))
        logits = full_logits(module, params, [*prompt, *ids])[-1][allowed]
        share = np.exp(logits - logits.max())
        for id, one in zip(allowed, share / share.sum()):
            if id == 0:
                found[(*ids, 0)] = p * one
            else:
                waiting.append(((*ids, id), p * one))
    return found


def test_continuations_have_the_law_of_the_model_restricted_at_each_step(tiny):
    engine, module, params = tiny
    constraint, texts = LANGUAGES["choices"]
    count = 1000
    options = Options(8, constraint=constraint, num_samples=count, batch_size=32)
    found = complete(Continuations(engine, TOKENIZER, [[3, 1]], options))
    expected = law(module, params, [3, 1], texts)
    assert abs(sum(expected.values()) - 1) < 1e-9
    keys = sorted(expected, key=expected.get, reverse=True)
    seen = [tuple(one.tokens) for one in found]
    assert set(seen) <= set(keys) and {one.finish for one in found} == {"stop"}
    assert {one.text for one in found} <= texts
    observed, wanted = np.asarray([[seen.count(key), expected[key] * count] for key in keys]).T
    large = wanted >= 5
    observed, wanted = ([*x[large], x[~large].sum()] for x in (observed, wanted))
    assert stats.chisquare(observed, np.asarray(wanted) * count / sum(wanted)).pvalue > 1e-3


def test_rows_have_languages_of_their_own_beside_rows_with_none(tiny):
    """Greedy, as the full forward pass over what is allowed says; the others are not changed, and compile nothing."""
    engine, module, params = tiny
    prompts = [[3, 1], [5], [2, 2, 7], [9, 8], [4]]
    held = [LANGUAGES["json"][0], None, LANGUAGES["regex"][0], LANGUAGES["lark"][0], None]
    free = complete(Continuations(engine, TOKENIZER, prompts, Options(9, temperature=0)))
    found = complete(Continuations(engine, TOKENIZER, prompts, Options(9, temperature=0, constraint=held)))
    before = dict(engine_programs.TRACES)
    assert complete(Continuations(engine, TOKENIZER, prompts, Options(9, temperature=0))) == free
    assert dict(engine_programs.TRACES) == before
    for index, name in enumerate(("json", None, "regex", "lark", None)):
        if name is None:
            assert found[index].tokens == free[index].tokens
            continue
        texts, ids = LANGUAGES[name][1], []
        while len(ids) < 9 and (not ids or ids[-1]):
            prefix = TOKENIZER.decode(ids)
            allowed = sorted(goes_on(texts, prefix) | ({0} if prefix in texts else set()))
            logits = full_logits(module, params, [*prompts[index], *ids])[-1]
            ids.append(max(allowed, key=lambda id: logits[id]))
        assert found[index].tokens == ids


def test_a_text_cut_short_says_so(tiny):
    (found,) = complete(Continuations(tiny[0], TOKENIZER, [[1]], Options(1, constraint=LANGUAGES["json"][0])))
    assert (found.finish, found.text) == ("length", '{"')


def test_what_cannot_be_kept_is_refused(tiny):
    engine = tiny[0]
    with pytest.raises(InputError, match="stop strings would cut off"):
        Options(stop=["x"], constraint=constraints.regex("a"))
    with pytest.raises(InputError, match="must be made by json_schema, regex, choices or lark"):
        Options(constraint="a|b")
    with pytest.raises(InputError, match="one for each of 2 prompts, got 1"):
        Continuations(engine, TOKENIZER, [[1], [2]], Options(constraint=[constraints.regex("a")]))
    with pytest.raises(InputError, match=r"the regex '\(' is not understood"):
        constraints.language(constraints.regex("("), TOKENIZER)
    with pytest.raises(InputError, match="the json schema .* is not understood"):
        constraints.language(constraints.json_schema({"type": "nonsense"}), TOKENIZER)
    with pytest.raises(InputError, match="a choice is a text that is not empty"):
        constraints.choices(["a", ""])
    with pytest.raises(InputError, match="needs a token that ends the text"):
        engine.run([PromptRequest([1], language=constraints.language(constraints.regex("a"), TOKENIZER))])
    with pytest.raises(InputError, match="'xa' cannot be spelt"):
        constraints.language(constraints.choices(["ab", "xa"]), TOKENIZER)
    with pytest.raises(InputError, match="ends inside an escape"):
        constraints.regex("a\\")


def test_a_row_that_no_token_goes_on_with_ends_alone(tiny, caplog):
    held = [constraints.regex(pattern) for pattern in ("x", "(ab?){3}", "ax|ay")]
    found = complete(Continuations(tiny[0], TOKENIZER, [[1], [2], [3]], Options(9, temperature=0, constraint=held)))
    assert [one.finish for one in found] == ["dead_end", "stop", "dead_end"]
    assert (found[0].text, found[2].text) == ("", "a") and re.fullmatch("(ab?){3}", found[1].text)
    assert "prompt 0: after 0 new tokens no token" in caplog.text and "prompt 2: after 1 new tokens" in caplog.text
    (alone,) = complete(Continuations(tiny[0], TOKENIZER, [[3]], Options(9, constraint=held[0])))
    assert (alone.finish, alone.tokens) == ("dead_end", [])


class Spaced(Pieces):
    """As SentencePiece: _ spells a space, and those of a first token are dropped."""

    pieces = ["", "_a", "b", "_", "a", '_{"', 'a": ', "1", "}", "{", '"a', '": 1', "__", "__a"]
    vocab_size, source, fingerprint = len(pieces), "spaced", "spaced"

    def decode(self, ids):
        first, *others = [self.pieces[i] for i in ids if i] or [""]
        return first.replace("_", "") + "".join(others).replace("_", " ")

    def token_bytes(self):
        return [piece.replace("_", " ").encode() for piece in self.pieces]


@pytest.mark.parametrize("name", ["choices", "regex", "lark", "json_schema"])
def test_the_space_that_decoding_drops_is_none_of_the_text(name):
    tokenizer = Spaced()
    assert constraints.drops_space(tokenizer, []) and constraints.drops_space(tokenizer, [0])
    assert not constraints.drops_space(tokenizer, [4]) and not constraints.drops_space(TOKENIZER, [])
    schema = OBJECT | {"properties": {"a": {"const": 1}}}
    texts = {'{"a": 1}'} if name == "json_schema" else {"a", " ab"}
    make = {"choices": ["a", " ab"], "regex": "a| ab", "lark": 'start: "a" | " ab"', "json_schema": schema}
    language = constraints.language(getattr(constraints, name)(make[name]), tokenizer, spaced=True)
    waiting, found = [()], set()
    while waiting:
        ids = waiting.pop()
        walk = language.begin()
        for id in ids:
            walk.take(id)
        found |= {tokenizer.decode(ids)} if walk.may_end() else set()
        waiting += [(*ids, id) for id in words_to_ids(walk.allowed()) if 0 < id < tokenizer.vocab_size]
    assert found == texts


def test_stop_tokens_are_allowed_where_a_text_may_end_alone():
    """Also one that is spelt as text; banned ones never are."""
    language = constraints.language(constraints.regex("ab?"), TOKENIZER)
    tokens, walk = AllowedTokens(TinyDecoder(), 13, [12], [0, 2]), language.begin()
    assert words_to_ids(tokens.of(walk)) == {1, 3}
    walk.take(1)
    assert words_to_ids(tokens.of(walk)) == {0, 2}
    assert words_to_ids(tokens.of(None)) >= set(range(13))


def test_a_task_may_limit_answers_to_choices():
    asked = [("ab", ("yes", "no")), ("b", ("left", "right", "none")), ("ab", ("x",))]
    requests = [Generate(prompt, 8, choices=choices) for prompt, choices in asked]
    for answered, (_, choices) in zip(answer(requests, byte_model()), asked):
        assert answered in choices


@pytest.mark.parametrize("text", ['{"id": 7}', "no", "zwölf €"])
def test_bytes_spell_any_text(text):
    language = constraints.language(constraints.choices(['{"id": 7}', "no", "zwölf €"]), ByteTokenizer())
    walk = language.begin()
    for byte in text.encode():
        assert byte in words_to_ids(walk.allowed())
        walk.take(byte)
    assert walk.may_end()
