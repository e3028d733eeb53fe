"""Objectives of preferences against trl's own trainers, and what they do with more answers, padding and a reference.

The fixture is written by tests/oracles/make_preference_fixtures.py.
"""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import byte_model

from fmjax.errors import ConfigError
from fmjax.objectives.base import OtherModel
from fmjax.objectives.dpo import DPO, IPO
from fmjax.objectives.kto import KTO
from fmjax.objectives.orpo import ORPO, log1mexp
from fmjax.objectives.preference import Answers
from fmjax.objectives.simpo import SimPO

FIXTURE = json.loads((pathlib.Path(__file__).parents[1] / "oracles" / "preferences.json").read_text())


def said(by: int, halves=(0, 1)) -> Answers:
    """What the fixture's policy (0) or reference (1) says of chosen and rejected answers, [4, 2]."""
    logprobs, lengths = (np.array(x, np.float32).reshape(2, 4) for x in (FIXTURE["logprobs"][by], FIXTURE["lengths"]))
    return Answers(*(jnp.asarray(x[list(halves)].T) for x in (logprobs, lengths)))


PAIRS = {"scores": jnp.tile(jnp.array([1.0, 0.0]), (4, 1)), "answer_weights": jnp.ones((4, 2))}
OBJECTIVES = {
    "dpo": DPO(beta=0.1), "cdpo": DPO(beta=0.1, label_smoothing=0.2), "ipo": IPO(beta=0.1),
    "simpo": SimPO(beta=2.0, gamma=1.0, label_smoothing=0.1), "orpo": ORPO(beta=0.1),
}  # fmt: skip


def loss_of(objective, policy, reference, batch) -> float:
    total, weight = objective._sums(policy, reference, batch)["loss"]
    return float(total / weight)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_are_those_of_trl(name):
    objective = OBJECTIVES[name]
    assert loss_of(objective, said(0), said(1), PAIRS) == pytest.approx(FIXTURE["losses"][name], rel=1e-5)
    # Which of the two stands first makes no difference.
    other = PAIRS | {"scores": PAIRS["scores"][:, ::-1]}
    swapped = [said(by, halves=(1, 0)) for by in (0, 1)]
    assert loss_of(objective, *swapped, other) == pytest.approx(FIXTURE["losses"][name], rel=1e-5)


@pytest.mark.parametrize("name, models", [("kto", (0, 1)), ("kto_exchanged", (1, 0))])
def test_kto_is_that_of_trl(name, models):
    liked = jnp.array(FIXTURE["liked"], jnp.float32)
    batch = {"scores": jnp.stack([liked, 0 * liked], axis=1), "answer_weights": jnp.ones((4, 2))}
    sums = KTO(beta=0.1, disliked_weight=1.5)._sums(said(models[0]), said(models[1]), batch)
    assert float(sums["loss"][0] / sums["loss"][1]) == pytest.approx(FIXTURE["losses"][name], rel=1e-5)
    assert float(sums["kl"][0]) >= 0


def test_all_pairs_of_a_row_count_alike_and_what_is_missing_counts_nothing():
    """Ties and a missing answer: the mean over the pairs that are left, of the rows that have any."""
    rng = np.random.default_rng(0)
    policy, reference = (Answers(jnp.asarray(-rng.exponential(5, (3, 4))), jnp.full((3, 4), 4.0)) for _ in range(2))
    scores = np.array([[3, 1, 1, 0], [0, 1, 2, 9], [1, 1, 1, 1]], np.float32)
    weights = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]], np.float32)
    batch = {"scores": jnp.asarray(scores), "answer_weights": jnp.asarray(weights)}
    objective = DPO(beta=0.3)
    value = 0.3 * np.asarray(policy.logprobs - reference.logprobs)
    rows = []
    for row in range(2):
        better = lambda i, j: scores[row, i] > scores[row, j] and weights[row, [i, j]].all()
        pairs = [(i, j) for i in range(4) for j in range(4) if better(i, j)]
        rows.append(np.mean([np.log1p(np.exp(value[row, j] - value[row, i])) for i, j in pairs]))
    assert loss_of(objective, policy, reference, batch) == pytest.approx(np.mean(rows), rel=1e-5)
    assert float(objective._sums(policy, reference, batch)["loss"][1]) == 2


