"""Drafts and what a model takes of them: the model's own law and text, in the engine's batches."""

import collections
import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare
from tiny_decoder import TinyDecoder, full_logits

from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import InputError, RunError
from fmjax.inference import engine_parts
from fmjax.inference.draft_options import drafted
from fmjax.inference.drafts import Drafted, DraftModel, EarlyExit, Heads, Lookup, look_up
from fmjax.inference.engine import Engine
from fmjax.inference.engine_requests import DEAD_END, PromptRequest, number_copies
from fmjax.inference.sampler import Sampling
from fmjax.inference.speculation import rejection
from fmjax.load import Model
from fmjax.models.draft_heads import DraftHeads
from fmjax.models.gpt import GPT
from fmjax.models.llama import Llama
from tests.quick_keys import quick_key

SIZES = dict(num_layers=2, hidden_size=32, intermediate_size=48, num_heads=4, vocab_size=40, max_length=64)
MODULES = {
    "llama": Llama(**SIZES, num_kv_heads=2),
    "windows": GPT(**SIZES, window=5, layer_pattern=("global", "local")),
    "other": Llama(**SIZES | dict(num_layers=1, hidden_size=16), num_kv_heads=1, window=6),
    "tiny": Llama(**SIZES | dict(vocab_size=4)),
    "tiny other": Llama(**SIZES | dict(vocab_size=4, num_layers=1, hidden_size=16)),
}
PROMPTS = [[1, 2, 3, 1, 2, 3, 1], [5], [9, 8], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4], [7, 7, 7]]
SAMPLED = Sampling(0.9, top_k=12, top_p=0.95, repetition_penalty=1.3)


@functools.cache
def made(name):
    module = MODULES[name]
    params = nn.unbox(jax.jit(module.init)(quick_key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    params = jax.tree.map(lambda x: x * (3 if "tiny" in name else 7), params)
    return Engine(module, params, batch_size=4, max_length=48), module, params


@functools.cache
def draft(name, tokens=3):
    """Random ones, which are wrong mostly: most of what they propose is not taken."""
    if name == "lookup":
        return Drafted(Lookup(tokens))
    if name == "layers":
        return Drafted(EarlyExit(1, tokens))
    if name == "heads":
        module = DraftHeads(3, 32)
        params = module.init(quick_key(1), jnp.zeros((1, 1), jnp.int32))["params"]
        params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(quick_key(2), x.shape), nn.unbox(params))
        return Drafted(Heads(module, tokens), params)
    engine = made(name)[0]
    return Drafted(DraftModel(engine.module, tokens), engine.weights)


def requests(prompts, max_new_tokens=12, sampling=Sampling(0.0), seed=0):
    copies = number_copies(prompts)
    return [PromptRequest(prompt, max_new_tokens, sampling, seed, copy) for prompt, copy in zip(prompts, copies)]


def texts(completions):
    return [(one.tokens, one.finish) for one in completions]


@pytest.mark.parametrize("certain", [(), ("draft",), ("target",)], ids=["drawn", "one-hot draft", "one-hot target"])
def test_rejection_leaves_the_targets_law(certain):
    """Two proposals; the law of the second depends on the first."""
    rows, rng = 60_000, np.random.default_rng(0)
    first, second = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5), 6)
    first = np.eye(5)[first.argmax()] if "target" in certain else first
    draft = rng.dirichlet(np.ones(5), 2)
    draft = np.eye(5)[draft.argmax(-1)] if "draft" in certain else draft
    proposed = np.stack([rng.choice(5, rows, p=p) for p in draft], axis=1)
    target = np.stack([np.broadcast_to(first, (rows, 5)), second[proposed[:, 0]], second[proposed[:, 1]]], axis=1)
    keys = jax.random.split(jax.random.key(3), (rows, 3))
    count = np.where(np.arange(rows) % 3 == 0, 1, 2)
    laws = np.broadcast_to(draft, (rows, 2, 5))
    arrays = (jnp.asarray(x, jnp.float32) for x in (target, laws))
    tokens, taken = map(np.asarray, jax.jit(rejection)(*arrays, proposed, count, keys))
    likely = first > 0
    counts = np.bincount(tokens[:, 0], minlength=5)
    assert not counts[~likely].any()
    if likely.sum() > 1:  # of one outcome there is nothing to test
        assert chisquare(counts[likely], first[likely] * rows).pvalue > 1e-3
    assert taken.max() == 2 and (taken <= count).all()
    for token in range(5):
        found = tokens[(taken >= 1) & (tokens[:, 0] == token), 1]
        if len(found) > 100:
            assert chisquare(np.bincount(found, minlength=5), second[token] * len(found)).pvalue > 1e-3
    expected = np.minimum(first, draft[0]).sum()  # equation 3 of Leviathan et al.
    assert (taken >= 1).mean() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    "name, by, cache", [("llama", "layers", "float"), ("windows", "lookup", "int8"), ("windows", "other", "float")]
)
def test_a_greedy_text_is_the_same_with_a_draft(name, by, cache):
    """Nine prompts of mixed lengths through four rows, which take different numbers of proposals and end at different
    times; up to the end of the context."""
    engine, module, params = made(name)
    prompts = [*PROMPTS, *([n, 2 * n, n] for n in range(2, 6))]
    wanted = [dataclasses.replace(r, max_new_tokens=5 + 11 * (i % 4)) for i, r in enumerate(requests(prompts))]
    plain = engine.generate(wanted, cache=cache)
    found = engine.generate(wanted, cache=cache, draft=draft(by))
    assert texts(found) == texts(plain)
    for one, other in zip(found, plain):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
        assert one.acceptance.drawn == len(one.tokens) - 1 and one.acceptance.passes <= one.acceptance.drawn


