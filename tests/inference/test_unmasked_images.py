"""Images of codes: guided logits are those in closed form, whole runs of them are in tests/objectives."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.data.codecs.image import ImageCodec
from fmjax.data.codecs.label import LabelCodec
from fmjax.errors import InputError
from fmjax.inference import steps, unmasked_images
from fmjax.inference.model import Model
from fmjax.objectives.base import OtherModel

LOGITS = np.array([[0.0, 1.0, -0.5], [1.0, 0.0, 0.3], [0.2, -0.4, 0.9]])  # of label 0, 1, and none


class Said(nn.Module):
    """The same logits at each of four places, whatever is seen."""

    num_codes: int = 3
    num_places: int = 4
    num_classes: int = 2

    @nn.compact
    def __call__(self, codes, classes, train=False):
        return jnp.broadcast_to(jnp.asarray(LOGITS)[classes][:, None], (*codes.shape, 3))  # -1 is the last


class Shades(nn.Module):
    """Codes are shades."""

    @nn.compact
    def __call__(self, vectors):
        return vectors.reshape(len(vectors), 2, 2, 1)

    decode = __call__

    def encode(self, images):
        return images.reshape(len(images), 4, 1)


SHADES = np.array([[-1.0], [0.0], [1.0]], np.float32)
MODEL = Model(
    Said(), {}, {"objective": {"name": "masked_codes", "first_stage": "a run"}},
    codecs={"image": ImageCodec(2, 2, 1), "label": LabelCodec(2)},
    open_other={"first_stage": OtherModel(Shades(), {}, {}, {"counts": np.ones(3, np.float32), "sums": SHADES})}.get,
)  # fmt: skip


def shares(**options):
    images = np.stack(MODEL.generate([0], num_samples=2_000, batch_size=2_000, steps=2, **options))
    assert set(np.unique(images)) <= {0, 128, 255}
    return np.array([(images == shade).mean() for shade in (0, 128, 255)])


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def test_guidance_is_of_logits():
    given, other, none = LOGITS
    for options, want in [
        (dict(), given),
        (dict(guidance=2.5), none + 2.5 * (given - none)),
        (dict(guidance=2.5, negative=1), other + 2.5 * (given - other)),
        (dict(guidance=2.5, temperature=2.0), (none + 2.5 * (given - none)) / 2),
        (dict(guidance=0.0), none),
    ]:
        np.testing.assert_allclose(shares(order="random", **options), softmax(want), atol=0.02)
    # Within the first half of the times, of which the first of two steps is not.
    half = shares(order="random", guidance=4.0, guidance_interval=(0.0, 0.6))
    np.testing.assert_allclose(half, (softmax(given) + softmax(none + 4 * (given - none))) / 2, atol=0.02)


def test_told_step_by_step_they_are_the_same_by_the_same_program(monkeypatch):
    options, said = dict(steps=3, num_samples=2, seed=2), []
    images, programs = MODEL.generate([0], **options), unmasked_images._seen._cache_size()
    monkeypatch.setattr(steps, "LEAST_SECONDS", 0.0)
    with steps.telling(lambda *one: said.append(one)):
        np.testing.assert_array_equal(MODEL.generate([0], **options), images)
    assert said == [(done, 3) for done in range(4)] and unmasked_images._seen._cache_size() == programs


class Neighbour(Said):
    """Each place is as the one left of it."""

    @nn.compact
    def __call__(self, codes, classes, train=False):
        return 50 * (jnp.roll(codes, 1, axis=1)[..., None] == jnp.arange(3))


def test_within_a_mask_codes_are_made_anew_by_those_that_stay():
    model = dataclasses.replace(MODEL, module=Neighbour())
    image, mask = np.array([[[120], [0]], [[255], [3]]], np.uint8), np.array([[False, False], [False, True]])
    for number, seed in ((1, 0), (3, 1)):
        options = dict(init_image=image, mask=mask, steps=number, num_samples=2, seed=seed)
        for made in model.generate([0], **options):
            np.testing.assert_array_equal(made, [[[120], [0]], [[255], [255]]])  # pixels, not their codes' shades
    # All anew: the last is still hidden when the first is drawn, so that nothing says what it is.
    everywhere = model.generate([0], init_image=image, mask=mask | True, num_samples=20, steps=2)
    assert len({made.tobytes() for made in everywhere}) > 5
    for options, message in [
        (dict(mask=mask), "needs init_image: give both, or neither"),
        (dict(init_image=image), "needs mask: give both, or neither"),
        (dict(init_image=np.zeros((2, 2, 1)), mask=mask), "init_image: an image is uint8"),
        (dict(init_image=image, mask=mask & False), "mask: it is white nowhere"),
    ]:
        with pytest.raises(InputError, match=message):
            model.generate([0], **options)


def test_what_cannot_be_made_is_refused():
    bare = dataclasses.replace(MODEL, open_other=None, kept={})
    always = {"objective": {"name": "masked_codes", "first_stage": "a run", "label_dropout": 0.0}}
    for model, prompts, options, message in [
        (MODEL, [2], {}, "a label is a whole number from 0 to 1"),
        (MODEL, [0], dict(negative=1), "negative = 1 has no meaning with guidance = 1"),
        (MODEL, [0], dict(steps=0), "steps"),
        (MODEL, [0], dict(order="left"), "order = 'left'"),
        (MODEL, [0], dict(guidance_interval=3), "guidance_interval = 3"),
        (bare, [0], {}, "does not know where its first_stage is; load it with fmjax.load"),
        (dataclasses.replace(MODEL, config=always), [0], dict(guidance=2), "label_dropout = 0, so it does not know"),
        (dataclasses.replace(MODEL, config=always), [None], {}, "label_dropout = 0: give it a prompt"),
        (dataclasses.replace(MODEL, codecs={"image": MODEL.codecs["image"]}), [0], {}, "takes no prompts, got 0"),
    ]:
        with pytest.raises(InputError, match=message):
            model.generate(prompts, **options)
    assert len(MODEL.generate(steps=1)) == 2  # of each class one
    diverged = {"first_stage": OtherModel(Shades(), {}, {}, {"counts": np.zeros(3, np.float32), "sums": SHADES})}
    with pytest.raises(RuntimeError, match="is not finite; nothing is written"):
        dataclasses.replace(MODEL, open_other=diverged.get, kept={}).generate([0], steps=1)
