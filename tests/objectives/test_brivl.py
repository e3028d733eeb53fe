"""BriVL's objective against numpy, row by row: both losses, gradients, queues, labels and momentum; and its model."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.config import build
from fmjax.errors import ConfigError
from fmjax.models import MODELS
from fmjax.models.vit import ViT
from fmjax.objectives.brivl import BriVL
from fmjax.planning import counts, hlo
from tests.quick_keys import quick_key

ROWS, QUEUE, WIDTH, SCALE = 4, 12, 3, 1 / 0.07
VISION = {"name": "conv_encoder", "hidden_size": 8, "num_halvings": 1, "projection_size": 0}
TEXT = {"name": "roberta", "num_layers": 1, "hidden_size": 12, "num_heads": 2, "max_length": 8, "masked_lm_head": False}
MODEL = {"name": "brivl", "vision": VISION, "text": TEXT, "projection_size": 6, "grids": (1, 3), "num_layers": 2}
MODEL |= {"num_heads": 2, "intermediate_size": 16}


def unit(x):
    return x / jnp.sqrt((x**2).sum(-1, keepdims=True))


def apply_fn(variables, images, tokens, segment_ids=None, train=False, rngs=None):
    """Each side is a product with a matrix."""
    params = variables["params"]
    sides = {"image": images.reshape(len(images), -1) @ params["vision"]}
    sides["text"] = jax.nn.one_hot(tokens, 7).mean(1) @ params["text"]
    return {name: unit(x) for name, x in sides.items()} | {"scale": jnp.float32(SCALE)}


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=(s, WIDTH)).astype(np.float32) for n, s in (("vision", 4), ("text", 7))}


def batch(seed):
    rng = np.random.default_rng(seed)
    return {
        "images": rng.normal(size=(ROWS, 2, 2, 1)).astype(np.float32),
        "tokens": rng.integers(0, 7, (ROWS, 5)).astype(np.int32), "segment_ids": np.ones((ROWS, 5), np.int32),
        "labels": rng.integers(-1, 3, ROWS).astype(np.int32), "loss_weights": np.float32([1, 0.5, 1, 1]),
    }  # fmt: skip


def start(objective, params):
    example = lambda: {
        n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in batch(0).items() if n in ("images", "tokens")
    }
    boxed = objective.initial(types.SimpleNamespace(apply=apply_fn, example=example), params, jax.random.key(9))
    assert {box.names[0] for box in boxed["queue"].values()} == {"queue"}
    return boxed | {"queue": {name: np.asarray(box.value) for name, box in boxed["queue"].items()}}


def naive(params, slow, data, queue, masked):
    """(the weighted sum of losses, those of [image to text, text to image] that are right), one row after the other."""
    inputs = {name: data[name] for name in ("images", "tokens")}
    rows, keys = apply_fn({"params": params}, **inputs), apply_fn({"params": slow}, **inputs)
    total, correct = 0.0, [0.0, 0.0]
    for side, (one, other) in enumerate((("image", "text"), ("text", "image"))):
        for i, label in enumerate(data["labels"]):
            compared = [k for k in range(QUEUE) if not (masked and label >= 0 and label == queue["labels"][k])]
            logits = jnp.stack([rows[one][i] @ key * SCALE for key in (keys[other][i], *queue[other][compared])])
            total += data["loss_weights"][i] * (jnp.log(jnp.exp(logits).sum()) - logits[0])
            correct[side] += data["loss_weights"][i] * (logits[0] >= logits.max())
    return total, correct


@pytest.mark.parametrize("masked", [True, False])
def test_losses_gradients_queues_and_momentum_over_several_steps(masked):
    objective = BriVL(queue_size=QUEUE, momentum=0.9, mask_same_label=masked)
    params, slow = parameters(), parameters()
    carry = start(objective, params)
    assert sorted(carry["queue"]) == ["image", *["labels"] * masked, "text"]
    queue = {name: rows.copy() for name, rows in carry["queue"].items()}
    left_out = 0
    for step in range(4):
        data = batch(step)

        def loss(params):
            sums, proposal = objective(apply_fn, params, data, jax.random.key(0), True, carry=carry)
            return sums["loss"][0], (sums, proposal)

        gradients, (sums, proposal) = jax.grad(loss, has_aux=True)(params)
        (expected, correct), by_hand = jax.value_and_grad(naive, has_aux=True)(params, slow, data, queue, masked)
        np.testing.assert_allclose(sums["loss"][0], expected, rtol=1e-4)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), gradients, by_hand)
        assert [float(sums[name][0]) for name in ("image_to_text", "text_to_image")] == [*map(float, correct)]
        assert all(float(weight) == 3.5 for _, weight in sums.values())
        keys = apply_fn({"params": slow}, data["images"], data["tokens"])
        params = parameters(step + 1)
        carry = objective.after(carry, proposal, params)
        slow = {name: 0.9 * slow[name] + 0.1 * params[name] for name in slow}
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), carry["encoder"], slow)
        for name, rows in queue.items():
            left_out += name == "labels" and int((data["labels"][:, None] == rows)[data["labels"] >= 0].sum())
            # First in, first out: batch n lies where batch n - 3 lay.
            rows[ROWS * (step % 3) : ROWS * (step % 3 + 1)] = data["labels"] if name == "labels" else keys[name]
            np.testing.assert_allclose(carry["queue"][name], rows, atol=1e-5)
        assert int(carry["place"]) == ROWS * (step + 1) % QUEUE
    assert (left_out > 0) == masked


def test_no_gradient_reaches_the_keys():
    objective, params = BriVL(queue_size=QUEUE), parameters()
    carry = start(objective, params)
    loss = lambda slow: objective(apply_fn, params, batch(0), None, True, carry=carry | {"encoder": slow})[0]["loss"][0]
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0), jax.grad(loss)(params))


def test_data_without_labels_need_a_queue_without_them():
    data = {name: rows for name, rows in batch(0).items() if name != "labels"}
    params = parameters()
    for objective in (BriVL(queue_size=QUEUE), BriVL(queue_size=QUEUE, mask_same_label=False)):
        call = lambda: objective(apply_fn, params, data, None, True, carry=start(objective, params))
        if objective.mask_same_label:
            with pytest.raises(KeyError, match="labels"):  # which `call_objective` tells of
                call()
        else:
            assert float(call()[0]["loss"][1]) == 3.5


@pytest.fixture(scope="module")
def model():
    module = build(
        MODEL | {"vision": VISION | {"image_size": 8, "num_channels": 3}, "text": TEXT | {"vocab_size": 9}}, MODELS
    )
    example = {name: jnp.zeros(like.shape, like.dtype) for name, like in module.example().items()}
    return module, jax.jit(module.init)(quick_key(0), **example)["params"]


def test_its_scale_is_no_parameter_and_padding_changes_nothing(model):
    module, params = model
    assert sorted(params) == ["image_head", "patch_projection", "text", "text_head", "vision"]
    assert not {"head_bias", "head_transform", "pooler"} & params["text"].keys() and "head" not in params["vision"]
    images, tokens = jax.random.normal(jax.random.key(1), (2, 8, 8, 3)), jnp.array([[3, 4, 5, 0, 0], [1, 2, 0, 0, 0]])
    apply = jax.jit(lambda *inputs: module.apply({"params": params}, *inputs))
    texts = jax.jit(lambda *inputs: module.apply({"params": params}, *inputs, method="encode_texts"))
    out = apply(images, tokens, (tokens > 0).astype(jnp.int32))
    assert float(out["scale"]) == pytest.approx(1 / 0.07) and float(out["bias"]) == 0
    assert out["image"].shape == out["text"].shape == (2, 6)
    other = jnp.where(tokens > 0, tokens, 7)
    alike = texts(other, (tokens > 0).astype(jnp.int32))
    np.testing.assert_allclose(alike, out["text"], atol=1e-6)
    alone = texts(tokens[1:, :2])
    np.testing.assert_allclose(alone, out["text"][1:], atol=1e-5)


def test_the_formula_of_its_flops_is_the_compilers_count(model):
    module, params = model
    module = module.clone(num_layers=1, text=module.text.clone(attention="reference"))
    tokens = jnp.zeros((1, 8), jnp.int32)
    images = jnp.zeros((1, 8, 8, 3))
    params = jax.eval_shape(module.init, jax.random.key(0), images, tokens)["params"]

    def loss(params, images, tokens):
        out = module.apply({"params": params}, images, tokens)
        return (out["image"] * out["text"]).sum()

    compiled = jax.jit(jax.grad(loss)).lower(params, images, tokens).compile()
    found = counts.count(hlo.parse(compiled.as_text()), {}).flops
    expected = module.flops_per_example({"tokens": (8,), "images": (8, 8, 3)})
    assert found == pytest.approx(expected, rel=0.05)
    sides = [module.flops_per_example(side) for side in ({"tokens": (8,)}, {"images": (8, 8, 3)})]
    assert sum(sides) == expected and min(sides) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision": {"name": "vit", "num_classes": 0}}, "model.vision = ViT has no method `feature_map"),
        ({"text": {"name": "text_tower"}}, "model.text = TextTower has no method `hidden"),
        ({"grids": ()}, "model.grids is empty"),
        ({"grids": (1, 0)}, "grids.1.=0"),
        ({"temperature": 0.0}, "model.temperature = 0.0 must be above 0"),
        ({"num_heads": 5}, "is not a multiple of num_heads=5"),
    ],
)
def test_models_that_cannot_be_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        build(MODEL | change, MODELS)


def test_objectives_that_cannot_be_are_refused():
    for fields, message in (({"queue_size": 0}, "queue_size=0"), ({"momentum": 1.0}, "objective.momentum=1.0")):
        with pytest.raises(ConfigError, match=message):
            BriVL(**fields)
    with pytest.raises(ConfigError, match="which ViT does not have; take model.name = 'brivl'"):
        BriVL().check(ViT(), None)
