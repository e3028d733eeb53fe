"""Contrast over the whole batch: against loops in numpy with gradients by hand, whole and in chunks, on one device and
split over eight; rows that do not count; the bound of the scale; and a short run."""

import dataclasses
import functools
import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fmjax.data.base import OpenData
from fmjax.errors import ConfigError
from fmjax.models.clip import CLIP
from fmjax.models.siglip import SigLIP
from fmjax.models.text_tower import TextTower
from fmjax.models.vit import ViT
from fmjax.objectives.contrastive import Contrastive, contrast
from fmjax.training.gradients import make_gradient
from fmjax.training.state import TrainState
from fmjax.training.step import make_train_step
from fmjax.training.trainable import Trainable
from tests.quick_keys import quick_key

ROWS = 16
LABELS = np.array([0, 1, 0, -1, 2, -1, 1, 0, 3, 4, 4, -1, 5, 2, 2, 6], np.int32)
WEIGHTS = np.array([1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1], np.float32)
KINDS = [("softmax", False), ("softmax", True), ("sigmoid", False), ("sigmoid", True)]


def vectors(seed=0, rows=ROWS):
    both = np.random.default_rng(seed).normal(size=(2, rows, 6)).astype(np.float32)
    return both / np.linalg.norm(both, axis=-1, keepdims=True)


def by_hand(image, text, scale, bias, weights, labels, loss, several):
    """(sum of the weighted losses, its gradients to image, text, scale and bias), float64, one pair after the other."""
    image, text, weights = (np.asarray(x, np.float64) for x in (image, text, weights))
    count, there, cosines = len(image), weights > 0, image @ text.T
    logits = scale * cosines + bias
    alike = lambda i, j: i == j or (several and labels[i] >= 0 and labels[i] == labels[j])
    total, slope = 0.0, np.zeros((count, count))
    for turned in (False, True):
        for i in np.flatnonzero(there):
            others = [j for j in range(count) if there[j]]
            own = [j for j in others if alike(i, j)]
            at = lambda j: (j, i) if turned else (i, j)
            share = 0.5 * weights[i]
            if loss == "sigmoid":
                for j in others:
                    sign = 1 if j in own else -1
                    total += share * math.log1p(math.exp(-sign * logits[at(j)]))
                    slope[at(j)] -= share * sign / (1 + math.exp(sign * logits[at(j)]))
                continue
            normaliser = math.log(sum(math.exp(logits[at(j)]) for j in others))
            for j in own:
                total += share / len(own) * (normaliser - logits[at(j)])
                slope[at(j)] -= share / len(own)
            for j in others:
                slope[at(j)] += share * math.exp(logits[at(j)] - normaliser)
    return total, (scale * slope @ text, scale * slope.T @ image, (slope * cosines).sum(), slope.sum())


def computed(devices, chunk_size, loss, several, weights=WEIGHTS, labels=LABELS):
    """The same by `contrast`, its rows split over devices."""
    mesh = jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])

    def total(image, text, scale, bias):
        found = contrast(
            image, text, scale, bias, weights=weights, labels=labels, loss=loss, several=several, chunk_size=chunk_size
        )
        return (found["loss"] * weights).sum(), found

    with jax.set_mesh(mesh), nn.logical_axis_rules((("batch", ("data",)),)):
        image, text = jax.device_put(vectors(), NamedSharding(mesh, PartitionSpec(None, "data")))
        gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True))
        (value, found), slopes = gradient(image, text, jnp.float32(7.0), jnp.float32(-2.0))
    return float(value), jax.tree.map(np.asarray, slopes), jax.tree.map(np.asarray, found)


@pytest.mark.parametrize(("loss", "several"), KINDS)
def test_loss_and_gradients_are_those_of_a_loop_however_they_are_computed(loss, several):
    value, slopes = by_hand(*vectors(), 7.0, -2.0, WEIGHTS, LABELS, loss, several)
    for devices in (1, 8):
        for chunk_size in (None, 4, ROWS):
            found, gradients, _ = computed(devices, chunk_size, loss, several)
            assert found == pytest.approx(value, rel=1e-5), (devices, chunk_size)
            for have, want in zip(gradients, slopes):
                np.testing.assert_allclose(have, want, atol=2e-5, err_msg=str((devices, chunk_size)))


