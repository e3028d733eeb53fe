"""A small model of images and texts in one space with random weights, as a run of it is loaded."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.data.digits import CODEC
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.load import Model
from fmjax.models.clip import CLIP
from fmjax.models.text_tower import TextTower
from fmjax.models.vit import ViT

SIZES = dict(num_layers=1, hidden_size=16, num_heads=2)
MODULE = CLIP(
    vision=ViT(
        **SIZES, intermediate_size=32, patch_size=4, num_classes=0, image_size=8, num_channels=1, init_std=0.3,
    ),
    text=TextTower(**SIZES, vocab_size=258, max_length=48),
    projection_size=8,
)  # fmt: skip


def _random(key):
    inputs = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in MODULE.example().items()}
    params = nn.unbox(MODULE.init(key, **inputs)["params"])
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten([x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])


MODEL = Model(MODULE, jax.jit(_random)(jax.random.key(0)), {}, ByteTokenizer(), codecs={"image": CODEC})
