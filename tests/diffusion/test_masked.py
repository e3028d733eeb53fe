"""Masked diffusion of tokens against distributions that are known: the bound is exact, and samplers draw them."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.diffusion.masked import Masking, Unmasking, unmask
from fmjax.errors import ConfigError, InputError
from fmjax.objectives.masked_diffusion import MaskedDiffusion
from fmjax.training.step import with_keys

MASK = 3
PAIRS = np.array([[0.30, 0.05, 0.05], [0.02, 0.20, 0.08], [0.10, 0.02, 0.18]])  # p(first, second)


def exact(tokens, times=None):
    """Logits [B, 2, 4] of each token of a pair given the other where it is seen; the mask's own are large, which must
    not be drawn."""
    logs = jnp.log(PAIRS)
    first = jnp.concatenate([logs.T, jax.nn.logsumexp(logs, axis=1)[None]])[tokens[:, 1]]
    second = jnp.concatenate([logs, jax.nn.logsumexp(logs, axis=0)[None]])[tokens[:, 0]]
    return jnp.pad(jnp.stack([first, second], axis=1), ((0, 0), (0, 0), (0, 1)), constant_values=5.0)


def drawn(unmasking, process=Masking(), rows=8_000, start=(MASK, MASK)):
    keys = jax.random.split(jax.random.key(0), rows)
    go = jax.jit(lambda keys: unmask(exact, jnp.tile(jnp.array(start), (rows, 1)), keys, process, unmasking, MASK))
    found = np.asarray(go(keys))
    return np.bincount(found[:, 0] * 3 + found[:, 1], minlength=9).reshape(3, 3) / rows, found


def test_tokens_seen_in_random_order_have_the_joint_distribution():
    for process in (Masking(), Masking("cosine")):
        np.testing.assert_allclose(drawn(Unmasking(steps=32), process)[0], PAIRS, atol=0.025)
    # In one step they do not know of each other.
    alone = PAIRS.sum(axis=1, keepdims=True) * PAIRS.sum(axis=0)
    np.testing.assert_allclose(drawn(Unmasking(steps=1))[0], alone, atol=0.025)


def test_what_is_seen_stays_and_the_rest_is_drawn_given_it():
    for order in ("random", "confidence"):
        shares, found = drawn(Unmasking(order, steps=4), start=(MASK, 1))
        assert (found[:, 1] == 1).all()
        np.testing.assert_allclose(shares[:, 1], PAIRS[:, 1] / PAIRS[:, 1].sum(), atol=0.025)


def test_the_surest_are_seen_first_as_many_as_the_schedule_says():
    sure, seen = jnp.array([4.0, 9.0, 7.0, 10.0, 8.0, 5.0, 11.0, 6.0]), []

    def logits_of(tokens, times):
        jax.debug.callback(lambda tokens: seen.append(np.asarray(tokens[0])), tokens, ordered=True)
        other = jnp.zeros(8)
        return jnp.stack([sure, other, other - 50, other], axis=-1)[None]

    unmasking = Unmasking("confidence", steps=4, choice_temperature=0.0)
    process = Masking("cosine")
    end = unmask(logits_of, jnp.full((1, 8), MASK), jax.random.split(jax.random.key(0), 1), process, unmasking, MASK)
    jax.effects_barrier()
    hidden = [(tokens == MASK).sum() for tokens in seen] + [(np.asarray(end) == MASK).sum()]
    assert hidden == [8, *np.floor(8 * np.cos(np.pi / 2 * np.arange(1, 4) / 4)).astype(int), 0] == [8, 7, 5, 3, 0]
    assert (np.asarray(end) == 0).all()
    # Ever less sure ones, and none that was seen is hidden again.
    order = np.argsort(-np.asarray(sure))
    for tokens, count in zip(seen, hidden):
        assert set(np.flatnonzero(tokens != MASK)) == set(order[: 8 - count])


def test_the_noise_in_the_order_is_annealed_as_it_should_be():
    """The one of the largest confidence + noise is the softmax of confidence / noise, which ends step by step."""
    logits = jnp.array([[2.0, 0.0, 0.0], [0.5, 0.0, 0.0], [1.2, 0.0, 0.0], [3.0, 0.0, 0.0]]).at[:, 1:].add(-50)
    logits = jnp.pad(logits.at[:, 1].set(jnp.array([1.0, 0.7, 2.0, 0.0])), ((0, 0), (0, 1)))
    logs, seen = np.asarray(jax.nn.log_softmax(logits[:, :3])), []

    def logits_of(tokens, times):
        jax.debug.callback(lambda tokens: seen.append(np.asarray(tokens)), tokens, ordered=True)
        return jnp.broadcast_to(logits, (len(tokens), *logits.shape))

    rows = 40_000
    keys, unmasking = jax.random.split(jax.random.key(0), rows), Unmasking("confidence", 4, choice_temperature=2.0)
    jax.jit(lambda: unmask(logits_of, jnp.full((rows, 4), MASK), keys, Masking(), unmasking, MASK))()
    jax.effects_barrier()
    order = [np.argmax((one != MASK) & (before == MASK), axis=1) for before, one in zip(seen, seen[1:])]
    found = np.bincount(4 * order[0] + order[1], minlength=16).reshape(4, 4) / rows
    want, chances = np.zeros((4, 4)), np.exp(logs)
    for drawn in np.ndindex(2, 2, 2, 2):  # which token each place has drawn, and then how sure it is of it
        sure = logs[range(4), drawn]
        first = np.exp(sure / (2.0 * 0.75)) / np.exp(sure / (2.0 * 0.75)).sum()
        want += chances[range(4), drawn].prod() * np.diag(first)
    np.testing.assert_allclose(found.sum(axis=1), want.diagonal(), atol=0.012)
    # The second one draws anew, and is chosen among those that are left with less noise.
    for place in range(4):
        left, second = [i for i in range(4) if i != place], np.zeros(3)
        for drawn in np.ndindex(2, 2, 2):
            sure = logs[left, drawn]
            second += chances[left, drawn].prod() * np.exp(sure / (2.0 * 0.5)) / np.exp(sure / (2.0 * 0.5)).sum()
        np.testing.assert_allclose(found[place, left] / found[place].sum(), second, atol=0.025)


def test_the_bound_of_the_exact_model_of_tokens_apart_is_their_entropy():
    """Whatever the schedule: the weight integrates to 1 for each token."""
    shares, rng = np.array([0.5, 0.3, 0.2]), np.random.default_rng(0)
    tokens = rng.choice(3, (4096, 8), p=shares).astype(np.int32)
    weights = np.ones((4096, 8), np.float32)
    weights[:, 6:] = 0
    data = with_keys({"targets": tokens, "loss_weights": weights}, jax.random.key(0))
    asked = []

    def apply(variables, tokens, train, rngs, method):
        asked.append(tokens)
        # Hidden vectors whose product with the head are the logits.
        return jnp.ones((*tokens.shape, 1)), {"kernel": jnp.append(jnp.log(shares), 5.0)[None].astype(jnp.float32)}

    entropy = -(shares * np.log(shares)).sum()
    for process in (Masking(min_time=0.2), Masking("cosine", min_time=0.2)):
        sums = MaskedDiffusion(MASK, process)(apply, {}, data, None, False)
        assert sums["loss"][1] == 4096 * 6
        # The part of the bound from the least time on, where the weights are not large.
        part = (process.hidden(1.0) - process.hidden(0.2)) / 0.8
        assert sums["loss"][0] / sums["loss"][1] == pytest.approx(part * entropy, rel=0.025)
        assert sums["accuracy"][0] / sums["accuracy"][1] == pytest.approx(0.5, abs=0.02)
        hidden = np.asarray(asked[-1]) == MASK
        assert not hidden[:, 6:].any() and (np.asarray(asked[-1])[~hidden] == tokens[~hidden]).all()
        mean = 0.6 if process.schedule == "linear" else 2 / np.pi * np.cos(0.1 * np.pi) / 0.8
        assert hidden[:, :6].mean() == pytest.approx(mean, abs=0.01)
    simple = MaskedDiffusion(MASK, weighting="simple")(
        apply, {}, data, None, True
    )  # the mask's own logit does not count
    assert simple["loss"][0] / simple["loss"][1] == pytest.approx(entropy, rel=0.025)


def test_what_cannot_be_is_refused():
    for make, error, message in [
        (lambda: Masking("square"), ConfigError, "schedule = 'square'"),
        (lambda: Masking(min_time=0.0), ConfigError, "min_time = 0.0"),
        (lambda: Unmasking("left"), InputError, "order = 'left'"),
        (lambda: Unmasking(steps=0), InputError, "steps = 0"),
        (lambda: MaskedDiffusion(-1), ConfigError, "mask_id = -1"),
        (lambda: MaskedDiffusion(3, "flow"), ConfigError, "Flow.* is of numbers, and .* masked_diffusion of tokens"),
    ]:
        with pytest.raises(error, match=message):
            make()
    module = types.SimpleNamespace(features=None, CAUSAL=False, vocab_size=10)
    data = types.SimpleNamespace(tokenizer=types.SimpleNamespace(vocab_size=9))
    MaskedDiffusion(9).check(module, data)
    with pytest.raises(ConfigError, match="mask_id = 10 is no token of the model.*set model.vocab_size = 11"):
        MaskedDiffusion(10).check(module, data)
    with pytest.raises(ConfigError, match="mask_id = 8 is a token of the data.*set it to 9"):
        MaskedDiffusion(8).check(module, data)
    module.CAUSAL = True
    with pytest.raises(ConfigError, match="needs a model that reads whole rows"):
        MaskedDiffusion(9).check(module, data)
