"""SigLIP 2's objective against numpy, term by term; its teacher and centres over steps; what it refuses."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.config import build
from fmjax.errors import ConfigError
from fmjax.models import MODELS
from fmjax.objectives.self_distillation import consistency, momentum_at, moved_centre, random_crop
from fmjax.objectives.siglip2 import STUDENT, SigLIP2
from fmjax.training.step import with_keys
from tests.quick_keys import quick_key

ROWS, LENGTH, VOCAB, SIDE = 4, 6, 9, 8
SIZES = {"num_layers": 1, "hidden_size": 8, "intermediate_size": 16, "num_heads": 2}
VISION = {
    "name": "vit", **SIZES, "patch_size": 2, "num_classes": 0, "use_class_token": False, "pooling": "attention",
    "use_mask_token": True, "image_size": SIDE, "num_channels": 1, "init_std": 0.5,
}  # fmt: skip
TEXT = {"name": "text_tower", **SIZES, "vocab_size": VOCAB, "max_length": LENGTH, "causal": False}
DECODER = {"name": "captioner", **SIZES, "vocab_size": VOCAB, "max_length": LENGTH, "init_std": 0.5}
MODEL = {
    "name": "siglip2", "vision": VISION, "text": TEXT, "decoder": DECODER, "num_prototypes": 5, "head_size": 7,
    "bottleneck_size": 4,
}  # fmt: skip
OBJECTIVE = SigLIP2(
    num_local=2, local_size=4, distillation_from=0.5, momentum=0.5, size_factor=0.5, caption_weight=2.0
).over(4)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    lengths = np.array([[4], [LENGTH], [2], [3]])
    segments = (np.arange(LENGTH) < lengths).astype(np.int32)
    rows = {
        "images": rng.normal(size=(ROWS, SIDE, SIDE, 1)).astype(np.float32),
        "tokens": rng.integers(1, VOCAB, (ROWS, LENGTH)).astype(np.int32) * segments, "segment_ids": segments,
        "loss_weights": np.float32([1, 0.5, 1, 0]),
    }  # fmt: skip
    return with_keys(rows, jax.random.key(seed))


@pytest.fixture(scope="module")
def model():
    module = build(MODEL, MODELS)
    example = {name: jnp.zeros(like.shape, like.dtype) for name, like in module.example().items()}
    params = jax.jit(module.init)(quick_key(0), **example)["params"]
    return module, jax.tree.map(lambda x: getattr(x, "value", x), params, is_leaf=lambda x: hasattr(x, "value"))


@pytest.fixture(scope="module")
def steps(model):
    """(parameters, carry before, sums, carry after, the next parameters, gradients by parameters and teacher) of four
    steps, the parameters being others in each."""
    module, params = model

    def loss(params, teacher, rows, carry):
        sums, proposal = OBJECTIVE(
            module.apply, params, rows, jax.random.key(1), True, carry=carry | {"teacher": teacher}
        )
        return sum(total / jnp.maximum(weight, 1) for total, weight in sums["loss"]), (sums, proposal)

    call = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    carry, found = OBJECTIVE.initial(module, params, None), []
    for step in range(4):
        gradients, (sums, proposal) = call(params, carry["teacher"], batch(step), carry)
        moved = jax.tree.map(lambda x: x + 0.1 * jnp.cos(x + step), params)
        after = OBJECTIVE.after(carry, proposal, moved)
        found.append((params, carry, sums, after, moved, gradients))
        params, carry = moved, after
    return found


def test_consistency_is_the_cross_entropy_with_a_centred_and_sharpened_teacher():
    student, teacher, centre = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    p, q = softmax((teacher - centre[0]) / 0.04), softmax(student / 0.1)
    expected = -(p * np.log(q)).sum(-1)
    found = consistency(student, teacher, centre[0], 0.1, 0.04)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    to_student, to_teacher = jax.grad(lambda s, t: consistency(s, t, centre[0], 0.1, 0.04).sum(), (0, 1))(
        student, teacher
    )
    np.testing.assert_allclose(to_student, (q - p) / 0.1, atol=1e-4)
    np.testing.assert_array_equal(to_teacher, 0)


def test_centre_and_momentum_move_as_they_should():
    np.testing.assert_allclose(moved_centre(np.float32([1, 2]), np.float32([8, 0]), 4.0, 0.9), [1.1, 1.8], rtol=1e-6)
    np.testing.assert_allclose(moved_centre(np.float32([1, 2]), np.float32([1, 0]), 0.5, 0.9), [1.1, 1.8], rtol=1e-6)
    np.testing.assert_array_equal(moved_centre(np.float32([1, 2]), np.zeros(2), 0.0, 0.9), [1, 2])
    np.testing.assert_allclose([momentum_at(jnp.float32(s), 10, 0.9, 1.0) for s in (0, 5, 10, 20)], [0.9, 0.95, 1, 1])


def test_a_crop_shows_a_part_of_the_image_of_the_size_asked_for():
    side, size = 40, 10
    ramp = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).astype(np.float32) + 0.5
    shares, draw = [], jax.jit(lambda key: random_crop(key, ramp, size, (0.2, 0.5)))
    for key in jax.random.split(jax.random.key(0), 20):
        crop = np.asarray(draw(key))[1:-1, 1:-1]  # its border may lie beyond the image's
        steps = [np.diff(crop[..., 0], axis=0), np.diff(crop[..., 1], axis=1)]
        for step in steps:  # a straight line, as far as smoothing leaves it one
            np.testing.assert_allclose(step, step.mean(), rtol=0.1)
        np.testing.assert_allclose(np.diff(crop[..., 0], axis=1), 0, atol=1e-3)
        height, width = (step.mean() * size for step in steps)
        assert 0.73 < width / height < 1.37
        corner = crop[0, 0] - 1.5 * np.array([height, width]) / size
        assert (corner > -0.2).all() and (corner + [height, width] < side + 0.2).all()
        shares.append(height * width / side**2)
    assert 0.19 < min(shares) < 0.3 < 0.4 < max(shares) < 0.51


def test_a_text_is_written_token_by_token_or_at_once(model):
    module, params = model
    decode = jax.jit(lambda tokens, parallel: module.apply(
        {"params": params}, tokens, jnp.ones((2, 3, 8)), parallel=parallel, method=lambda m, *a, **k: m.decoder(*a, **k)
    ))  # fmt: skip
    one = jnp.array([[1, 2, 3, 4, 5, 6]] * 2)
    other, parallel = one.at[:, 2].set(7), jnp.array([True, False])
    first, second = decode(one, parallel), decode(other, parallel)
    np.testing.assert_allclose(first[0], second[0], atol=1e-6)  # at once: of nothing but the image
    np.testing.assert_allclose(first[1, :3], second[1, :3], atol=1e-6)
    assert np.abs(first[1, 3:] - second[1, 3:]).max(-1).min() > 1e-4
    # In parallel a place sees those behind it, too: without the last there are other logits.
    assert np.abs(decode(one[:, :5], parallel)[0] - first[0, :5]).max() > 1e-4
    np.testing.assert_allclose(decode(one[:, :5], parallel)[1], first[1, :5], atol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def caption_logits(module, params, images, tokens, parallel):
    write = lambda m: m.decoder(tokens, m.vision.hidden(images), parallel=parallel)
    return module.apply({"params": params}, method=write)


def naive_captioning(module, params, rows, parallel):
    """(sum, weight), a row and a token after the other."""
    logits = caption_logits(module, params, rows["images"], rows["tokens"], parallel)
    total = weight = 0.0
    for i in range(ROWS):
        length = int(rows["segment_ids"][i].sum())
        for t in range(min(length + 1, LENGTH)):
            target = rows["tokens"][i, t] if t < length else VOCAB
            total -= rows["loss_weights"][i] * np.log(softmax(np.asarray(logits[i, t], np.float64))[target])
            weight += rows["loss_weights"][i]
    return total, weight


def test_captions_are_those_of_the_text_and_its_end(model, steps):
    module, _ = model
    rows, (params, carry, sums, *_) = batch(0), steps[0]
    drawn = [bool(jax.random.bernoulli(jax.random.fold_in(key, 0), 0.5)) for key in rows["keys"]]
    assert len(set(drawn)) == 2  # rows of both kinds
    np.testing.assert_allclose(sums["captioning"], naive_captioning(module, params, rows, jnp.array(drawn)), rtol=1e-4)
    evaluated, _ = jax.jit(lambda: OBJECTIVE(module.apply, params, rows, None, False, carry=carry))()
    expected = naive_captioning(module, params, rows, jnp.zeros(ROWS, bool))
    np.testing.assert_allclose(evaluated["captioning"], expected, rtol=1e-4)
    terms = dict(zip(("sigmoid", "captioning"), evaluated["loss"], strict=True))
    np.testing.assert_allclose(terms["sigmoid"], evaluated["sigmoid"])
    np.testing.assert_allclose(terms["captioning"][0], 2 * evaluated["captioning"][0], rtol=1e-6)


def test_self_distillation_is_that_of_crops_and_hidden_patches(model, steps):
    module, _ = model
    for step, (params, carry, sums, after, moved, _) in enumerate(steps):
        names = ["sigmoid", "captioning", "distillation", "masking"]
        factors = [1.0, 2.0, 0.5, 0.5 * 2.5]
        for (total, weight), name, factor in zip(sums["loss"], names, factors, strict=True):
            np.testing.assert_allclose([total, weight], [factor * sums[name][0], sums[name][1]], rtol=1e-6)
        student = {name: params[name] for name in STUDENT}
        same = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)
        target = {name: moved[name] for name in STUDENT}
        if step < 2:
            assert [float(x) for name in names[2:] for x in sums[name]] == [0, 0, 0, 0]
            same(carry["teacher"], student)
            same(after["teacher"], target)
            assert not np.asarray(after["centre"]["image"]).any()
            continue
        same(after["teacher"], jax.tree.map(lambda t, s: 0.5 * t + 0.5 * s, carry["teacher"], target))
        expected, totals = naive_self_distillation(module, params, carry, batch(step))
        for name in names[2:]:
            np.testing.assert_allclose(sums[name], [expected[name], 2.5], rtol=1e-3)
        for name, count in (("image", 2.5), ("patches", 2.5 * 8)):
            centre = 0.9 * carry["centre"][name] + 0.1 * totals[name] / count
            np.testing.assert_allclose(after["centre"][name], centre, atol=1e-5)
    assert [int(steps[-1][3][name]) for name in ("step", "distilled")] == [4, 2]
    # What has begun goes on in a run that is made longer, and begins where a longer one says so.
    longer = dataclasses.replace(OBJECTIVE, run_steps=None).over(100)
    assert longer.first_step == 50 and longer._is_on(steps[-1][3]) and not longer._is_on(steps[2][1])


def naive_self_distillation(module, params, carry, rows):
    """The sums, and the teacher's logits added up, an image after the other and a patch after the other."""
    losses, totals = dict.fromkeys(("distillation", "masking"), 0.0), {"image": np.zeros(5), "patches": np.zeros(5)}
    slow = {**params, **carry["teacher"]}
    logits = jax.jit(lambda params, image, masked: module.apply(
        {"params": params}, image, masked, method=lambda m, image, masked: _logits(m, image, masked)
    ))  # fmt: skip
    for i, key in enumerate(rows["keys"]):
        image, weight = rows["images"][i], rows["loss_weights"][i]
        keys = [jax.random.fold_in(key, n) for n in range(4)]
        whole = random_crop(keys[1], image, SIDE, (0.4, 1.0))
        noise = jax.random.uniform(keys[3], (16,))
        hidden = sorted(range(16), key=lambda n: noise[n])[:8]
        masked = np.isin(np.arange(16), hidden)
        taught, by_patch = logits(slow, whole[None], np.zeros((1, 16), bool))
        loss = lambda s, t, name: (
            -(softmax((np.asarray(t) - carry["centre"][name]) / 0.04) * np.log(softmax(np.asarray(s) / 0.1))).sum()
        )
        for crop in jax.random.split(keys[2], 2):
            seen, _ = logits(params, random_crop(crop, image, 4, (0.05, 0.4))[None], np.zeros((1, 4), bool))
            losses["distillation"] += weight * loss(seen[0], taught[0], "image") / 2
        _, guessed = logits(params, whole[None], masked[None])
        for n in hidden:
            losses["masking"] += weight * loss(guessed[0, n], by_patch[0, n], "patches") / 8
            totals["patches"] += weight * np.asarray(by_patch[0, n])
        totals["image"] += weight * np.asarray(taught[0])
    return losses, totals


