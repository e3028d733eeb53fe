"""MoCo against numpy: its loss, its queue, its momentum, its votes; and the views."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import ConfigError
from fmjax.models.vit import ViT
from fmjax.objectives.moco import MoCo
from fmjax.objectives.momentum_queue import contrast
from fmjax.objectives.views import Views
from fmjax.training.step import with_keys

ROWS = 4


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def apply_fn(variables, x, method):
    """Vectors are products with a matrix, projections with another."""
    return x.reshape(len(x), -1) @ variables["params"][method]


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return {"pooled": draw(16, 6), "project": draw(6, 3)}


def module():
    example = lambda: {"images": jax.ShapeDtypeStruct((1, 4, 4, 1), jnp.float32)}
    return types.SimpleNamespace(pooled=None, project=None, apply=apply_fn, example=example)


def batch(seed):
    rng = np.random.default_rng(seed)
    rows = {"images": rng.uniform(-1, 1, (ROWS, 4, 4, 1)).astype(np.float32)}
    rows |= {"labels": rng.integers(0, 3, ROWS).astype(np.int32), "loss_weights": np.ones(ROWS, np.float32)}
    return with_keys(rows, jax.random.key(seed))


def start(objective, params):
    boxed = objective.initial(module(), params, jax.random.key(9))
    assert {box.names[0] for box in boxed["queue"].values()} == {"queue"}
    return boxed | {"queue": {name: box.value for name, box in boxed["queue"].items()}}


def test_loss_queue_and_momentum_over_several_steps():
    objective = MoCo(queue_size=12, momentum=0.9, temperature=0.2, neighbours=1)
    params, slow = parameters(), parameters()
    carry = start(objective, params)
    np.testing.assert_allclose(np.linalg.norm(carry["queue"]["keys"], axis=1), 1, rtol=1e-5)
    queue, made = np.asarray(carry["queue"]["keys"]), []
    for step in range(5):
        data = batch(step)
        sums, proposal = objective(apply_fn, params, data, None, True, carry=carry)
        loss, weight = sums["loss"]
        views = [
            jax.vmap(objective.view, (0, None))(jax.random.split(k), x) for k, x in zip(data["keys"], data["images"])
        ]
        views = np.asarray(views).reshape(ROWS, 2, 16)
        queries = unit(unit(views[:, 0] @ params["pooled"]) @ params["project"])
        vectors = unit(views[:, 1] @ slow["pooled"])
        keys = unit(vectors @ slow["project"])
        logits = np.concatenate([(queries * keys).sum(1, keepdims=True), queries @ queue.T], 1) / 0.2
        shifted = logits - logits.max(1, keepdims=True)
        expected = (np.log(np.exp(shifted).sum(1)) - shifted[:, 0]).sum()
        np.testing.assert_allclose(loss, expected, rtol=1e-4)
        assert float(weight) == ROWS and float(sums["accuracy"][0]) == (logits.argmax(1) == 0).sum()
        params = parameters(step + 1)
        carry = objective.after(carry, proposal, params)
        slow = {name: 0.9 * slow[name] + 0.1 * params[name] for name in slow}
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), carry["encoder"], slow)
        made.append((keys, vectors, data["labels"]))
        # First in, first out: batch n lies where batch n - 3 lay.
        queue = queue.copy()
        queue[ROWS * (step % 3) : ROWS * (step % 3 + 1)] = keys
        np.testing.assert_allclose(carry["queue"]["keys"], queue, atol=1e-5)
        assert int(carry["place"]) == ROWS * (step + 1) % 12
    order = [made[n] for n in (3, 4, 2)]
    for name, position in (("keys", 0), ("vectors", 1), ("labels", 2)):
        expected = np.concatenate([one[position] for one in order])
        np.testing.assert_allclose(carry["queue"][name], expected, atol=1e-5)


def test_no_gradient_reaches_the_keys():
    objective, params = MoCo(queue_size=8, neighbours=1), parameters()
    carry = start(objective, params)
    call = lambda encoder: objective(apply_fn, params, batch(0), None, True, carry=carry | {"encoder": encoder})
    loss = lambda encoder: call(encoder)[0]["loss"][0]
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0), jax.grad(loss)(carry["encoder"]))


def test_a_key_like_its_query_and_unlike_the_queue_costs_next_to_nothing():
    eye = jnp.eye(3)
    losses, correct = contrast(eye[:1], eye[:1], eye[1:], 10.0)
    np.testing.assert_allclose(losses, np.log1p(2 * np.exp(-10.0)), rtol=1e-3)
    assert correct.all() and not contrast(eye[:1], eye[1:2], eye[:1], 10.0)[1].any()


def test_neighbours_vote_and_empty_places_do_not():
    objective = MoCo(queue_size=6, neighbours=3)
    vectors = unit(np.array([[1, 0.1], [1, 0.2], [1, 0.3], [0, 1], [0.1, 1], [1, 0]], np.float32))
    queue = {"vectors": vectors, "labels": np.array([2, 5, 5, 7, 7, -1], np.int32)}
    np.testing.assert_array_equal(objective._vote(unit(np.array([[1.0, 0], [0, 1]], np.float32)), queue), [5, 7])
    others = queue | {"labels": np.int32([2, 3, 5, 7, 7, -1])}
    assert objective._vote(unit(np.array([[1.0, 0]], np.float32)), others)[0] == 2


def test_an_evaluation_counts_neighbours_of_images_as_they_are():
    objective, params = MoCo(queue_size=4, neighbours=1), parameters()
    carry, data = start(objective, params), batch(3)
    vectors = unit(np.asarray(data["images"]).reshape(ROWS, 16) @ params["pooled"])
    carry["queue"] |= {"vectors": jnp.asarray(vectors), "labels": data["labels"]}
    data["loss_weights"] = np.float32([1, 1, 0, 1])
    sums, _ = objective(apply_fn, params, data, None, False, carry=carry)
    assert [float(x) for x in sums["neighbours"]] == [3, 3]
    assert "neighbours" not in objective(apply_fn, params, data, None, True, carry=carry)[0]


def test_views_move_turn_and_darken():
    image = np.random.default_rng(0).uniform(-1, 1, (5, 5, 2)).astype(np.float32)
    still = dict(rotation=0.0, scale=0.0, shift=0.0, contrast=0.0, hole=0)
    draw = lambda number=0, **changed: np.asarray(Views(**still | changed).view(jax.random.key(number), image))
    np.testing.assert_allclose(draw(), image, atol=1e-6)
    turned = draw(rotation=180.0)
    np.testing.assert_allclose(turned[2, 2], image[2, 2], atol=1e-6)  # about the middle, and nothing gets brighter
    assert not np.allclose(turned, image, atol=0.1)
    assert (turned >= -1.00001).all() and (turned <= image.max() + 1e-6).all()
    dark = draw(contrast=0.5)
    factor = (dark + 1) / (image + 1)
    np.testing.assert_allclose(factor, factor[0, 0, 0], rtol=1e-3)
    assert 0.5 < factor[0, 0, 0] < 1
    for number in range(4):
        gone = (abs(draw(number, hole=2) - image) > 1e-5).all(-1)
        assert gone.sum() in (1, 2, 4)
        np.testing.assert_array_equal(draw(number, hole=2)[gone], -1)
    assert not np.array_equal(draw(1, shift=1.0), draw(2, shift=1.0))
    np.testing.assert_array_equal(draw(1, shift=1.0), draw(1, shift=1.0))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"temperature": 0.0}, "objective.temperature = 0.0 must be above 0"),
        ({"momentum": 1.5}, "objective.momentum=1.5"),
        ({"queue_size": 4, "neighbours": 5}, "objective.neighbours = 5 is more than objective.queue_size = 4"),
        ({"scale": 1.0}, "scale = 1.0 must be at least 0 and less than 1"),
        ({"hole": -1}, "hole = -1 must be at least 0"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        MoCo(**fields)


def test_a_module_without_a_projection_is_refused():
    with pytest.raises(ConfigError, match="which ViT does not have; take model.name = 'conv_encoder'"):
        MoCo().initial(ViT(), None, jax.random.key(0))
