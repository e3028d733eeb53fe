"""A small model of images and texts in one space with random weights, as a run of it is loaded."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.config import build
from fmjax.data.digits import CODEC
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.load import Model
from fmjax.models import MODELS
from tests.quick_keys import quick_key

SIZES = {"num_layers": 1, "hidden_size": 16, "num_heads": 2}
IMAGE = {"intermediate_size": 32, "patch_size": 4, "num_classes": 0, "image_size": 8, "num_channels": 1}
SECTION = {
    "name": "clip",
    "vision": {"name": "vit", **SIZES, **IMAGE, "init_std": 0.3},
    "text": {"name": "text_tower", **SIZES, "vocab_size": 258, "max_length": 48},
    "projection_size": 8,
}
MODULE = build(SECTION, MODELS)


def _random(key):
    inputs = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in MODULE.example().items()}
    params = nn.unbox(MODULE.init(key, **inputs)["params"])
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten([x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])


MODEL = Model(MODULE, jax.jit(_random)(quick_key(0)), {"model": SECTION}, ByteTokenizer(), codecs={"image": CODEC})
