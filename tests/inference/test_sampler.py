"""The sampler against closed forms in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import InputError
from fmjax.inference.sampler import Sampling, sample, truncate

draw = jax.jit(sample, static_argnames="method")


def keep_by_sorting(logits, top_k, top_p):
    """Textbook top-k then top-p for logits without ties."""
    order = np.argsort(-logits)
    kept = order[: top_k or len(order)]
    probabilities = np.exp(logits[kept] - logits[kept].max())
    probabilities /= probabilities.sum()
    count = int(np.searchsorted(np.cumsum(probabilities), top_p) + 1) if top_p < 1 else len(kept)
    return set(kept[:count].tolist())


@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (1, 1.0), (7, 1.0), (500, 1.0), (0, 0.9), (0, 1e-6), (20, 0.5)])
def test_truncation_keeps_what_sorting_keeps(top_k, top_p):
    logits = np.random.default_rng(0).normal(size=(4, 101)).astype(np.float32) * 3
    kept = np.isfinite(np.asarray(jax.jit(truncate)(logits, top_k, top_p)))
    for row in range(4):
        assert set(np.flatnonzero(kept[row]).tolist()) == keep_by_sorting(logits[row], top_k, top_p)


def test_ties_with_the_last_kept_are_kept():
    logits = jnp.asarray([[0.0, 2.0, 2.0, -1.0, 2.0, -jnp.inf]])
    assert np.isfinite(jax.jit(truncate)(logits, 2, 1.0)).tolist() == [[False, True, True, False, True, False]]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7), Sampling(1.3, 4), Sampling(0.8, 0, 0.7)])
def test_frequencies_and_logprobs_follow_the_closed_form(sampling):
    logits = np.random.default_rng(1).normal(size=9).astype(np.float32)
    n = 20_000
    tokens, logprobs = draw(
        jnp.tile(logits, (n, 1)), jax.random.split(jax.random.key(0), n), sampling.values, sampling.method
    )
    scaled = logits.astype(np.float64) / sampling.temperature
    full = scaled - np.log(np.exp(scaled).sum())
    np.testing.assert_allclose(logprobs, full[np.asarray(tokens)], atol=1e-5)
    kept = sorted(keep_by_sorting(scaled, sampling.top_k, sampling.top_p))
    expected = np.zeros(9)
    expected[kept] = np.exp(full[kept]) / np.exp(full[kept]).sum()
    frequencies = np.bincount(np.asarray(tokens), minlength=9) / n
    assert not frequencies[expected == 0].any()
    assert np.abs(frequencies - expected).max() < 4 * np.sqrt(0.25 / n)  # four standard errors


def test_greedy_takes_the_first_largest():
    logits = jnp.asarray([[0.0, 5.0, 5.0], [1.0, 0.0, 0.0]])
    keys = jax.random.split(jax.random.key(0), 2)
    tokens, logprobs = draw(logits, keys, Sampling(0.0).values, Sampling(0.0).method)
    assert tokens.tolist() == [1, 0]
    np.testing.assert_allclose(logprobs, [-np.log(2 + np.exp(-5)), -np.log(1 + 2 * np.exp(-1))], atol=1e-6)


def test_a_row_draws_the_same_in_any_company():
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(6, 50)), jnp.float32)
    keys = jax.random.split(jax.random.key(3), 6)
    for sampling in (Sampling(), Sampling(1.0, 5, 0.9)):
        together, _ = draw(logits, keys, sampling.values, sampling.method)
        alone, _ = draw(logits[4:5], keys[4:5], sampling.values, sampling.method)
        assert together[4] == alone[0]


@pytest.mark.parametrize(
    "values",
    [dict(temperature=-0.1), dict(temperature=float("nan")), dict(top_k=-1), dict(top_p=0.0), dict(top_p=1.1)],
)
def test_values_out_of_range_are_refused_by_name(values):
    with pytest.raises(InputError, match=next(iter(values))):
        Sampling(**values)


@pytest.mark.parametrize("settings", [Sampling(0.0), Sampling(1.0), Sampling(1.0, 5, 0.9)])
def test_padding_of_the_vocabulary_is_never_drawn(settings):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(64, 12)) + 9.0 * (np.arange(12) >= 8))
    keys = jax.random.split(jax.random.key(0), 64)
    tokens, logprobs = sample(logits, keys, settings.values, settings.method, num_tokens=8)
    assert int(tokens.max()) < 8 and bool(jnp.isfinite(logprobs).all())
