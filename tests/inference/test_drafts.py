"""The laws of what drafts propose and a model takes, what look-up finds, how much is read, and what is refused."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare
from tiny_decoder import TinyDecoder

from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import InputError
from fmjax.inference.draft_width import Width
from fmjax.inference.drafts import Drafted, Lookup, look_up
from fmjax.inference.engine_requests import PromptRequest
from fmjax.inference.sampler import Sampling
from fmjax.inference.speculation import rejection
from fmjax.load import Model
from fmjax.models.draft_heads import DraftHeads
from fmjax.models.llama import Llama
from tests.small_drafts import SIZES, draft, made, model


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
    every = list(itertools.product(range(4), repeat=4))
    rows = jax.jit(module.apply)({"params": params}, jnp.asarray([[1, 2, *text] for text in every]))
    for text, logits in zip(every, np.asarray(rows, np.float64)):
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


def test_a_pass_is_as_wide_as_pays():
    """By how many rows it has, how much they propose, and what became of proposals."""
    chosen = lambda *counts: Width(15).of(np.array(counts), np.ones(len(counts), bool))
    assert [chosen(0), chosen(3), chosen(15), chosen(0, 0, 0, 0)] == [0, 3, 15, 0]
    assert chosen(3, 0, 0, 0) == 0, "a row that gains little would hold up three"
    assert chosen(15, 15, 15, 15) == 15 and chosen(3, 3, 3, 3) == 3
    width, one, wrong = Width(15), np.array([3]), 0
    last = None
    for _ in range(200):  # all wrong: it is tried now and then
        read = width.of(one, np.array([True]), last)
        last = one, np.array([read]), np.array([0])
        wrong += read > 0
    assert 4 <= wrong <= 20
    for _ in range(3):
        width.of(one, np.array([True]), (one, one, one))
    assert width.of(one, np.array([True])) == 3
    assert width.of(np.array([7]), np.array([True])) == 7, "what is proposed of a longer match is known for itself"
    assert Width(2).of(np.array([2]), np.array([True])) == 2
    assert Width(15).of(np.array([15, 0]), np.array([False, True])) == 0, "a row that has ended gains nothing"


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
        (dict(draft="lookup", draft_tokens=64), "draft_tokens = 64.*has a context of 64; give at most 63"),
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
