"""The sampler against closed forms in numpy, and against transformers' own processors."""

import ast
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import InputError
from fmjax.inference.sampler import CANDIDATES, LANES, Sampling, Uses, penalise, pick, sample, truncate

draw = jax.jit(sample, static_argnames=("uses", "num_tokens"))
cut = jax.jit(truncate)
ORACLE = pathlib.Path(__file__).parent.parent / "oracles" / "sampler.npz"


def columns(top_k=0, top_p=1.0, min_p=0.0):
    return tuple(jnp.asarray(x)[None, None] for x in (np.int32(top_k), np.float32(top_p), np.float32(min_p)))


def keep_by_sorting(logits, top_k=0, top_p=1.0, min_p=0.0):
    """Textbook top-k, then top-p, then min-p for logits without ties."""
    order = np.argsort(-logits)
    kept = order[: top_k or len(order)]
    probabilities = np.exp(logits[kept] - logits[kept].max())
    probabilities /= probabilities.sum()
    count = int(np.searchsorted(np.cumsum(probabilities), top_p) + 1) if top_p < 1 else len(kept)
    return {int(token) for token in kept[:count] if np.exp(logits[token] - logits.max()) >= min_p}


def test_scores_are_those_of_transformers():
    """What each of its processors leaves of the logits, in the order in which `generate` applies them."""
    with np.load(ORACLE) as file:
        fixture = dict(file)
    logits = jnp.asarray(fixture["logits"])
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, fixture["seen"], True, axis=1)
    numbers = [key.split("/")[1] for key in fixture if key.startswith("settings/")]
    assert len(numbers) == 9
    for number in numbers:
        s = Sampling(**ast.literal_eval(str(fixture[f"settings/{number}"])))
        expected = fixture[f"scores/{number}"]
        penalised = penalise(logits, seen, s.repetition_penalty) / s.temperature
        found = np.asarray(cut(penalised, *columns(s.top_k, s.top_p, s.min_p)))
        np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vocab", [101, 700])  # fewer and more than are sorted
@pytest.mark.parametrize(
    "settings",
    [
        dict(), dict(top_k=1), dict(top_k=7), dict(top_k=5000), dict(top_p=0.9), dict(top_p=1e-6), dict(min_p=0.02),
        dict(top_k=20, top_p=0.5), dict(top_p=0.999), dict(top_k=CANDIDATES), dict(top_k=CANDIDATES + 60, top_p=0.99),
        dict(top_k=300, top_p=0.9999, min_p=1e-4),
    ],
)  # fmt: skip
def test_truncation_keeps_what_sorting_keeps(settings, vocab):
    logits = np.random.default_rng(0).normal(size=(4, vocab)).astype(np.float32) * [[3], [1], [0.3], [6]]
    logits = logits.astype(np.float32)
    kept = np.isfinite(np.asarray(cut(logits, *columns(**settings))))
    for row in range(4):
        assert set(np.flatnonzero(kept[row]).tolist()) == keep_by_sorting(logits[row], **settings)


def test_ties_with_the_last_kept_are_kept():
    logits = jnp.asarray([[0.0, 2.0, 2.0, -1.0, 2.0, -jnp.inf]])
    assert np.isfinite(cut(logits, *columns(top_k=2))).tolist() == [[False, True, True, False, True, False]]


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(0.7), Sampling(1.3, 4), Sampling(0.8, 0, 0.7), Sampling(1.0, 0, 1.0, 0.3),
     Sampling(0.9, repetition_penalty=2.0)],
)  # fmt: skip
def test_frequencies_and_logprobs_follow_the_closed_form(sampling):
    logits = np.random.default_rng(1).normal(size=9).astype(np.float32)
    seen = np.arange(9) % 2 == 0
    n = 20_000
    tokens, logprobs = draw(
        jnp.tile(logits, (n, 1)), jax.random.split(jax.random.key(0), n), sampling.values, sampling.uses,
        seen=jnp.tile(seen, (n, 1)),
    )  # fmt: skip
    scaled = logits.astype(np.float64) / sampling.temperature
    full = scaled - np.log(np.exp(scaled).sum())
    # Log-probabilities do not know of the penalty: a later forward pass does not either.
    np.testing.assert_allclose(logprobs, full[np.asarray(tokens)], atol=1e-5)
    penalty = sampling.repetition_penalty
    scaled = np.where(seen, np.where(scaled < 0, scaled * penalty, scaled / penalty), scaled)
    kept = sorted(keep_by_sorting(scaled, sampling.top_k, sampling.top_p, sampling.min_p))
    expected = np.zeros(9)
    expected[kept] = np.exp(scaled[kept]) / np.exp(scaled[kept]).sum()
    frequencies = np.bincount(np.asarray(tokens), minlength=9) / n
    assert not frequencies[expected == 0].any()
    assert np.abs(frequencies - expected).max() < 4 * np.sqrt(0.25 / n)  # four standard errors


def test_draws_over_a_large_vocabulary_have_the_right_distribution():
    """More tokens than are added up in one group, a last group that is not full, and tokens of probability 0."""
    probabilities = np.arange(1.0, 301.0) * (np.arange(300) % 3 > 0)
    probabilities /= probabilities.sum()
    logits = jnp.log(jnp.asarray(probabilities, jnp.float32))
    n = 40_000
    tokens, _ = draw(jnp.tile(logits, (n, 1)), jax.random.split(jax.random.key(1), n), Sampling().values, Uses(True))
    counts = np.bincount(np.asarray(tokens), minlength=300)
    assert not counts[::3].any()
    positive = probabilities > 0
    chi_square = ((counts - n * probabilities)[positive] ** 2 / (n * probabilities[positive])).sum()
    assert abs(chi_square - 199) < 5 * np.sqrt(2 * 199)  # 200 tokens: mean 199, variance 2 * 199