@pytest.mark.parametrize(("loss", "several"), KINDS)
def test_rows_of_weight_zero_are_as_if_they_were_not_there(loss, several):
    there = WEIGHTS > 0
    _, _, found = computed(1, None, loss, several)
    image, text = vectors()
    fewer = contrast(
        image[there], text[there], 7.0, -2.0, weights=jnp.ones(there.sum()), labels=LABELS[there], loss=loss,
        several=several,
    )  # fmt: skip
    for name, value in fewer.items():
        np.testing.assert_allclose(found[name][there], value, rtol=1e-5, err_msg=name)


def test_one_positive_is_the_mean_of_two_cross_entropies():
    image, text = vectors()
    found = contrast(image, text, 14.0, 0.0, weights=jnp.ones(ROWS))["loss"].mean()
    logits, own = 14.0 * image @ text.T, jnp.arange(ROWS)
    rows = optax.softmax_cross_entropy_with_integer_labels
    np.testing.assert_allclose(found, 0.5 * (rows(logits, own) + rows(logits.T, own)).mean(), rtol=1e-5)


def test_a_row_finds_its_own_meaning():
    image, _ = vectors()
    text = image.copy()
    text[[0, 1]] = image[[1, 0]]  # two captions in each other's place
    ones, same = np.ones(ROWS, np.float32), np.arange(ROWS, dtype=np.int32)
    for chunk_size in (None, 4):
        options = dict(weights=ones, chunk_size=chunk_size)
        apart = contrast(image, text, 1.0, 0.0, labels=same, **options)
        for name in ("image_to_text", "text_to_image"):
            np.testing.assert_array_equal(apart[name], same > 1)
        alike = contrast(image, text, 1.0, 0.0, labels=np.where(same < 2, 0, -1), **options)
        assert alike["image_to_text"].all() and alike["text_to_image"].all()
        equal = contrast(np.ones_like(image), np.ones_like(image), 1.0, 0.0, labels=same, **options)
        assert not equal["image_to_text"].any() and not equal["text_to_image"].any()  # as near as all others


def test_a_batch_without_rows_has_finite_gradients():
    image, text = vectors()
    for loss in ("softmax", "sigmoid"):
        total = lambda image: (contrast(image, text, 7.0, 0.0, weights=jnp.zeros(ROWS), loss=loss)["loss"] * 0).sum()
        assert np.isfinite(jax.grad(total)(image)).all()


SIZES = dict(num_layers=1, hidden_size=16, num_heads=2)
VISION = ViT(**SIZES, intermediate_size=32, patch_size=4, num_classes=0, image_size=8, num_channels=1, init_std=0.3)
TEXT = TextTower(**SIZES, vocab_size=11, max_length=5, init_std=1.0)


def batch(rows=8):
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 6, rows)
    segment_ids = (np.arange(5) < lengths[:, None]).astype(np.int32)
    return {
        "images": rng.normal(size=(rows, 8, 8, 1)).astype(np.float32),
        "tokens": rng.integers(1, 11, (rows, 5)).astype(np.int32) * segment_ids,
        "segment_ids": segment_ids, "labels": np.arange(rows, dtype=np.int32) // 2,
        "loss_weights": np.ones(rows, np.float32),
    }  # fmt: skip


def state_of(module, optimizer):
    inputs = Contrastive().inputs(batch())
    params = nn.unbox(jax.jit(module.init)(quick_key(0), **inputs)["params"])
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, zero, params, optimizer.init(params), params)


def test_the_scale_is_kept_within_its_bound_and_can_come_back():
    module, optimizer = CLIP(VISION, TEXT, projection_size=8, initial_scale=math.log(99.9)), optax.sgd(1.0)
    state, scales = state_of(module, optimizer), []

    def towards(grads, by, params=None):
        """A step of the scale alone, by the optimizer's state."""
        return jax.tree.map(jnp.zeros_like, grads) | {"log_scale": by}, by

    rule = optax.GradientTransformation(optimizer.init, towards)
    step = jax.jit(make_train_step(module.apply, Contrastive(), rule, lambda n: 1.0, rules=(), ema_decay=0.5))
    for by in (1.0, 1.0, -0.5):
        state, metrics = step(dataclasses.replace(state, opt_state=jnp.float32(by)), batch(), jax.random.key(0))
        scales.append(float(jnp.exp(state.params["log_scale"])))
    assert scales == [pytest.approx(100), pytest.approx(100), pytest.approx(100 * math.exp(-0.5))]
    assert float(jnp.exp(state.ema["log_scale"])) <= 100.001 and float(metrics["scale"]) == pytest.approx(100)
    for free in (Contrastive(max_scale=math.inf), Contrastive("sigmoid")):
        assert free.bounded(state.params) is state.params
    above = {"log_scale": jnp.float32(9)}
    for bound in (Contrastive(max_scale=50.0), Contrastive("sigmoid", max_scale=50.0)):
        assert float(bound.bounded(above)["log_scale"]) == pytest.approx(math.log(50))


