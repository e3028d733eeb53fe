"""Log-likelihoods of packed segments against closed forms from the full logits of each segment alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_decoder import TinyDecoder, full_logits

from fmjax.errors import InputError
from fmjax.inference import scoring
from fmjax.inference import segments as packing
from fmjax.inference.sampler import Sampling, Settings, Uses, sample
from fmjax.inference.scoring import rolling_windows, score_segments
from fmjax.inference.segments import Segment
from fmjax.models.gpt import GPT
from fmjax.models.llama import Llama
from tests.quick_keys import quick_key

MODULE = TinyDecoder(max_length=48)
PARAMS = jax.jit(MODULE.init)(quick_key(0), jnp.zeros((1, 4), jnp.int32))["params"]


def closed_form(tokens, start, module=MODULE, params=PARAMS):
    logits = full_logits(module, params, tokens[:-1])
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows, targets = np.arange(start - 1, len(tokens) - 1), np.asarray(tokens[start:], int)
    return logprobs[rows, targets].sum(), bool((logits[rows].argmax(-1) == targets).all())


def random_segments(count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        tokens = rng.integers(0, 13, rng.integers(2, 30)).tolist()
        yield Segment(tokens, int(rng.integers(1, len(tokens))))


def greedy_segment(prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(full_logits(MODULE, PARAMS, tokens)[-1].argmax()))
    return Segment(tokens, len(prompt))


def test_scores_are_those_of_each_segment_alone(monkeypatch):
    # Small buckets, so that both row lengths, several batches and several chunks of the projection occur.
    monkeypatch.setattr(packing, "SHORT", 16)
    monkeypatch.setattr(scoring, "PROJECTED", 20)
    scoring.token_logprobs.clear_cache()
    segments = [*random_segments(30), greedy_segment([3, 4], 3), Segment([5, 6], 2)]
    segments += [Segment([1, 2, 3, answer], 3) for answer in range(13)]  # one context, many answers
    scores = score_segments(MODULE, PARAMS, segments, tokens_per_batch=96)
    scoring.token_logprobs.clear_cache()
    for segment, score in zip(segments, scores):
        assert score.num_tokens == len(segment.tokens) - segment.start
        if not score.num_tokens:
            assert score == scoring.SegmentScore(0.0, True, 0)
            continue
        loglikelihood, greedy = closed_form(list(segment.tokens), segment.start)
        assert abs(score.loglikelihood - loglikelihood) < 1e-4
        assert score.is_greedy == greedy
    assert any(score.is_greedy and score.num_tokens for score in scores)
    assert sum(np.exp(score.loglikelihood) for score in scores[-13:]) == pytest.approx(1, abs=1e-5)


def test_of_equal_logits_the_first_is_the_likeliest():
    """As in lm-evaluation-harness, whose `is_greedy` compares with PyTorch's argmax, and as text is generated."""
    params = jax.tree.map(jnp.zeros_like, PARAMS)
    segments = [Segment([1, 2, 0, 0], 2), Segment([1, 2, 3], 2), Segment([1, 0, 12], 1)]
    wanted = [closed_form(list(s.tokens), s.start, params=params) for s in segments]
    found = score_segments(MODULE, params, segments)
    assert [score.is_greedy for score in found] == [greedy for _, greedy in wanted] == [True, False, False]
    np.testing.assert_allclose([s.loglikelihood for s in found], [x for x, _ in wanted], rtol=1e-6)
    logits, keys = jnp.asarray(full_logits(MODULE, params, [1, 2])[-1:]), jax.random.split(jax.random.key(0), 1)
    tokens, _ = sample(logits, keys, Settings(*Sampling(temperature=0.0).values), Uses())
    assert tokens.tolist() == [0]


def packed(segments, can_fork, context_length=48, tokens_per_batch=4096):
    options = dict(context_length=context_length, tokens_per_batch=tokens_per_batch, num_shards=1)
    return list(packing.batches(segments, range(len(segments)), can_fork=can_fork, **options))


@pytest.mark.parametrize("can_fork", [False, True])
def test_answers_to_one_context_share_its_forward_pass(can_fork):
    segments = [Segment([1, 2, 3, 4, answer], 4) for answer in range(13)]
    (batch,) = packed(segments, can_fork)
    assert batch.segment_ids.sum() == 4 and batch.tokens[0, :4].tolist() == [1, 2, 3, 4]
    assert batch.branches is None  # nothing beyond what they share: the usual attention serves
    # More answers than a row is long go to several rows.
    many = [Segment([1, 2, 3, answer % 13], 3) for answer in range(700)]
    assert sum(len(b.owners) for b in packed(many, can_fork, tokens_per_batch=512)) == 700


def questions(count, seed=0, options=4):
    """Segments of `count` questions with `options` endings each, in a mixed order."""
    rng = np.random.default_rng(seed)
    segments = []
    for _ in range(count):
        context = rng.integers(0, 13, rng.integers(9, 16)).tolist()
        for _ in range(options):
            ending = rng.integers(0, 13, rng.integers(1, 9)).tolist()
            segments.append(Segment(context + ending, len(context)))
    return [segments[i] for i in rng.permutation(len(segments))]


