"""Divergences of a student's distributions from a teacher's, whole or as far as they are kept, on a mesh too."""

import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from fmjax.objectives.divergences import Divergence, Likeliest, jensen_shannon, likeliest, likeliest_of
from fmjax.parallel.logical import mesh_axes
from fmjax.parallel.mesh import MeshConfig, make_mesh

STORED = np.load(pathlib.Path(__file__).parents[1] / "oracles" / "distillation.npz")
RNG = np.random.default_rng(1)


def test_divergences_are_those_of_trl_and_of_distilberts_code():
    student, teacher = STORED["logits"]
    logs = [jax.nn.log_softmax(x / 0.7) for x in (teacher, student)]
    for beta in (0.0, 0.1, 0.5, 0.9, 1.0):
        form = "continuous" if beta in (0, 1) else "paper"  # which is a KL there, as TRL has it
        np.testing.assert_allclose(jensen_shannon(*logs, beta, form), STORED[f"jsd/{beta}"], rtol=2e-5)
    found = 2.0**2 * Divergence(temperature=2.0).of(teacher, student).mean()
    np.testing.assert_allclose(found, STORED["distilbert/ce"], rtol=1e-5)


def test_what_is_kept_of_all_answers_is_exact_and_of_some_never_more():
    student, teacher = RNG.normal(size=(2, 5, 9)) * 2
    hidden, head = jnp.asarray(teacher[None]), {"kernel": jnp.eye(9)}
    for beta in (0.0, 0.4):
        apart, found = Divergence(beta, temperature=1.5), []
        whole = jax.value_and_grad(lambda x: apart.of(teacher, x).sum())(jnp.asarray(student))
        for count in (1, 4, 9):
            kept = jax.tree.map(lambda x: x[0], likeliest(hidden, head, count, 1.5, chunk_size=2))
            found.append(jax.value_and_grad(lambda x: apart.of(kept, x).sum())(jnp.asarray(student)))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found[-1], whole)
        assert 0 < found[0][0] < found[1][0] < whole[0]


def by_numpy(p, q, beta, form):
    """The divergence of probabilities [..., V] of a teacher and a student, by its definition."""
    kl = lambda a, b: (a * np.log(a / b)).sum(-1)
    if beta in (0, 1):
        return kl(q, p) if beta else kl(p, q)
    of_teacher = 1 - beta if form == "continuous" else beta
    mixed = (1 - beta) * q + beta * p
    return of_teacher * kl(p, mixed) + (1 - of_teacher) * kl(q, mixed)


@pytest.mark.parametrize("beta, form", [(0.0, "continuous"), (0.3, "continuous"), (0.3, "paper"), (1.0, "continuous")])
def test_all_answers_that_are_not_kept_are_one(beta, form):
    """What student and teacher leave of their probability counts, whichever of the two is far larger."""
    student, teacher = RNG.normal(size=(2, 5, 9)) * 2
    student[0, np.argmin(teacher[0])] += 9.0  # a student that is sure of an answer that is not kept
    teacher[1, :4] += 9.0  # a teacher that leaves nearly nothing
    kept, apart = likeliest_of(jnp.asarray(teacher), 4, 1.5), Divergence(beta, form, 1.5)
    soft = lambda x: np.exp(x / 1.5) / np.exp(x / 1.5).sum(-1, keepdims=True)
    ids = np.argsort(-teacher)[:, :4]

    def joined(p):
        chosen = np.take_along_axis(p, ids, 1)
        return np.concatenate([chosen, p.sum(-1, keepdims=True) - chosen.sum(1, keepdims=True)], 1)

    expected = by_numpy(joined(soft(teacher)), joined(soft(student)), beta, form)
    np.testing.assert_allclose(apart.of(kept, student), expected, rtol=1e-4)
    # Rounded as files are.
    rounded = Likeliest(kept.ids.astype("uint16"), kept.logprobs.astype("float16"), kept.rest)
    np.testing.assert_allclose(apart.of(rounded, student), expected, rtol=2e-2)


@pytest.mark.parametrize("some", [False, True], ids=["teacher", "kept"])
def test_a_vocabulary_that_is_split_is_never_whole_on_a_device(some):
    """Value and gradients as on one device, over four parts of the vocabulary and two of the rows."""
    rows, length, vocab, chunk, apart = 4, 6, 56, 3, Divergence(0.4, temperature=2.0)
    hidden, head = RNG.normal(size=(rows, length, 8)), {"kernel": RNG.normal(size=(8, vocab))}
    told, other = RNG.normal(size=(rows, length, 12)), {"kernel": RNG.normal(size=(12, vocab))}
    weights = RNG.uniform(size=(rows, length))
    arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (hidden, head, told, other, weights))
    kept = likeliest(arrays[2], arrays[3], 5, 2.0)

    def loss(hidden, head, told, other, weights):
        teacher = kept if some else (told, other)
        return apart.total(teacher, (hidden, head), weights, chunk)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    expected = run(*arrays)
    mesh = make_mesh(config := MeshConfig(data=1, fsdp=2, tensor=4), jax.devices())
    kernel, places = ("embed", "vocab"), ("batch", "length", None)
    names = [places, {"kernel": kernel}, places, {"kernel": kernel}, places[:2]]
    lie = lambda x, axes: jax.device_put(x, NamedSharding(mesh, jax.P(*mesh_axes(mesh, axes, config.table))))
    placed = [
        {"kernel": lie(x["kernel"], axes["kernel"])} if isinstance(axes, dict) else lie(x, axes)
        for x, axes in zip(arrays, names)
    ]
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(config.table.items())):
        compiled = run.lower(*placed).compile()
        found = jax.device_get(compiled(*placed))
        again = jax.device_get(jax.jit(lambda x, head: likeliest(x, head, 5, 2.0))(*placed[2:4]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), again, kept)
    shapes = [tuple(map(int, dims.split(","))) for dims in re.findall(r"[fsu]\d+\[([\d,]+)\]", compiled.as_text())]
    assert (rows // 2, chunk, vocab // 4) in shapes and not any(vocab in shape for shape in shapes)
