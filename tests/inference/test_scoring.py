"""Log-likelihoods of packed segments against closed forms from the full logits of each segment alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_decoder import TinyDecoder, full_logits

from fmjax.errors import InputError
from fmjax.inference import scoring
from fmjax.inference.scoring import Segment, pack_rows, rolling_windows, score_segments

MODULE = TinyDecoder(max_length=48)
PARAMS = MODULE.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]


def closed_form(tokens, start):
    logits = full_logits(MODULE, PARAMS, tokens[:-1])
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
    monkeypatch.setattr(scoring, "SHORT", 16)
    monkeypatch.setattr(scoring, "PROJECTED", 20)
    scoring.token_logprobs.clear_cache()
    segments = [*random_segments(30), greedy_segment([3, 4], 3), Segment([5, 6], 2)]
    segments += [Segment([1, 2, 3, answer], 3) for answer in range(13)]  # one context, many answers
    scores = score_segments(MODULE, PARAMS, segments, tokens_per_batch=96)
    scoring.token_logprobs.clear_cache()
    for segment, score in zip(segments, scores):
        assert score.num_tokens == len(segment.tokens) - segment.start
        if not score.num_tokens:
            assert score == scoring.Score(0.0, True, 0)
            continue
        loglikelihood, greedy = closed_form(list(segment.tokens), segment.start)
        assert abs(score.loglikelihood - loglikelihood) < 1e-4
        assert score.is_greedy == greedy
    assert any(score.is_greedy and score.num_tokens for score in scores)
    assert sum(np.exp(score.loglikelihood) for score in scores[-13:]) == pytest.approx(1, abs=1e-5)


def test_answers_to_one_context_share_its_forward_pass():
    segments = [Segment([1, 2, 3, 4, answer], 4) for answer in range(13)]
    (batch,) = scoring._batches(segments, range(13), 48, 4096, 1)
    tokens, segment_ids = batch.arrays[:2]
    assert segment_ids.sum() == 4 and tokens[0, :4].tolist() == [1, 2, 3, 4]
    # More answers than a row is long go to several rows.
    many = [Segment([1, 2, 3, answer % 13], 3) for answer in range(700)]
    assert sum(len(b.owners) for b in scoring._batches(many, range(700), 48, 512, 1)) == 700


def test_two_shapes_serve_every_call():
    options = dict(tokens_per_batch=96)
    score_segments(MODULE, PARAMS, list(random_segments(40, 1)), **options)
    before = dict(scoring.TRACES)
    score_segments(MODULE, PARAMS, list(random_segments(77, 2)), **options)
    assert scoring.TRACES == before


def test_packing_fills_rows_and_loses_nothing():
    sizes = np.random.default_rng(0).integers(1, 33, 500).tolist()
    rows = pack_rows(sizes, 64)
    assert sorted(sum(rows, [])) == list(range(500))
    assert max(sum(sizes[i] for i in row) for row in rows) <= 64
    assert len(rows) <= 1.02 * np.ceil(sum(sizes) / 64) + 1


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