def test_a_context_is_computed_once_for_all_its_endings():
    segments = questions(30)
    contexts = {tuple(s.tokens[: s.start]) for s in segments}
    assert len(contexts) == 30
    shared = sum((batch.segment_ids > 0).sum() for batch in packed(segments, True))
    alone = sum((batch.segment_ids > 0).sum() for batch in packed(segments, False))
    endings = sum(len(s.inputs) - s.start for s in segments)
    # Endings that begin alike share that too, where it is more than nothing: at most.
    assert shared <= sum(map(len, contexts)) + endings < 0.55 * alone
    # Two among many that share a little do not take the others' attention from them.
    rng = np.random.default_rng(1)
    others = [Segment(rng.integers(0, 13, 40).tolist(), 20) for _ in range(30)]
    pair = [Segment([*range(10), 3, 4], 10), Segment([*range(10), 5, 6], 10)]
    assert packed(pair, True)[0].branches is not None and packed([*others, *pair], True)[0].branches is None
    # A tree too large for a row is several; nothing is lost or scored twice.
    long = [Segment([*range(12), *[i % 13] * 100, 1], 12) for i in range(13)]
    found = packed(long, True, context_length=200)
    assert sorted(owner[0] for batch in found for owner in batch.owners) == list(range(13))
    assert all(batch.tokens.shape[1] <= 256 for batch in found)


FAMILIES = {
    "learned_positions": GPT(num_layers=2, hidden_size=16, num_heads=2, max_length=48, vocab_size=13, init_std=0.4),
    "rotary_grouped": Llama(
        num_layers=1, hidden_size=16, intermediate_size=24, num_heads=4, num_kv_heads=2, max_length=48, vocab_size=13,
        init_std=0.4,
    ),
    "window_among_global": GPT(
        num_layers=2, hidden_size=16, num_heads=2, max_length=48, vocab_size=13, init_std=0.4, window=6,
        layer_pattern=("local", "global"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_endings_of_one_context_score_as_each_alone(name, monkeypatch):
    module = FAMILIES[name]
    assert module.can_fork and not module.clone(attention="splash").can_fork
    params = nn.unbox(jax.jit(module.init)(quick_key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    segments = [*questions(9), *(Segment([2, 4, 6, 8, 1, 3, 5, 7, 9, answer], 9) for answer in range(13))]
    forked = []
    original = scoring.token_logprobs
    monkeypatch.setattr(scoring, "token_logprobs", lambda *a: forked.append(a[5] is not None) or original(*a))
    scores = score_segments(module, params, segments)
    assert forked and all(forked)
    for segment, score in zip(segments, scores):
        loglikelihood, greedy = closed_form(list(segment.tokens), segment.start, module, params)
        assert score.loglikelihood == pytest.approx(loglikelihood, rel=1e-5)
        assert (score.is_greedy, score.num_tokens) == (greedy, len(segment.tokens) - segment.start)
    # In any order the same; more of them take no other program.
    scores_of = dict(zip(segments_keys(segments), scores))
    before = dict(scoring.TRACES)
    again = score_segments(module, params, segments[::-1])
    assert scoring.TRACES == before
    for key, score in zip(segments_keys(segments[::-1]), again):
        assert score.loglikelihood == pytest.approx(scores_of[key].loglikelihood, rel=1e-5)


def segments_keys(segments):
    return [(tuple(segment.tokens), segment.start) for segment in segments]


def test_two_shapes_serve_every_call():
    options = dict(tokens_per_batch=96)
    score_segments(MODULE, PARAMS, list(random_segments(40, 1)), **options)
    before = dict(scoring.TRACES)
    score_segments(MODULE, PARAMS, list(random_segments(77, 2)), **options)
    assert scoring.TRACES == before


def harness_windows(tokens, first, length):
    """lm-evaluation-harness's definition (one token of context), written from its description: (inputs, targets)."""
    pairs, predicted = [], 0
    while predicted < len(tokens):
        size = min(length, len(tokens) - predicted)
        end = predicted + size
        if predicted == 0:
            pairs.append(([first, *tokens[: end - 1]], tokens[:end]))
        else:
            pairs.append((tokens[end - length - 1 : end - 1], tokens[predicted:end]))
        predicted = end
    return pairs


@pytest.mark.parametrize("length", [1, 5, 8])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 16, 17, 31])
def test_rolling_windows_are_the_harness_s(count, length):
    tokens = list(range(100, 100 + count))
    windows = rolling_windows(tokens, 7, length)
    assert [(list(w.inputs), list(w.tokens[w.start :])) for w in windows] == harness_windows(tokens, 7, length)


@pytest.mark.parametrize(
    "segment, message",
    [(Segment([1] * 60, 1), "59 inputs.*48"), (Segment([1, 2], 0), "start from 1"), (Segment([1, 13], 1), "0..12")],
)
def test_what_cannot_be_scored_is_refused(segment, message):
    with pytest.raises(InputError, match=message):
        score_segments(MODULE, PARAMS, [segment])