def test_a_scale_that_does_not_train_is_left_alone():
    module, optimizer = CLIP(VISION, TEXT, projection_size=8, initial_scale=math.log(200)), optax.sgd(1.0)
    state = state_of(module, optimizer)
    trainable = Trainable(("text", "vision"), state.params)
    trained, _ = trainable.split(state.params)
    state = dataclasses.replace(state, opt_state=optimizer.init(trained), ema=trained)
    step = make_train_step(module.apply, Contrastive(), optimizer, lambda n: 1.0, rules=(), trainable=trainable)
    state, _ = jax.jit(step)(state, batch(), jax.random.key(0))
    assert float(state.params["log_scale"]) == pytest.approx(math.log(200))


CLOSE = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


def gradient_of(module):
    """A function (objective, rows, parts) -> (gradient, sums), one program each."""
    params = state_of(module, optax.sgd(1.0)).params

    @functools.partial(jax.jit, static_argnums=(0, 2))
    def gradient(objective, rows, parts):
        return make_gradient(module.apply, objective, parts=parts)(params, rows, jax.random.key(0))[:2]

    return gradient


@pytest.mark.parametrize("loss, kind", [("softmax", CLIP), ("sigmoid", SigLIP)])
def test_chunks_train_as_the_whole_batch(loss, kind):
    gradient = gradient_of(kind(VISION, TEXT, projection_size=8))
    want, sums = gradient(Contrastive(loss), batch(), 1)
    found, _ = gradient(Contrastive(loss, chunk_size=2), batch(), 1)
    jax.tree.map(CLOSE, found, want)
    assert set(sums) == {"loss", "image_to_text", "text_to_image", "scale"}


def test_parts_contrast_their_own_rows():
    gradient, objective = gradient_of(CLIP(VISION, TEXT, projection_size=8)), Contrastive("softmax")
    parts, _ = gradient(objective, batch(), 2)
    halves = [gradient(objective, {name: x[start::2] for name, x in batch().items()}, 1)[0] for start in (0, 1)]
    jax.tree.map(CLOSE, parts, jax.tree.map(lambda a, b: (a + b) / 2, *halves))


def test_rows_depend_on_each_other():
    assert not getattr(Contrastive, "ROWS_APART", False)


@dataclasses.dataclass(frozen=True)
class Rows:
    rows: tuple = ({name: value[0] for name, value in batch().items()},)

    def __getitem__(self, index):
        return self.rows[0]


@pytest.mark.parametrize(
    ("objective", "module", "dropped", "message"),
    [
        (Contrastive(), VISION, None, "needs a model of images and texts"),
        (Contrastive(), SigLIP(VISION, TEXT), None, "does not see a bias"),
        (Contrastive(), CLIP(VISION, TEXT), "tokens", "reads 'tokens', which these rows lack"),
        (Contrastive(positives="labels"), CLIP(VISION, TEXT), "labels", "reads 'labels'"),
    ],
)
def test_what_does_not_fit_is_told(objective, module, dropped, message):
    rows = Rows(({name: value for name, value in Rows()[0].items() if name != dropped},))
    with pytest.raises(ConfigError, match=message):
        objective.check(module, OpenData(rows))


def test_values_that_cannot_be_are_refused():
    for fields in ({"loss": "hinge"}, {"positives": "all"}, {"chunk_size": 0}, {"max_scale": 0.0}):
        with pytest.raises(ConfigError, match=json.dumps(next(iter(fields))).strip('"')):
            Contrastive(**fields)
    image, text = vectors()
    with pytest.raises(ConfigError, match="chunk_size = 3 does not divide the batch's 16 rows"):
        contrast(image, text, 1.0, 0.0, weights=jnp.ones(ROWS), chunk_size=3)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_chunks_bound_the_memory(loss):
    """Forward and backward pass of 1,024 pairs, whose logits take 4 MiB; those of a chunk a sixteenth of that."""
    count = 1024
    rows = jax.ShapeDtypeStruct((count, 8), jnp.float32)

    def temporaries(chunk_size):
        options = dict(weights=jnp.ones(count), loss=loss, chunk_size=chunk_size)
        total = lambda image, text: contrast(image, text, 7.0, 0.0, **options)["loss"].sum()
        compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(rows, rows).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(None) > 4 * count**2 and temporaries(64) < 4 * count**2