def _logits(module, image, masked):
    seen = module.vision.hidden(image, masked=masked, interpolate=True)
    return module.image_head(module.vision.pool(seen)), module.patch_head(seen)


def test_no_gradient_reaches_the_teacher_and_every_parameter_gets_one(steps):
    own, slow = steps[3][-1]
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(slow))
    leaves = jax.tree_util.tree_leaves_with_path(own)
    assert not [jax.tree_util.keystr(path) for path, leaf in leaves if not np.asarray(leaf).any()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "softmax"}, "SigLIP 2's is 'sigmoid'"),
        ({"mask_ratio": 0.0}, "objective.mask_ratio = 0.0 must be between"),
        ({"momentum": 1.5}, "objective.momentum = 1.5"),
        ({"local_area": (0.4, 0.2)}, "objective.local_area"),
        ({"teacher_temperature": 0.0}, "objective.teacher_temperature = 0.0 must be above 0"),
        ({"masking_weight": -1.0}, "objective.masking_weight = -1.0"),
    ],
)
def test_objectives_that_cannot_be_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        SigLIP2(**change)


def test_other_models_and_data_are_refused(model):
    module, params = model
    with pytest.raises(ConfigError, match="which ViT does not have; take model.name = 'siglip2'"):
        OBJECTIVE.initial(module.vision, params, None)
    data = types.SimpleNamespace(train=[batch()], tokenizer=None)
    OBJECTIVE.check(module, data)
    with pytest.raises(ConfigError, match="local_size = 3 must be a multiple of model.vision.patch_size = 2"):
        SigLIP2(local_size=3).check(module, data)
    with pytest.raises(ConfigError, match="set model.vision.use_mask_token = True"):
        OBJECTIVE.check(module.clone(vision=module.vision.clone(use_mask_token=False)), data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": None}, "model.decoder is missing"),
        ({"decoder": TEXT}, "model.decoder is a TextTower"),
        ({"decoder": DECODER | {"max_length": 4}}, "model.decoder.max_length = 4 is less than"),
        ({"vision": {"name": "conv_encoder", "projection_size": 0}}, "model.vision = ConvEncoder has no method `pool"),
    ],
)
def test_models_that_cannot_be_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        build(MODEL | change, MODELS)
