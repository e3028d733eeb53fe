"""Generalised Jensen-Shannon divergences, and replies that are the student's own or the data's."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import ConfigError
from fmjax.objectives.divergences import Divergence, jensen_shannon
from fmjax.objectives.gkd import GKD

RNG = np.random.default_rng(0)
TEACHER, STUDENT = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in RNG.normal(size=(2, 3, 7)))


def kl(p, q):
    return np.sum(p * np.log(p / q), axis=-1)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_both_forms_by_hand_and_continuous_at_the_ends(beta):
    found = jensen_shannon(np.log(TEACHER), np.log(STUDENT), beta)
    mixed = (1 - beta) * STUDENT + beta * TEACHER
    np.testing.assert_allclose(found, (1 - beta) * kl(TEACHER, mixed) + beta * kl(STUDENT, mixed), rtol=2e-5)
    near = min(max(beta, 1e-4), 1 - 1e-4)
    np.testing.assert_allclose(jensen_shannon(np.log(TEACHER), np.log(STUDENT), near), found, rtol=2e-2)
    if 0 < beta < 1:
        mixed = beta * TEACHER + (1 - beta) * STUDENT
        paper = jensen_shannon(np.log(TEACHER), np.log(STUDENT), beta, "paper")
        np.testing.assert_allclose(paper, beta * kl(TEACHER, mixed) + (1 - beta) * kl(STUDENT, mixed), rtol=2e-5)


def test_chunks_change_nothing_and_a_student_like_its_teacher_has_no_gradient():
    hidden, table = (RNG.normal(size=shape).astype(np.float32) for shape in ((2, 5, 4), (7, 4)))
    head = {"embedding": jnp.asarray(table)}
    other = (jnp.asarray(hidden[::-1]), head)
    weights, apart = RNG.uniform(size=(2, 5)).astype(np.float32), Divergence(0.3, "continuous", 0.7)

    def literal(x, table):
        logs = [jax.nn.log_softmax(y @ table.T / 0.7) for y in (hidden, x)]
        logs[0] = jax.lax.stop_gradient(logs[0])
        return jnp.sum(jensen_shannon(*logs, 0.3) * weights)

    expected = jax.value_and_grad(literal, (0, 1))(other[0], head["embedding"])
    for size in (None, 2):
        total = lambda x, table: apart.total((hidden, head), (x, {"embedding": table}), weights, size)
        found = jax.value_and_grad(total, (0, 1))(other[0], head["embedding"])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)
        np.testing.assert_allclose(total(other[0], head["embedding"]), expected[0], rtol=1e-5)
    same = lambda x: Divergence(0.3).total((jnp.asarray(hidden), head), (x, head), weights, 2)
    value, gradient = jax.value_and_grad(same)(jnp.asarray(hidden))
    assert abs(float(value)) < 1e-5 and float(jnp.abs(gradient).max()) < 1e-5


def test_the_loss_is_the_mean_over_all_tokens_of_replies():
    """Of a student and a teacher that say something at each token by it alone, in numpy."""
    tables = {name: RNG.normal(size=(5, 5)).astype(np.float32) for name in ("student", "teacher")}
    features = lambda table: lambda variables, tokens, segment_ids, method: (
        jax.nn.one_hot(tokens, 5), {"kernel": (variables or {"params": table})["params"]}
    )
    teacher = types.SimpleNamespace(apply=lambda **given: features(tables["teacher"])(None, **given))
    batch = {
        "tokens": RNG.integers(0, 5, (2, 3)), "segment_ids": np.ones((2, 3), np.int32), "own": np.array([1.0, 0.0]),
        "loss_weights": np.array([[0.0, 1, 0], [1, 1, 1]], np.float32),
    }  # fmt: skip
    objective = GKD(teacher="x", beta=0.3, temperature=0.7)
    sums = objective(features(None), tables["student"], batch, None, True, models={"teacher": teacher})
    soft = lambda x: np.exp(x / 0.7) / np.exp(x / 0.7).sum(-1, keepdims=True)
    p, q = (soft(tables[name][batch["tokens"]]) for name in ("teacher", "student"))
    mixed = 0.7 * q + 0.3 * p
    found = (0.7 * kl(p, mixed) + 0.3 * kl(q, mixed)) * batch["loss_weights"]
    np.testing.assert_allclose(sums["loss"], [found.sum(), 4], rtol=1e-4)
    np.testing.assert_allclose(sums["reply_tokens"], [4, 2])
    np.testing.assert_allclose(sums["own"], [1, 2])


def test_replies_are_the_students_own_or_those_of_the_data():
    prompts = {
        "tokens": np.arange(1, 41, dtype=np.int32).reshape(20, 2), "lengths": np.full(20, 2, np.int32),
        "replies": np.full((20, 3), 9, np.int32), "reply_lengths": np.full(20, 2, np.int32),
    }  # fmt: skip
    drawn = types.SimpleNamespace(tokens=[5, 6, 7], logprobs=[-1.0, -1.0, -1.0], finish="length")
    model = types.SimpleNamespace(complete=lambda ids, num_samples, **_: [drawn] * (len(ids) * num_samples))
    model.served = model
    objective = GKD(teacher="teacher", lam=0.5, num_samples=2, max_new_tokens=3)
    rows = objective.collect(model, prompts, jax.random.key(0))
    own = rows["own"].reshape(20, 2)
    assert (own[:, 0] == own[:, 1]).all() and 3 < own[:, 0].sum() < 17
    for row in range(40):
        start = prompts["tokens"][row // 2]
        if rows["own"][row]:
            assert rows["tokens"][row].tolist() == [*start, 5, 6] and rows["targets"][row].tolist() == [0, 5, 6, 7]
        else:
            assert rows["tokens"][row].tolist() == [*start, 9, 0] and rows["targets"][row].tolist() == [0, 9, 9, 0]
            assert rows["loss_weights"][row].tolist() == [0, 1, 1, 0]
    assert {name: (x.shape[1:], x.dtype) for name, x in rows.items()} == {
        name: (x.shape, x.dtype) for name, x in objective.collected({k: v[0] for k, v in prompts.items()}).items()
    }


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(teacher=""), "objective.teacher is empty"), (dict(beta=2.0), "expected 0 to 1"),
        (dict(beta=0.0, form="paper"), "a divergence of 0 everywhere"), (dict(form="jsd"), "continuous"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        GKD(**{"teacher": "x"} | fields)