def sparse_weights(kind, vocab, generator):
    """Weights [vocab] of which most are 0."""
    weights = np.zeros(vocab, np.float32)
    if kind == "top-k":
        places = generator.choice(vocab, min(50, vocab // 2), replace=False)
        weights[places] = np.exp(-8 * generator.random(len(places)))
    elif kind == "ends":
        weights[[0, vocab - 1]] = [1.0, 1e-6]
    elif kind == "tiny":
        weights[::7] = 1e-30
        weights[vocab // 2] = 1.0
    else:  # every other group is empty
        weights[:: 2 * LANES] = 0.5 + generator.random(len(weights[:: 2 * LANES]))
    return weights


@pytest.mark.parametrize("kind", ["top-k", "ends", "tiny", "empty groups"])
def test_a_token_of_weight_zero_is_never_picked(kind):
    """For uniforms at the borders between tokens, to the last bit, and anywhere. Rounding moves a draw no further than
    to the next token that may be drawn."""
    generator = np.random.default_rng(0)
    many = jax.jit(lambda weights, uniforms: jax.lax.map(lambda u: pick(weights, jnp.full(len(weights), u)), uniforms))
    for vocab in (7, 300, 50_257):
        weights = np.stack([sparse_weights(kind, vocab, generator) for _ in range(4)])
        exact = np.cumsum(weights.astype(np.float64), axis=-1)
        total = exact[:, -1:]
        borders = np.concatenate([np.unique(row)[:50] for row in exact / total])
        near = (borders[:, None] + np.arange(-6, 7) * 2.0**-24).ravel()
        uniforms = np.concatenate([near, generator.random(50), [0, 1]])
        uniforms = np.clip(uniforms, 0, 1 - 2**-23).astype(np.float32)
        picked = np.asarray(many(weights, uniforms)).T
        assert picked.min() >= 0 and picked.max() < vocab
        chosen = np.take_along_axis(weights, picked, axis=-1)
        assert (chosen > 0).all()
        above = np.take_along_axis(exact, picked, axis=-1)
        assert ((above - chosen) / total <= uniforms + 1e-5).all() and (above / total >= uniforms - 1e-5).all()


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(0.8), Sampling(1.0, 5, 0.9)])
def test_the_log_probability_of_what_is_drawn_from_nan_is_not_finite(sampling):
    """Whatever is not finite shows in it: a NaN anywhere, an infinite logit, no token that may be drawn."""
    logits = np.zeros((4, 12), np.float32)
    logits[1, 11], logits[2, 3], logits[3, :] = np.nan, np.inf, -np.inf
    _, logprobs = draw(logits, jax.random.split(jax.random.key(0), 4), sampling.values, sampling.uses, num_tokens=8)
    assert np.isfinite(logprobs).tolist() == [True, False, False, False]


def test_greedy_takes_the_first_largest():
    logits = jnp.asarray([[0.0, 5.0, 5.0], [1.0, 0.0, 0.0]])
    keys = jax.random.split(jax.random.key(0), 2)
    tokens, logprobs = draw(logits, keys, Sampling(0.0).values, Sampling(0.0).uses)
    assert tokens.tolist() == [1, 0]
    np.testing.assert_allclose(logprobs, [-np.log(2 + np.exp(-5)), -np.log(1 + 2 * np.exp(-1))], atol=1e-6)


def test_a_row_draws_the_same_in_any_company():
    """Alone, and in a program that does for other rows what this row does not ask for."""
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(6, 50)), jnp.float32)
    keys = jax.random.split(jax.random.key(3), 6)
    seen = jnp.ones((6, 50), bool)
    rows = [Sampling(0.0), Sampling(), Sampling(0.7, 5, 0.9), Sampling(1.0, min_p=0.1), Sampling(1.2, 0, 0.5),
            Sampling(1.0, repetition_penalty=1.5)]  # fmt: skip
    together, logprobs = draw(logits, keys, [jnp.asarray(x) for x in zip(*(r.values for r in rows))], Uses(*[True] * 3),
                              seen=seen)  # fmt: skip
    for i, row in enumerate(rows):
        alone, logprob = draw(logits[i : i + 1], keys[i : i + 1], row.values, row.uses, seen=seen[:1])
        assert together[i] == alone[0]
        np.testing.assert_allclose(logprobs[i], logprob[0], atol=1e-6)
    assert Sampling(0.0, 5, 0.9).uses == Uses() and Sampling(1.0).uses == Uses(draw=True)


@pytest.mark.parametrize(
    "values",
    [dict(temperature=-0.1), dict(temperature=float("nan")), dict(top_k=-1), dict(top_p=0.0), dict(top_p=1.1),
     dict(min_p=-0.1), dict(min_p=1.5), dict(repetition_penalty=0.0)],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(values):
    with pytest.raises(InputError, match=next(iter(values))):
        Sampling(**values)


@pytest.mark.parametrize("settings", [Sampling(0.0), Sampling(1.0), Sampling(1.0, 5, 0.9)])
def test_padding_of_the_vocabulary_is_never_drawn(settings):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(64, 12)) + 9.0 * (np.arange(12) >= 8))
    keys = jax.random.split(jax.random.key(0), 64)
    tokens, logprobs = draw(logits, keys, settings.values, settings.uses, num_tokens=8)
    assert int(tokens.max()) < 8 and bool(jnp.isfinite(logprobs).all())