def test_a_stop_among_what_was_taken_ends_a_text():
    """The model is its own draft, so that all it proposes is taken."""
    engine, _, _ = made("llama")
    itself = Drafted(DraftModel(engine.module, 3), engine.weights)
    plain = engine.generate(requests(PROMPTS))
    for place in (2, 3, 4):
        stop = plain[0].tokens[place]
        found = engine.generate(requests(PROMPTS), stop_ids=[stop], draft=itself)
        assert texts(found) == texts(engine.generate(requests(PROMPTS), stop_ids=[stop]))
        assert all(one.acceptance.accepted == one.acceptance.proposed for one in found)


def test_a_draft_reads_to_the_end_of_its_context():
    """Learned positions: those behind the last have no embedding."""
    module = GPT(**SIZES | dict(num_layers=1, hidden_size=16, max_length=24))
    params = nn.unbox(jax.jit(module.init)(quick_key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    short = Engine(module, params)
    engine, wanted = made("llama")[0], requests(PROMPTS[:1], 18)
    assert engine.places(wanted[0]) == 24
    found = engine.generate(wanted, draft=Drafted(DraftModel(short.module, 3), short.weights))
    assert texts(found) == texts(engine.generate(wanted))


def test_what_is_proposed_for_certain_does_not_change_a_drawn_text():
    engine, _, _ = made("llama")
    wanted = requests(PROMPTS, 20, SAMPLED, 5)
    found = engine.generate(wanted, draft=draft("heads"))
    assert texts(found) == texts(engine.generate(wanted))
    assert sum(one.acceptance.accepted for one in found) > 0


def processed(logits, sampling, seen):
    """The law that a token is drawn by, in float64: penalty, temperature, top-k, top-p, min-p."""
    penalised = np.where(logits < 0, logits * sampling.repetition_penalty, logits / sampling.repetition_penalty)
    scores = np.where(np.isin(np.arange(len(logits)), list(seen)), penalised, logits)
    p = np.exp((scores - scores.max()) / sampling.temperature)
    order = np.argsort(-p)
    p[order[sampling.top_k :]] = 0
    p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= sampling.top_p]] = 0
    p[p < sampling.min_p * p.max()] = 0
    return p / p.sum()


@pytest.mark.parametrize("by", ["layers", "tiny other"])
def test_drawn_texts_have_the_models_law_and_log_probabilities(by):
    """All texts of four tokens of a vocabulary of four, by their frequencies in 2,000; a greedy one in a hundred among
    them, which its neighbours do not see."""
    engine, module, params = made("tiny")
    sampling = Sampling(1.4, top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=1.2)
    copies = 2000
    wanted = [PromptRequest([1, 2], 4, sampling, 7, copy) for copy in range(copies)]
    wanted[::100] = [PromptRequest([1, 2], 4)] * len(wanted[::100])
    found = engine.generate(wanted, batch_size=64, draft=draft(by))
    (greedy,) = {tuple(one.tokens) for one in found[::100]}
    assert list(greedy) == engine.generate([PromptRequest([1, 2], 4)])[0].tokens
    drawn = [one for number, one in enumerate(found) if number % 100]
    law, logprobs = {}, {}
    for text in itertools.product(range(4), repeat=4):
        logits = full_logits(module, params, [1, 2, *text])
        steps = [processed(logits[1 + n], sampling, {1, 2, *text[:n]})[token] for n, token in enumerate(text)]
        law[text] = np.prod(steps)
        scaled = logits[1:-1] / 1.4
        logprobs[text] = [row[t] - np.log(np.exp(row).sum()) for row, t in zip(scaled, text)]
    likely = [text for text in law if law[text] * len(drawn) > 5]
    counted = collections.Counter(tuple(one.tokens) for one in drawn)
    counts = np.array([counted[text] for text in likely])
    expected = np.array([law[text] for text in likely]) * len(drawn)
    rest = len(drawn) - counts.sum(), len(drawn) - expected.sum()
    assert len(likely) > 10
    assert chisquare([*counts, rest[0]], [*expected, rest[1]]).pvalue > 1e-3
    for one in drawn[:60]:
        np.testing.assert_allclose(one.logprobs, logprobs[tuple(one.tokens)], atol=1e-4)
    worth = sum((one.acceptance for one in drawn[1:]), drawn[0].acceptance)
    assert 0.1 < worth.accepted_share < 0.95 and 1 < worth.tokens_a_pass < 4


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


