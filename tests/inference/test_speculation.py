"""Drafts and what a model takes of them: the model's own law and text, in the engine's batches."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_decoder import TinyDecoder

from fmjax.errors import InputError, RunError
from fmjax.inference import draft_width, engine_parts
from fmjax.inference.draft_options import drafted
from fmjax.inference.drafts import Drafted, DraftModel, EarlyExit, Lookup
from fmjax.inference.engine import Engine
from fmjax.inference.engine_requests import DEAD_END, PromptRequest
from fmjax.inference.sampler import Sampling
from fmjax.load import Model
from fmjax.models.gpt import GPT
from tests.quick_keys import quick_key
from tests.small_drafts import PROMPTS, SAMPLED, SIZES, draft, made, model, requests, texts


def itself():
    """A draft of which all is taken where the model is the same."""
    engine, _, _ = made("llama")
    return Drafted(DraftModel(engine.module, 3), engine.weights)


@pytest.mark.parametrize(
    "name, by, cache", [("llama", "layers", "int4"), ("windows", "lookup", "int8"), ("windows", "other", "int8")]
)
def test_a_greedy_text_is_the_same_with_a_draft(name, by, cache):
    """Nine prompts of mixed lengths through four rows, which take different numbers of proposals and end at different
    times; up to the end of the context. Whatever the cache holds them in; look-up proposes up to 20."""
    engine, _, _ = made(name)
    prompts = [*PROMPTS, *([n, 2 * n, n] for n in range(2, 6))]
    wanted = [dataclasses.replace(r, max_new_tokens=5 + 11 * (i % 4)) for i, r in enumerate(requests(prompts))]
    plain = engine.generate(wanted, cache=cache)
    found = engine.generate(wanted, cache=cache, draft=draft(by, 20 if by == "lookup" else 3))
    assert texts(found) == texts(plain)
    for one, other in zip(found, plain):
        if cache != "int4":  # a pass over several tokens rounds otherwise, and a step of four bits is large
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
        assert one.acceptance.drawn == len(one.tokens) - 1 and one.acceptance.passes <= one.acceptance.drawn


def test_a_stop_among_what_was_taken_ends_a_text():
    """The model is its own draft, so that all it proposes is taken."""
    engine, _, _ = made("llama")
    plain = engine.generate(requests(PROMPTS))
    for place in (2, 3, 4):
        stop = plain[0].tokens[place]
        found = engine.generate(requests(PROMPTS), stop_ids=[stop], draft=itself())
        assert texts(found) == texts(engine.generate(requests(PROMPTS), stop_ids=[stop]))
        assert all(one.acceptance.accepted == one.acceptance.proposed for one in found)


def test_a_draft_reads_to_the_end_of_its_context():
    """Learned positions: those behind the last have no embedding."""
    module = GPT(**SIZES | dict(num_layers=1, hidden_size=16, max_length=24))
    params = nn.unbox(jax.jit(module.init)(quick_key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    short = Engine(module, params)
    engine, wanted = made("llama")[0], requests(PROMPTS[:1] * 4, 18)
    assert engine.places(wanted[0]) == 24
    found = engine.generate(wanted, draft=Drafted(DraftModel(short.module, 3), short.weights))
    assert texts(found) == texts(engine.generate(wanted))


def test_what_is_proposed_for_certain_does_not_change_a_drawn_text():
    engine, _, _ = made("llama")
    wanted = requests(PROMPTS, 20, SAMPLED, 5)
    found = engine.generate(wanted, draft=draft("heads"))
    assert texts(found) == texts(engine.generate(wanted))
    assert sum(one.acceptance.accepted for one in found) > 0


def test_the_seed_fixes_a_drawn_text_whatever_the_batch_and_the_length_around_it():
    engine, _, _ = made("llama")
    wanted = requests(PROMPTS, 14, SAMPLED, 5)
    together = engine.generate(wanted, draft=draft("other"))
    longer = [dataclasses.replace(one, max_new_tokens=22) for one in wanted[::-1]]
    others = requests([[4, n] for n in range(5)], 7, Sampling(0.7, repetition_penalty=1.3), 6)
    mixed = engine.generate([one for pair in zip(others, longer) for one in pair], steps=3, draft=draft("other"))
    assert [one.tokens[:14] for one in mixed[1::2]][::-1] == [one.tokens for one in together]
    again = engine.generate(requests(PROMPTS, 14, SAMPLED, 6), draft=draft("other"))
    assert texts(again) != texts(together)


def test_passes_by_turns_draw_the_same_as_wide_as_pays(monkeypatch):
    """What large stacks on CPUs do; a pass that reads no proposals reads one token a row."""
    engine, module, params = made("llama")
    monkeypatch.setattr(engine_parts, "PART_BYTES", 0)
    monkeypatch.setattr(engine_parts, "PART_LAYERS", (1,))
    large = Engine(module, params, batch_size=4, max_length=48)
    wanted = requests(PROMPTS, 20, SAMPLED, 5)
    assert large.part == 1
    plain = texts(engine.generate(wanted))
    read = []
    for token in (0.0, 1.0):  # what a pass takes longer for each token
        monkeypatch.setattr(draft_width, "TOKEN", token)
        found = large.generate(wanted, draft=draft("lookup"))
        assert texts(found) == plain
        read.append(sum(one.acceptance.proposed for one in found))
    assert read[0] > 0 == read[1]


class Rising:
    """A language: each token is larger than the one before it by one or two; after 9 or more nothing goes on."""

    def __init__(self, at=0):
        self.at = at

    def begin(self):
        return Rising()

    copy = lambda self: Rising(self.at)

    def allowed(self):
        bits = sum(1 << (self.at + step) for step in (1, 2)) if self.at < 9 else 0
        return np.array([bits & (2**32 - 1), bits >> 32], np.uint32)

    def may_end(self):
        return False

    def take(self, token):
        assert token - self.at in (1, 2)
        self.at = token


@pytest.mark.parametrize("by", ["lookup", "other"])
def test_rows_held_to_a_language_and_others_share_a_batch(by):
    engine, _, _ = made("llama")
    wanted = requests(PROMPTS, 12, Sampling(1.0), 5)
    wanted[::2] = [dataclasses.replace(one, language=Rising()) for one in wanted[::2]]
    found = engine.generate(wanted, stop_ids=[39], draft=draft(by))
    if by == "lookup":
        assert texts(found) == texts(engine.generate(wanted, stop_ids=[39]))
    for one in found[::2]:
        assert one.finish == DEAD_END and set(np.diff([0, *one.tokens])) <= {1, 2} and one.tokens[-1] >= 9


def test_drafts_by_name_and_of_models(caplog):
    whole, other, heads = model("llama"), model("other"), draft("heads")
    made = {one: drafted(whole, one, 2).draft for one in ("lookup", "layers:1")}
    assert made == {"lookup": Lookup(2), "layers:1": EarlyExit(1, 2)}
    assert drafted(whole, Model(heads.draft.module, heads.weights), None) == heads
    assert drafted(whole, other, None).draft == DraftModel(other.engine.module, 3)
    options = dict(max_new_tokens=12, temperature=0, batch_size=4, cache_length=48, cache="int4")
    plain = whole.complete(PROMPTS, **options)
    with caplog.at_level("INFO", "fmjax.inference.continuations"):
        found = whole.complete(PROMPTS, **options, draft="layers:1", draft_tokens=3)
    assert [one.tokens for one in found] == [one.tokens for one in plain]
    expected = {f"draft of continuation {number}: {one.acceptance}" for number, one in enumerate(found)}
    assert set(caplog.messages) == expected


def test_a_draft_that_is_damaged_is_an_error():
    engine, _, _ = made("llama")
    damaged = jax.tree.map(lambda x: x * jnp.nan, itself().weights)
    with pytest.raises(RunError, match="prompt 0: the draft's logits are not finite"):
        engine.generate(requests(PROMPTS), draft=Drafted(itself().draft, damaged))
    with pytest.raises(InputError, match="TinyDecoder cannot take a draft"):
        Engine(TinyDecoder(), {}, max_length=8).run([PromptRequest([1])], draft=Drafted(Lookup()))