def test_log1mexp_keeps_its_digits_and_its_gradient():
    x = jnp.array([-50.0, -20.0, -3.0, -0.7, -0.1, -1e-3, -1e-5])
    want = np.log1p(-np.exp(np.asarray(x, np.float64)))
    np.testing.assert_allclose(log1mexp(x), want, rtol=1e-5)
    gradient = jax.vmap(jax.grad(log1mexp))(x)
    np.testing.assert_allclose(gradient, -1 / np.expm1(-np.asarray(x, np.float64)), rtol=1e-4)
    assert np.isfinite(jax.grad(log1mexp)(0.0))


def ranked_batch(rows=2, answers=2, length=12):
    rng = np.random.default_rng(1)
    shape = (rows, answers, length)
    sizes = rng.integers(6, length + 1, shape[:2])[..., None]
    there = np.arange(length) < sizes
    reply = there & (np.arange(length) >= 4)
    batch = {name: (rng.integers(0, 256, shape) * there).astype(np.int32) for name in ("tokens", "targets")}
    batch |= {"segment_ids": there.astype(np.int32), "positions": (np.arange(length) * there).astype(np.int32)}
    batch |= {"loss_weights": reply.astype(np.float32), "answer_weights": np.ones(shape[:2], np.float32)}
    return batch | {"scores": np.tile(np.arange(answers)[::-1], (rows, 1)).astype(np.float32)}


def test_at_its_reference_dpo_is_log_2_and_a_step_tells_the_answers_apart():
    model = byte_model()
    batch, objective = ranked_batch(), DPO(reference="x", beta=0.5)
    models = {"reference": OtherModel(model.module, model.params)}

    def loss(params):
        sums = objective(model.module.apply, params, batch, None, True, models=models)
        return sums["loss"][0] / sums["loss"][1], sums

    (value, sums), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(model.params)
    assert float(value) == pytest.approx(np.log(2), abs=3e-5)
    # Log-probabilities are those of the replies alone.
    logits = np.asarray(model.apply(batch["tokens"].reshape(4, -1)), np.float64)
    chosen = np.take_along_axis(logits, batch["targets"].reshape(4, -1)[..., None], -1)[..., 0]
    logprobs = ((chosen - np.log(np.exp(logits).sum(-1))) * batch["loss_weights"].reshape(4, -1)).sum(-1).reshape(2, 2)
    assert float(sums["better_logprob"][0]) == pytest.approx(logprobs[:, 0].sum(), rel=1e-5)
    assert float(sums["worse_logprob"][0]) == pytest.approx(logprobs[:, 1].sum(), rel=1e-5)
    # Precomputed, the reference is the same number.
    known = dataclasses.replace(objective, reference="")
    given = batch | {"reference_logprobs": logprobs.astype(np.float32)}
    sums = known(model.module.apply, model.params, given, None, False, models=None)
    assert float(sums["loss"][0] / sums["loss"][1]) == pytest.approx(np.log(2), abs=1e-4)
    assert jax.tree.all(jax.tree.map(lambda x: bool(jnp.isfinite(x).all()), gradient))


def test_bad_settings_are_refused():
    for make, message in [
        (lambda: DPO(beta=0.0), "beta = 0.0 must be positive"),
        (lambda: DPO(label_smoothing=0.5), "label_smoothing = 0.5: expected at least 0 and below 0.5"),
        (lambda: IPO(label_smoothing=0.1), "not for ipo"),
        (lambda: KTO(label_smoothing=0.1), "not for kto"),
        (lambda: KTO(liked_weight=0.0), "liked_weight = 0.0 must be positive"),
    ]:
        with pytest.raises(ConfigError, match=message):
            make()