def test_look_up_takes_the_longest_then_the_latest_match():
    rng = np.random.default_rng(0)
    text, last = rng.integers(0, 3, (40, 24)), rng.integers(0, 24, 40)
    text[0], last[0] = 7, 9  # a loop of one token
    tokens, same = map(np.asarray, jax.jit(look_up, static_argnums=2)(text, last, 6))
    for row, end, new, count in zip(text, last, tokens, same):
        length = lambda place: next((n for n in range(8) if place < n or row[place - n] != row[end - n]), 8)
        best = max(((length(place), place) for place in range(end)), default=(0, 0))
        assert count == best[0]
        if count:
            around = [*row[: end + 1]]
            for _ in range(6):
                around.append(around[len(around) - (end - best[1])])
            assert new.tolist() == around[end + 1 :]


def test_passes_by_turns_draw_the_same(monkeypatch):
    """What large stacks on CPUs do; a pass without proposals reads one token."""
    engine, module, params = made("llama")
    monkeypatch.setattr(engine_parts, "PART_BYTES", 0)
    monkeypatch.setattr(engine_parts, "PART_LAYERS", (1,))
    large = Engine(module, params, batch_size=4, max_length=48)
    wanted = requests(PROMPTS, 20, SAMPLED, 5)
    assert large.part == 1
    assert texts(large.generate(wanted, draft=draft("lookup"))) == texts(engine.generate(wanted))


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


def model(name, tokenizer=None):
    _, module, params = made(name)
    return Model(module, params, {}, tokenizer)


def test_drafts_by_name_and_of_models(caplog):
    whole, other, heads = model("llama"), model("other"), draft("heads")
    made = {one: drafted(whole, one, 2).draft for one in ("lookup", "layers:1")}
    assert made == {"lookup": Lookup(2), "layers:1": EarlyExit(1, 2)}
    assert drafted(whole, Model(heads.draft.module, heads.weights), None) == heads
    assert drafted(whole, other, None).draft == DraftModel(other.engine.module, 3)
    plain = whole.complete(PROMPTS, max_new_tokens=12, temperature=0)
    with caplog.at_level("INFO", "fmjax.inference.continuations"):
        found = whole.complete(PROMPTS, max_new_tokens=12, temperature=0, draft="layers:1", draft_tokens=3)
    assert [one.tokens for one in found] == [one.tokens for one in plain]
    expected = {f"draft of continuation {number}: {one.acceptance}" for number, one in enumerate(found)}
    assert set(caplog.messages) == expected


class Renamed(ByteTokenizer):
    fingerprint = "another"


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(draft="lookp"), "'lookp': expected 'lookup'.*did you mean 'lookup'"),
        (dict(draft="runs/small"), "fmjax.load"),
        (dict(draft="layers:0"), "K is a whole number of at least 1"),
        (dict(draft="layers:2"), "the model has 2 layers"),
        (dict(draft=3), "expected 'lookup'"),
        (dict(draft_tokens=2), "of a draft by name or a model"),
        (dict(draft=Drafted(Lookup()), draft_tokens=2), "of a draft by name or a model"),
        (dict(draft="lookup", draft_tokens=0), "draft_tokens.*0"),
        (dict(draft=lambda: model("tiny")), r"another vocabulary.*\(4 and 40 tokens\)"),
        (dict(draft=lambda: model("other", Renamed())), "another vocabulary"),
        (dict(draft=lambda: Model(DraftHeads(2, 8), {})), "8 numbers.*gives 32"),
        (dict(draft=lambda: Model(DraftHeads(2, 32), {}), draft_tokens=3), "has 2 heads"),
        (dict(draft=lambda: Model(TinyDecoder(vocab_size=40), {})), "gives nothing back"),
        (dict(draft=lambda: short(), max_new_tokens=30), "prompt 0.*31 places.*context of 24"),
    ],
)
def test_drafts_that_do_not_fit_are_refused(options, message):
    options = {name: value() if callable(value) else value for name, value in options.items()}
    with pytest.raises(InputError, match=message):
        model("llama", ByteTokenizer()).complete([[5, 6]], **options)


def short():
    module = Llama(**SIZES | dict(max_length=24))
    return Model(module, made("llama")[2], {}, ByteTokenizer())


def test_a_draft_that_is_damaged_is_an_error():
    engine, _, _ = made("llama")
    found = draft("other")
    damaged = jax.tree.map(lambda x: x * jnp.nan, found.weights)
    with pytest.raises(RunError, match="prompt 0: the draft's logits are not finite"):
        engine.generate(requests(PROMPTS[:1]), draft=Drafted(found.draft, damaged))
    _, module, params = made("llama")
    with pytest.raises(InputError, match="TinyDecoder cannot take a draft"):
        Engine(TinyDecoder(), {}, max_length=8).run([PromptRequest([1])], draft=Drafted(Lookup()))
