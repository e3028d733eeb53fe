"""Attention rolled out by a loop over layers and heads; gradients times input by differences."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.data.codecs.image import ImageCodec
from fmjax.data.codecs.label import LabelCodec
from fmjax.errors import InputError
from fmjax.inference.model import Model
from fmjax.inference.rollout import attention_rollout, gradient_times_input
from fmjax.layers.transformer import unstack_layers
from fmjax.models.resnet import ResNet
from fmjax.models.state import STATE_KEY, initial_state
from fmjax.models.vit import ViT
from tests import two_towers
from tests.quick_keys import quick_key

SIZES = dict(
    num_layers=3, hidden_size=8, intermediate_size=8, num_heads=2, num_classes=3, patch_size=2, image_size=4,
    num_channels=1, init_std=0.8,
)  # fmt: skip
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1), np.uint8)


def made(**fields):
    module = ViT(**SIZES | fields)
    params = nn.unbox(jax.jit(module.init)(quick_key(0), jnp.zeros((1, 4, 4, 1)))["params"])
    params = jax.tree.map(lambda x: x + 0.3 * np.random.default_rng(x.size).normal(size=x.shape), params)
    codecs = {"image": ImageCodec(4, 4, 1), "label": LabelCodec(3)}
    return Model(module, params, {"objective": {"name": "classification"}}, codecs=codecs)


def test_gradients_of_a_module_with_statistics():
    fields = dict(stem="cifar", block="basic", depths=(1,), widths=(8,), stem_size=8, num_classes=3)
    module = ResNet(image_size=4, num_channels=1, **fields)
    params = nn.unbox(jax.jit(module.init)(quick_key(0), jnp.zeros((1, 4, 4, 1)))["params"])
    carry = {STATE_KEY: nn.unbox(initial_state(module, jax.random.key(0)))}
    model = dataclasses.replace(made(), module=module, params=params, carry=carry)
    found = gradient_times_input(model, list(IMAGES), [2, 0], patches=2)
    pixels = np.stack([model.codecs["image"].encode(image)["images"] for image in IMAGES])
    picked = lambda x: model.module.apply(model.variables, x)[jnp.arange(2), jnp.array([2, 0])].sum()
    expected = (jax.grad(picked)(pixels) * pixels).reshape(2, 2, 2, 2, 2).sum((2, 4))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("token", [True, False])
def test_attention_is_rolled_out_layer_by_layer(token):
    model = made() if token else made(use_class_token=False, pooling="mean")
    found = attention_rollout(model, list(IMAGES))
    pixels = np.stack([model.codecs["image"].encode(image)["images"] for image in IMAGES])
    _, state = model.module.apply({"params": model.params}, pixels, method="hidden", mutable=["reads"])
    q, k = (np.asarray(state["reads"]["stack"]["blocks"]["attention"][name], np.float64) for name in "qk")
    for row in range(2):
        rolled = np.eye(q.shape[2])
        for layer in range(3):
            heads = []
            for head in range(2):
                scores = q[layer, row, :, head] @ k[layer, row, :, head].T / np.sqrt(4)
                exps = np.exp(scores - scores.max(1, keepdims=True))
                heads.append(exps / exps.sum(1, keepdims=True))
            rolled = (0.5 * np.mean(heads, axis=0) + 0.5 * np.eye(len(rolled))) @ rolled
        expected = rolled[0, 1:] if token else rolled.mean(0)
        np.testing.assert_allclose(found[row].ravel(), expected, rtol=1e-4)
    unrolled = Model(model.module.clone(scan_layers=False), unstack_layers(model.params), codecs=model.codecs)
    np.testing.assert_allclose(attention_rollout(unrolled, list(IMAGES)), found, rtol=1e-4)


def test_attention_of_a_tower_is_rolled_out():
    tower = Model(two_towers.MODULE.vision, two_towers.MODEL.params["vision"], codecs=two_towers.MODEL.codecs)
    images = [np.kron(image, np.ones((2, 2, 1), np.uint8)) for image in IMAGES]
    found = attention_rollout(two_towers.MODEL, images)
    np.testing.assert_allclose(found, attention_rollout(tower, images), atol=1e-6)
    assert found.shape == (2, 2, 2) and (found.sum((1, 2)) < 1).all()


def test_gradients_times_input_are_what_fading_a_patch_changes():
    model = made()
    found = gradient_times_input(model, list(IMAGES), [2, 0], patches=2)
    pixels = np.stack([model.codecs["image"].encode(image)["images"] for image in IMAGES])
    logits = jax.jit(lambda x: model.module.apply({"params": model.params}, x))
    for row, label in enumerate([2, 0]):
        for i in range(2):
            for j in range(2):
                step = np.zeros_like(pixels)
                at = (row, slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2))
                step[at] = 0.01 * pixels[at]
                change = (logits(pixels + step) - logits(pixels - step))[row, label] / 0.02
                np.testing.assert_allclose(found[row, i, j], change, rtol=2e-2, atol=2e-3)
    by_words = dataclasses.replace(model, config={"objective": {"name": "contrastive"}})
    with pytest.raises(InputError, match="has no classes of its own, whose logits have gradients"):
        gradient_times_input(by_words, list(IMAGES), [2, 0], patches=2)
    for patches, labels, message in [(3, [2, 0], "does not divide"), (2, [2], "2 images and 1 labels")]:
        with pytest.raises(InputError, match=message):
            gradient_times_input(model, list(IMAGES), labels, patches=patches)
